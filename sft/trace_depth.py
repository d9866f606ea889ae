"""The trace of a deep model from two shallow ones.

Where all layers are alike, each adds the same: what is held at the n-th moment before the first layer's gradients, or
after the last one's, grows by as much with every layer. Three layers and four therefore tell it for any number. The
greatest sum stands at one of these ends, for between them it rises or falls evenly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from sft.batching import Batch
from sft.engine import decoder_layers
from sft.memory_trace import Moment, Trace, trace

_SHALLOW, _DEEPER = 3, 4


def trace_of_any_depth(model: Any, batch: Batch, *, autocast: bool, emulated: bool = False) -> Trace:
    """`memory_trace.trace`, by extrapolation where layers are many and alike."""
    in_numbers = {"autocast": autocast, "emulated": emulated}
    layers = decoder_layers(model)
    # Of layers that are recomputed in turn with others that are not, each turn adds the same.
    turn = _turn([bool(getattr(layer, "gradient_checkpointing", False)) for layer in layers])
    num_turns, rest = divmod(len(layers), turn)
    if num_turns <= 2 * _DEEPER or not _are_alike(model, layers):
        return trace(model, batch, **in_numbers)
    with _cut_to(model, _SHALLOW * turn + rest):
        shallow = trace(model, batch, **in_numbers)
    with _cut_to(model, _DEEPER * turn + rest):
        deeper = trace(model, batch, **in_numbers)
    return extrapolated(shallow, deeper, num_turns)


def _turn(flags: list[bool]) -> int:
    """The number of layers after which their kinds come again."""
    return next(size for size in range(1, len(flags) + 1) if flags[size:] == flags[:-size])


def extrapolated(shallow: Trace, deeper: Trace, num_layers: int) -> Trace:
    """The trace of so many layers from those of three and four. The moments in the middle are left out."""
    per_layer = len(deeper.moments) - len(shallow.moments)
    num_first = max(len(shallow.moments) - 2 * per_layer, 1)
    num_last = max(len(shallow.moments) - per_layer, 1)
    pairs = [
        *zip(shallow.moments[:num_first], deeper.moments[:num_first], strict=True),
        *zip(shallow.moments[-num_last:], deeper.moments[-num_last:], strict=True),
    ]
    moments = tuple(_moment(fewer, more, num_layers) for fewer, more in pairs)
    return Trace(moments, _line(shallow.saved_bytes, deeper.saved_bytes, num_layers))


def _moment(shallow: Moment, deeper: Moment, num_layers: int) -> Moment:
    kinds = shallow.held_bytes.keys() | deeper.held_bytes.keys()
    held = {kind: _line(shallow.held_bytes.get(kind, 0), deeper.held_bytes.get(kind, 0), num_layers) for kind in kinds}
    return Moment(_line(shallow.num_gradients, deeper.num_gradients, num_layers), held)


def _line(shallow: int, deeper: int, num_layers: int) -> int:
    return deeper + (num_layers - _DEEPER) * (deeper - shallow)


def _are_alike(model: Any, layers: list[nn.Module]) -> bool:
    """Whether all layers have the same weights, and attend in the same way."""
    shapes = {
        tuple((name, tuple(tensor.shape), tensor.requires_grad) for name, tensor in layer.named_parameters())
        for layer in layers
    }
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    return len(shapes) == 1 and len(kinds) <= 1


@contextlib.contextmanager
def _cut_to(model: Any, num_layers: int) -> Iterator[None]:
    """The model with its first layers only."""
    whole = max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len)
    parent, name = next(
        (parent, name) for parent in model.modules() for name, child in parent.named_children() if child is whole
    )
    config = model.config.get_text_config()
    depth = config.num_hidden_layers
    setattr(parent, name, whole[:num_layers])
    config.num_hidden_layers = num_layers  # some models count their layers by it
    try:
        yield
    finally:
        setattr(parent, name, whole)
        config.num_hidden_layers = depth
