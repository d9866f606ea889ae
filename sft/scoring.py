"""Losses of documents, one by one, by the trainer's own attention and loss; in one process, without an engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sft.batching import Batch, collate, collate_flat, collate_packed
from sft.documents import Document
from sft.loss import LossModule, document_losses
from sft.model_check import Collation


class Scorer:
    """A model that is only looked at: `engine.Forward` on one device, for `model_check.prepare_model` to work on."""

    def __init__(self, model: Any, device: torch.device, *, bf16: bool = False) -> None:
        """
        Args:
            model: on its device.
            device: where batches go.
            bf16: compute in bfloat16 by autocast, as the trainer does.
        """
        self.model = model.eval().requires_grad_(False)
        self.loss_module = LossModule(model).eval()
        self._device = device
        self._bf16 = bf16

    def computing(self) -> torch.autocast:
        """The number format in which the trainer would compute, as a context."""
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """The batch's sum of token losses."""
        with self.computing():
            found: Tensor = self.loss_module(batch)
        return found

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """The model's logits where trained tokens are predicted, (places, vocabulary)."""
        with self.computing():
            found: Tensor = self.loss_module(batch, only_logits=True)
        return found

    def losses(self, documents: Sequence[Document], collation: Collation, size: int) -> list[float]:
        """The sum of token losses, each times its weight, of each document.

        Args:
            documents: each with a trained token.
            collation: what `prepare_model` found.
            size: documents of a batch.
        """
        found = [0.0] * len(documents)
        for numbers in by_length([len(document) for document in documents], size):
            chosen = [documents[number] for number in numbers]
            batch = _batch(chosen, collation).to(self._device)
            trained = [document.num_trained_tokens for document in chosen]
            with self.computing():
                losses = document_losses(self.model, batch, trained, self.loss_module.output_layer)
            for number, loss in zip(numbers, losses.double().tolist(), strict=True):
                found[number] = loss
        return found


def _batch(documents: list[Document], collation: Collation) -> Batch:
    """The documents, shortest first, in this order whatever the collation."""
    if collation == "flat":
        return collate_flat(documents, 0)
    if collation == "packed":
        return collate_packed([documents], 0, sum(map(len, documents)))
    return collate(documents, 0)


def by_length(lengths: Iterable[int], size: int) -> Iterator[list[int]]:
    """Numbers of items in batches of like length, each with its shortest first; the longest batch first, so that what
    does not fit into memory shows at once."""
    given = list(lengths)
    order = sorted(range(len(given)), key=lambda number: (given[number], number))
    for stop in range(len(order), 0, -size):
        yield order[max(0, stop - size) : stop]
