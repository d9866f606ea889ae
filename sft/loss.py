"""The loss: cross-entropy summed over trained tokens, to be divided by their number in the whole optimizer step."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from sft.batching import IGNORED_LABEL, Batch


def sum_of_token_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Sum over the batch's trained tokens of −log p(token | what stands before it), in float32, a scalar.

    The position before a token predicts it, so labels are shifted by one here and nowhere else. A batch without
    trained tokens gives an exact zero that still reaches every parameter, so that all ranks run the same collectives.
    """
    logits: Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    labels = functional.pad(batch.labels[:, 1:], (0, 1), value=IGNORED_LABEL)
    if batch.num_trained_tokens == 0:
        return logits.sum().float() * 0.0
    trained = labels != IGNORED_LABEL
    return functional.cross_entropy(logits[trained].float(), labels[trained], reduction="sum")
