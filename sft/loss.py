"""The loss: weighted cross-entropy summed over trained tokens, to be divided by their weight in the whole step."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from sft.batching import IGNORED_LABEL, Batch


def sum_of_token_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Sum over the batch's trained tokens of −weight × log p(token | its document before it), in float32, a scalar.

    The position before a token predicts it, so labels are shifted by one here and nowhere else. A batch without
    trained tokens gives an exact zero that still reaches every parameter, so that all ranks run the same collectives.
    """
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if batch.position_ids is not None:
        inputs["position_ids"] = batch.position_ids
    logits: Tensor = model(**inputs, use_cache=False).logits
    if batch.num_trained_tokens == 0:
        return logits.sum().float() * 0.0
    labels = functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORED_LABEL)
    trained = labels != IGNORED_LABEL
    if batch.label_weights is None:
        return functional.cross_entropy(logits[trained].float(), labels[trained], reduction="sum")
    weights = functional.pad(batch.label_weights[:, 1:], (0, 1))[trained]
    return functional.cross_entropy(logits[trained].float(), labels[trained], reduction="none") @ weights
