"""The output layer and the loss in one: logits of trained positions only, a tile at a time, never all of them at once.

A tile's logits become its loss, and in the same memory the gradient of that loss, which becomes the gradient of the
layer's input and of its weight before the next tile is computed: three matrix products, as for plain cross-entropy,
with float32 copies of a few rows of logits at a time and nothing computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

TILE_BYTES = {"cpu": 1 << 29, "cuda": 1 << 30}
"""Logits of a tile. As many as memory allows: every tile after the first adds up the weight's gradient once more."""
_CHUNK_BYTES = {"cpu": 1 << 23, "cuda": 1 << 28}
"""Float32 numbers that are made of a tile at a time. On a CPU they do not leave its cache between two operations; a GPU
has a row for each of its multiprocessors, and would otherwise hold several times the tile."""


@dataclass(frozen=True)
class OutputLayer:
    """A linear output layer, and what the model does to its logits."""

    linear: nn.Linear
    scale: float = 1.0
    softcap: float | None = None
    """logits = softcap × tanh(scale × linear / softcap)."""

    def loss_sum(self, hidden: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """Σ −weight × log p(target | hidden), in float32.

        Args:
            hidden: (positions, width).
            targets: (positions,), token ids.
            weights: (positions,), or None for 1.
        """

        def forward(inner: Tensor) -> Tensor:
            return _LinearCrossEntropy.apply(  # type: ignore[no-any-return,no-untyped-call]
                inner, self.linear.weight, self.linear.bias, targets, weights, self, torch.is_grad_enabled()
            )

        # Called as the module that it is: ZeRO-3 gathers a weight before its module runs, and for that time only.
        with _forward_replaced(self.linear, forward):
            found: Tensor = self.linear(hidden)
        return found


def output_layer_of(model: Any) -> OutputLayer | None:
    """The output layer of a transformers model, if it is of a known kind. That the model does nothing else to its
    logits has to be checked by running it."""
    linear = model.get_output_embeddings()
    if type(linear) is not nn.Linear or "forward" in vars(linear):  # adapters, quantized weights
        return None
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)
    return OutputLayer(linear, scale, getattr(config, "final_logit_softcapping", None))


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


class CrossEntropy(torch.autograd.Function):
    """(logits, targets, weights) → loss sum. The logits are overwritten: with their gradient, where one is needed."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, weights: Tensor | None, is_training: bool) -> Tensor:
        ctx.save_for_backward(logits)
        # Written to behind autograd's back, but not unseen: an operation that needs the logits as they were raises.
        return _to_gradients(logits, targets, weights, 1.0, None, needed=is_training)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(upstream[0]), None, None, None


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor | None,
        layer: OutputLayer,
        is_training: bool,
    ) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        needed = tuple(is_training and wanted for wanted in ctx.needs_input_grad)
        rows = max(1, TILE_BYTES.get(device, 1 << 30) // (weight.shape[0] * dtype.itemsize))
        loss_sum = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradients = _Gradients(hidden, weight, bias, needed)
        with torch.autocast(device, enabled=False):
            inner, matrix = hidden.detach().to(dtype), weight.detach().to(dtype)
            for start in range(0, len(inner), rows):
                part = slice(start, start + rows)
                logits = inner[part] @ matrix.T
                if bias is not None:
                    logits += bias.to(dtype)
                own_weights = None if weights is None else weights[part]
                loss_sum += _to_gradients(
                    logits, targets[part], own_weights, layer.scale, layer.softcap, needed=any(needed)
                )
                gradients.add(part, logits, inner[part], matrix)
        ctx.save_for_backward(*(gradients.all()))
        return loss_sum

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Tensor | None, ...]:
        found = [None if gradient is None else gradient.mul_(upstream[0]) for gradient in ctx.saved_tensors]
        return (*found, None, None, None, None)


class _Gradients:
    """The gradients of hidden, weight and bias, added up tile by tile."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...]) -> None:
        self._hidden = torch.empty_like(hidden) if needed[0] else None
        self._weight: Tensor | None = None
        self._weight_like = weight if needed[1] else None
        self._bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needed[2] else None
        self._bias_like = bias

    def add(self, part: slice, of_logits: Tensor, inner: Tensor, matrix: Tensor) -> None:
        """Takes up a tile's gradient of the logits."""
        if self._hidden is not None:
            self._hidden[part] = of_logits @ matrix
        if self._weight_like is not None:
            product = of_logits.T @ inner
            if self._weight is None:
                self._weight = product.float()
            else:
                self._weight += product
        if self._bias is not None:
            self._bias += of_logits.sum(0, dtype=torch.float32)

    def all(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of hidden, weight and bias, in their number formats; None where not needed."""
        weight = self._weight.to(self._weight_like.dtype) if self._weight is not None else None  # type: ignore[union-attr]
        bias = self._bias.to(self._bias_like.dtype) if self._bias is not None else None  # type: ignore[union-attr]
        return self._hidden, weight, bias


def _to_gradients(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    scale: float,
    softcap: float | None,
    *,
    needed: bool = True,
) -> Tensor:
    """The loss sum; the logits are overwritten by its gradient. Computed in float32, a few rows at a time."""
    rows = max(1, _CHUNK_BYTES.get(logits.device.type, _CHUNK_BYTES["cuda"]) // (4 * logits.shape[-1]))
    loss_sum = torch.zeros((), dtype=torch.float32, device=logits.device)
    for start in range(0, len(logits), rows):
        chunk, wanted = logits[start : start + rows], targets[start : start + rows].unsqueeze(1)
        values = chunk.float() if scale == 1.0 else chunk.float() * scale
        capped = None if softcap is None else torch.tanh(values / softcap)
        log_p = torch.log_softmax(values if capped is None else capped * float(softcap or 0), -1)
        losses = -log_p.gather(1, wanted)
        by_row = None if weights is None else weights[start : start + rows].unsqueeze(1)
        loss_sum += (losses if by_row is None else losses * by_row).sum()
        if not needed:
            continue
        gradient = log_p.exp_()
        gradient.scatter_add_(1, wanted, torch.full_like(losses, -1.0))
        if by_row is not None:
            gradient *= by_row
        if capped is not None:
            gradient *= 1.0 - capped * capped
        chunk.copy_(gradient if scale == 1.0 else gradient.mul_(scale))
    return loss_sum
