"""Documents → Batch: what one forward pass takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sft.masking import Document

IGNORED_LABEL = -100
"""Label of a token that is not trained (torch's and transformers' convention)."""


@dataclass(frozen=True)
class Batch:
    """Padded documents, shapes (documents, tokens of the longest)."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    """The token ids where trained, `IGNORED_LABEL` elsewhere; not shifted."""
    num_tokens: int
    num_trained_tokens: int

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        move = [tensor.to(device, non_blocking=True) for tensor in (self.input_ids, self.attention_mask, self.labels)]
        return Batch(move[0], move[1], move[2], self.num_tokens, self.num_trained_tokens)


def collate(documents: Sequence[Document], pad_token_id: int) -> Batch:
    """Documents → Batch, padded on the right to the longest."""
    documents = documents or [Document([pad_token_id], [False])]
    shape = (len(documents), max(len(document) for document in documents))
    input_ids = torch.full(shape, pad_token_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED_LABEL)
    for row, document in enumerate(documents):
        length = len(document)
        input_ids[row, :length] = torch.tensor(document.input_ids)
        attention_mask[row, :length] = 1
        trained = torch.tensor(document.trained)
        labels[row, :length] = torch.where(trained, input_ids[row, :length], IGNORED_LABEL)
    num_tokens = sum(len(document) for document in documents)
    return Batch(input_ids, attention_mask, labels, num_tokens, sum(d.num_trained_tokens for d in documents))
