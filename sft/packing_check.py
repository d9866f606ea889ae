"""Do packed documents see each other in this model? Asked before the first step, of the model itself.

transformers keeps packed documents apart where a layer attends by a mask. Layers that carry a state along the row
(linear attention, state spaces, convolutions) run on over a boundary, and attention implementations of their own may
ignore it; nothing in a loss would show it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sft import loss
from sft.batching import Batch
from sft.flops import layer_kinds
from strict_settings import Problem, SettingsError

_BEFORE, _DOCUMENT, _ROWS = 11, 7, 2
_SMALL = 1e-3
"""What is left of a leak, as a share of what a model without boundaries lets through; numerical noise is below."""
_STATEFUL_LAYERS = ("linear", "mamba", "recurrent", "conv", "ssm", "hybrid", "lightning")
_STATEFUL_TYPES = (
    "mamba",
    "jamba",
    "bamba",
    "zamba",
    "rwkv",
    "recurrent",
    "xlstm",
    "hybrid",
    "falcon_h1",
    "nemotron_h",
)
_STATEFUL_SETTINGS = ("mamba_", "ssm_", "linear_conv_", "time_mix_")
_REMEDY = "Set packing: false; one document per row, grouped by length, costs little more."


def refuse_if_packing_leaks(model: Any, logits_of: Callable[[Batch], Tensor] | None = None) -> None:
    """Returns if the model keeps the documents of a packed row apart; a collective where its weights are sharded.

    Args:
        model: on its device.
        logits_of: how an engine runs it; without it the model is called. A model that is partitioned by ZeRO-3 can
            then not run, and its configuration alone is asked.

    Raises:
        SettingsError: documents see each other, on all ranks alike.
    """
    runs_here = logits_of is not None or not any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    if reason := stateful_part(model.config, by_layers_alone=runs_here):
        _refuse(f"{model.config.model_type} carries a state over document boundaries ({reason})")
    if not runs_here:
        return
    was_training = model.training
    model.eval()
    try:
        leak, allowed = _leak(model, logits_of or partial(loss.logits_of, model))
    except (TypeError, ValueError) as error:  # a forward that takes no position_ids, in its own words
        _refuse(f"{model.config.model_type} does not run on packed rows: {error}")
    finally:
        model.train(was_training)
    if not leak <= allowed:
        _refuse(f"documents in one row see each other in {model.config.model_type} with this attn_implementation")


def _refuse(reason: str) -> None:
    raise SettingsError(Problem("packing", True, "be false for this model", f"{reason}. {_REMEDY}"))


def stateful_part(config: Any, *, by_layers_alone: bool) -> str | None:
    """The word of a configuration that tells of a layer with a state; None if there is none.

    Args:
        config: of a transformers model.
        by_layers_alone: look only at the list of its layers' kinds, not at its type and settings.
    """
    for part in (config, config.get_text_config()):
        for kind in layer_kinds(part):
            if any(word in kind for word in _STATEFUL_LAYERS):
                return kind
        if by_layers_alone:
            continue
        if any(word in str(part.model_type) for word in _STATEFUL_TYPES):
            return str(part.model_type)
        if named := [name for name in vars(part) if name.startswith(_STATEFUL_SETTINGS)]:
            return str(named[0])
    return None


@torch.no_grad()
def _leak(model: Any, logits_of: Callable[[Batch], Tensor]) -> tuple[float, float]:
    """(how much a document's logits depend on the document before it in the row and on its place, how much they may).

    Two rows hold different first documents and the same second one, whose logits must then be the same, and those that
    it has alone. What they differ by without a boundary between the two is the measure.
    """
    device = next(model.parameters()).device
    num_ids = min(int(model.config.get_text_config().vocab_size), 1000)
    numbers = torch.randint(num_ids, (_ROWS + 1, _BEFORE + _DOCUMENT), generator=torch.Generator().manual_seed(0))
    ids = numbers[:_ROWS].clone()
    ids[:, _BEFORE:] = numbers[-1, _BEFORE:]
    ids = ids.to(device)
    reset = torch.cat([torch.arange(_BEFORE), torch.arange(_DOCUMENT)]).expand(_ROWS, -1).to(device)

    def second(input_ids: Tensor, position_ids: Tensor) -> Tensor:
        places = torch.arange(input_ids.numel(), device=device).view(input_ids.shape)[:, -_DOCUMENT:]
        batch = Batch(input_ids, None, input_ids, input_ids.numel(), 0, position_ids, predicting=places.flatten())
        return logits_of(batch).view(*places.shape, -1).float()

    packed = second(ids, reset)
    alone = second(ids[:, _BEFORE:], reset[:, _BEFORE:])
    open_rows = second(ids, torch.arange(_BEFORE + _DOCUMENT, device=device).expand(_ROWS, -1))
    dependence = float((open_rows[0] - open_rows[1]).abs().max())
    # Two rows of one batch take the same course, so that a leak shows in any number format; a row of another length
    # may not, which only a coarse measure survives.
    between = float((packed[0] - packed[1]).abs().max())
    from_alone = float((packed - alone).abs().max())
    coarse = 1e-2 * float(alone.abs().max())
    return max(between, from_alone - coarse), _SMALL * dependence
