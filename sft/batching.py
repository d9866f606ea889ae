"""Documents → Batch: what one forward pass takes.

Three collations, by what the model can do (`sft/model_check.py`): all documents end to end in one row without any
padding, for attention per document; rows of a fixed capacity with several documents each, told apart by their
positions; or a row for each document, padded, for every model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sft.attention import Layout
from sft.documents import Document

IGNORED_LABEL = -100
"""Label of a token that is not trained (torch's and transformers' convention)."""


@dataclass(frozen=True)
class Batch:
    """Rows of documents, shapes (rows, tokens)."""

    input_ids: Tensor
    attention_mask: Tensor | None
    """1 where a document stands; None for packed rows, where `position_ids` tell the documents apart: with a mask, even
    one of ones, transformers no longer looks for them."""
    labels: Tensor
    """The token ids where trained, `IGNORED_LABEL` elsewhere; not shifted. Never in a row's first place."""
    num_tokens: int
    num_trained_tokens: int
    position_ids: Tensor | None = None
    """Packed rows: places within each document, from 0; the padding is a document of its own."""
    label_weights: Tensor | None = None
    """What the loss of each label is multiplied by, float32; None where that is 1 for all."""
    predicting: Tensor | None = None
    """Places in the flattened rows whose next token is trained, in order; the first place alone where there is none."""
    layout: Layout | None = None
    """Of one row of documents end to end: where they stand."""
    total_weight: float = 0.0
    """Sum of the trained labels' weights; the number of trained tokens where they are not weighted."""

    def for_copies_to(self, device: torch.device) -> Batch:
        """The same batch; for a GPU in pinned memory, from which it is copied while the host goes on."""
        if device.type != "cuda":
            return self
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor | Layout)}
        pinned: dict[str, Any] = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return replace(self, **pinned)

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor | Layout)}
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        return replace(self, **moved)


def collate(documents: Sequence[Document], pad_token_id: int) -> Batch:
    """Documents → Batch, a row for each, padded on the right to the longest."""
    documents = documents or [Document([pad_token_id], [False])]
    shape = (len(documents), max(len(document) for document in documents))
    arrays = _Arrays(shape, pad_token_id)
    attention_mask = np.zeros(shape, dtype=np.int64)
    for row, document in enumerate(documents):
        arrays.put(document, row, 0)
        attention_mask[row, : len(document)] = 1
    return arrays.batch(documents, attention_mask=torch.from_numpy(attention_mask))


def collate_packed(rows: Sequence[Sequence[Document]], pad_token_id: int, capacity: int) -> Batch:
    """Rows of documents → Batch, each row filled up to its capacity.

    The first token of a document is predicted from nothing, wherever it stands in a row: it has no label.

    Args:
        rows: of documents that fit into `capacity` together; none gives one token without a label.
        pad_token_id: what stands after the last document.
        capacity: tokens of a row.
    """
    if not rows:
        return collate([], pad_token_id)
    arrays = _Arrays((len(rows), capacity), pad_token_id)
    position_ids = np.zeros((len(rows), capacity), dtype=np.int64)
    for number, row in enumerate(rows):
        start = 0
        for document in row:
            arrays.put(document, number, start)
            position_ids[number, start : start + len(document)] = np.arange(len(document))
            start += len(document)
        position_ids[number, start:] = np.arange(capacity - start)
    documents = [document for row in rows for document in row]
    return arrays.batch(documents, position_ids=torch.from_numpy(position_ids))


def collate_flat(documents: Sequence[Document], pad_token_id: int, capacity: int | None = None) -> Batch:
    """Documents → Batch, all end to end in one row, the shortest first: neighbours of one length are computed together.

    What stands after the last trained token of a document has no part in any loss, and is left out; it is counted in
    `num_tokens` all the same, as its document's.

    Args:
        documents: none gives one token without a label.
        pad_token_id: fills the row up to its capacity.
        capacity: tokens of the row, for shapes that do not change from step to step; by default as many as there are.
    """
    documents = documents or [Document([pad_token_id], [False])]
    kept = sorted((_without_tail(document) for document in documents), key=len)
    lengths = [len(document) for document in kept]
    num_padding = max((capacity or 0) - sum(lengths), 0)
    if num_padding:
        lengths.append(num_padding)
    arrays = _Arrays((1, capacity or sum(lengths)), pad_token_id)
    start = 0
    for document in kept:
        arrays.put(document, 0, start)
        start += len(document)
    position_ids = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])).unsqueeze(0)
    batch = arrays.batch(documents, position_ids=position_ids)
    return replace(batch, layout=replace(Layout.of(lengths), num_padding=num_padding))


def _without_tail(document: Document) -> Document:
    """The document up to its last trained token, or its first token."""
    trained = np.flatnonzero(np.asarray(document.trained)[1:])
    stop = int(trained[-1]) + 2 if len(trained) else 1
    weights = None if document.weights is None else document.weights[:stop]
    return replace(document, input_ids=document.input_ids[:stop], trained=document.trained[:stop], weights=weights)


class _Arrays:
    """A batch in the making."""

    def __init__(self, shape: tuple[int, int], pad_token_id: int) -> None:
        self._input_ids = np.full(shape, pad_token_id, dtype=np.int64)
        self._labels = np.full(shape, IGNORED_LABEL, dtype=np.int64)
        self._weights = np.zeros(shape, dtype=np.float32)

    def put(self, document: Document, row: int, start: int) -> None:
        """Writes a document to its place."""
        stop = start + len(document)
        if stop > self._input_ids.shape[1]:
            raise ValueError(f"a row has {stop} tokens; it must have at most {self._input_ids.shape[1]}.")
        ids = np.asarray(document.input_ids, dtype=np.int64)
        trained: NDArray[np.bool_] = np.array(document.trained, dtype=np.bool_)
        trained[:1] = False
        weights = trained if document.weights is None else np.where(trained, document.weights, 0.0)
        self._input_ids[row, start:stop] = ids
        self._labels[row, start:stop] = np.where(trained, ids, IGNORED_LABEL)
        self._weights[row, start:stop] = weights

    def batch(
        self, documents: Sequence[Document], attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Batch:
        """The batch of what was put."""
        num_trained_tokens = int((self._labels != IGNORED_LABEL).sum())
        predicting = np.flatnonzero(self._labels.ravel()[1:] != IGNORED_LABEL)
        weighted = any(document.weights is not None for document in documents)
        return Batch(
            torch.from_numpy(self._input_ids),
            attention_mask,
            torch.from_numpy(self._labels),
            num_tokens=sum(len(document) for document in documents),
            num_trained_tokens=num_trained_tokens,
            position_ids=position_ids,
            predicting=torch.from_numpy(predicting if len(predicting) else np.zeros(1, dtype=np.int64)),
            label_weights=torch.from_numpy(self._weights) if weighted else None,
            total_weight=float(self._weights.sum(dtype=np.float64)) if weighted else float(num_trained_tokens),
        )
