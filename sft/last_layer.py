"""The last decoder layer, for the tokens whose state anybody reads.

After it each token goes its own way to the output layer, and only those that predict a trained token get there. Of the
others the last layer needs keys and values, which the rest attend to; their query, their attention's projection and
their feed-forward block, most of the layer's weights, are of no consequence for the loss, and are left out. Whether a
model's layer is of that kind is tried before the first step (`sft/model_check.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

_TOKENWISE = ("q_proj", "o_proj", "out_proj", "dense", "mlp", "feed_forward")
"""Names of a layer's parts that work token by token; an attention's `dense` is its projection."""


class LastLayer:
    """A decoder layer some parts of which leave out the tokens that are not read, where a batch's layout names them."""

    def __init__(self, layer: nn.Module, parts: list[nn.Module]) -> None:
        self._read: Tensor | None = None
        self._before = [(module, module.__dict__.get("forward")) for module in (layer, *parts)]
        # The instances' own: modules keep their names and hooks, by which engines gather their weights.
        layer.forward = partial(self._run_layer, layer.forward)
        for part in parts:
            part.forward = partial(self._run_part, part.forward)

    def _run_layer(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # It holds until the next call: gradient checkpointing runs the parts again in the backward pass, from inside.
        self._read = getattr(kwargs.get("documents"), "read", None)
        return function(*args, **kwargs)

    def _run_part(self, function: Callable[..., Any], states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """function(states), with zeros for the tokens that are left out."""
        if self._read is None:
            return function(states, *args, **kwargs)
        found = function(states.flatten(0, -2)[self._read][None], *args, **kwargs)[0]
        whole = found.new_zeros(states.shape[:-1].numel(), found.shape[-1])
        return whole.index_copy(0, self._read, found).view(*states.shape[:-1], -1)

    def remove(self) -> None:
        """Makes the layer what it was."""
        for module, before in self._before:
            if before is None:
                del module.forward
            else:
                module.forward = before


def shorten_last_layer(body: nn.Module, num_layers: int) -> LastLayer | None:
    """Shortens the last of a model's decoder layers; None where it is not found, or has no parts of a known name.

    Args:
        body: a causal language model without its output layer.
        num_layers: of its configuration.
    """
    stacks = [module for module in body.children() if isinstance(module, nn.ModuleList) and len(module) == num_layers]
    if len(stacks) != 1:
        return None
    named = dict(stacks[0][-1].named_modules())
    names = [name for name in named if name.rpartition(".")[2] in _TOKENWISE]
    outermost = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    return LastLayer(named[""], [named[name] for name in outermost]) if outermost else None
