"""The loss: weighted cross-entropy summed over trained tokens, to be divided by their weight in the whole step.

Only positions that predict a trained token go through the output layer: with a large vocabulary it costs more than the
rest of a small model, and most tokens of a conversation are not trained.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sft.attention import transformers_model
from sft.batching import Batch
from sft.output_layer import CrossEntropy, OutputLayer


class LossModule(nn.Module):
    """What the engines run forward and backward: a model with its loss, as one module.

    Engines act on modules: DDP, FSDP2 and DeepSpeed look at a forward from its inputs to its outputs. So the choice of
    positions and the loss are inside of it.
    """

    def __init__(self, model: Any) -> None:
        """
        Args:
            model: a causal language model of transformers, or a peft model around one.
        """
        super().__init__()
        self.model = model
        self.output_layer: OutputLayer | None = None
        """How to compute the output layer and the loss in one, once `sft/model_check.py` has found that it is right;
        until then the model's own forward gives the logits."""

    def forward(self, batch: Batch, *, only_logits: bool = False) -> Tensor:
        """The batch's `sum_of_token_losses`, or its `logits_of`."""
        if only_logits:
            return logits_of(self.model, batch)
        return sum_of_token_losses(self.model, batch, self.output_layer)


def sum_of_token_losses(model: Any, batch: Batch, output_layer: OutputLayer | None = None) -> Tensor:
    """Sum over the batch's trained tokens of −weight × log p(token | its document before it), in float32, a scalar.

    The position before a token predicts it: `Batch.predicting`. A batch without trained tokens gives an exact zero that
    still reaches every parameter, so that all ranks run the same collectives.

    Args:
        model: a causal language model.
        batch: collated as the model takes it.
        output_layer: computes loss and gradient in tiles instead of the model's own logits.
    """
    targets, weights = _targets(batch)
    if output_layer is not None:
        return output_layer.loss_sum(_hidden(model, batch), targets, weights)
    logits = logits_of(model, batch)
    loss: Tensor = CrossEntropy.apply(logits, targets, weights, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return loss


@torch.no_grad()
def document_losses(
    model: Any, batch: Batch, num_trained_tokens: Sequence[int], output_layer: OutputLayer | None = None
) -> Tensor:
    """What each document of a batch has of `sum_of_token_losses`: (documents,), float32.

    Args:
        model: a causal language model.
        batch: with at least one trained token.
        num_trained_tokens: of each document, in the order in which they stand in the batch.
        output_layer: as for `sum_of_token_losses`.
    """
    targets, weights = _targets(batch)
    sizes = list(num_trained_tokens)
    by_document = zip(
        torch.split(_hidden(model, batch) if output_layer is not None else logits_of(model, batch), sizes),
        torch.split(targets, sizes),
        torch.split(weights, sizes) if weights is not None else [None] * len(sizes),
        strict=True,
    )
    losses = [
        output_layer.loss_sum(found, wanted, weight)
        if output_layer is not None
        else CrossEntropy.apply(found, wanted, weight, False)  # type: ignore[no-untyped-call]
        for found, wanted, weight in by_document
    ]
    return torch.stack(losses)


def _targets(batch: Batch) -> tuple[Tensor, Tensor | None]:
    """(token ids at the places after `Batch.predicting`, their weights)."""
    predicting = batch.predicting
    assert predicting is not None
    if not batch.num_trained_tokens:
        return predicting, torch.zeros(1, device=predicting.device)
    weights = None if batch.label_weights is None else batch.label_weights.flatten()[predicting + 1]
    return batch.labels.flatten()[predicting + 1], weights


def _hidden(model: Any, batch: Batch) -> Tensor:
    """The output layer's input at `Batch.predicting`: (places, width)."""
    hidden: Tensor = transformers_model(model).base_model(**_inputs(batch)).last_hidden_state
    return hidden.flatten(0, 1)[batch.predicting]


def logits_of(model: Any, batch: Batch) -> Tensor:
    """The model's own logits at `Batch.predicting`: (places, vocabulary)."""
    inputs = _inputs(batch)
    if has_router_loss(model):
        inputs["output_router_logits"] = False  # its loss is computed with logits, and is for padded rows alone
    if len(batch.input_ids) == 1 and _keeps_chosen_logits(model):
        found: Tensor = model(**inputs, logits_to_keep=batch.predicting).logits[0]
    else:
        found = model(**inputs).logits.flatten(0, 1)[batch.predicting]
    return found


def has_router_loss(model: Any) -> bool:
    """Whether the configuration of a mixture of experts asks for its auxiliary loss, which is not trained here."""
    config = getattr(transformers_model(model), "config", None)
    return bool(getattr(config, "output_router_logits", False))


def _inputs(batch: Batch) -> dict[str, Any]:
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "use_cache": False,
    }
    if batch.position_ids is not None:
        inputs["position_ids"] = batch.position_ids
    if batch.layout is not None:
        # transformers passes a mask of four dimensions on as it is, and makes none; the layout says who sees whom.
        inputs["attention_mask"] = torch.zeros((1, 1, 1, 1), device=batch.input_ids.device)
        inputs["documents"] = replace(batch.layout, read=batch.predicting)
    return inputs


def _keeps_chosen_logits(model: Any) -> bool:
    return "logits_to_keep" in inspect.signature(transformers_model(model).forward).parameters
