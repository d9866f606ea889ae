"""AdamW whose two running means are kept in eight bits, by bitsandbytes. The only file that imports it.

A block of 256 numbers has a scale, its largest magnitude, and each number is the nearest of 256 codes times the scale
(Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022). Tensors of less than 4096 numbers stay float32.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from strict_settings import Problem, SettingsError

SMALLEST = 4096
"""Numbers of the smallest tensor that is kept in eight bits."""
BLOCK = 256
_PLACES = {"exp_avg": "1", "exp_avg_sq": "2"}


def require_bitsandbytes(name: str, value: Any) -> Any:
    """The library, which `name: value` needs.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        remedy = f"Run pip install 'cleansft[bitsandbytes]' ({error})."
        raise SettingsError(Problem(name, value, "come with bitsandbytes, which is not here", remedy)) from error
    # It tells of every product of a layer in eight bits that it rounds its input.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    return bitsandbytes


def adamw_8bit(
    groups: Iterable[dict[str, Any]], learning_rate: float, betas: tuple[float, float], epsilon: float
) -> torch.optim.Optimizer:
    """AdamW in eight bits over parameter groups.

    Raises:
        SettingsError: bitsandbytes is not installed.
    """
    library = require_bitsandbytes("optim", "adamw_8bit")
    made: torch.optim.Optimizer = library.optim.AdamW8bit(
        list(groups), lr=learning_rate, betas=betas, eps=epsilon, min_8bit_size=SMALLEST
    )
    return made


def is_8bit(optimizer: Any) -> bool:
    """Whether it is one from here."""
    return type(optimizer).__name__ == "AdamW8bit"


def make_state(optimizer: Any, num_steps: int) -> None:
    """Gives every parameter a state as after so many steps, with zero means."""
    for number, group in enumerate(optimizer.param_groups):
        for place, parameter in enumerate(group["params"]):
            optimizer.init_state(group, parameter, number, place)
            optimizer.state[parameter]["step"] = num_steps


def read_mean(state: dict[str, Any], kind: str) -> Tensor:
    """A running mean, `exp_avg` or `exp_avg_sq`, in float32."""
    place = _PLACES[kind]
    values: Tensor = state[f"state{place}"]
    if values.dtype == torch.float32:
        return values
    scales = state[f"absmax{place}"].repeat_interleave(BLOCK)[: values.numel()]
    found: Tensor = state[f"qmap{place}"][values.flatten().long()] * scales
    return found.view(values.shape)


def write_mean(state: dict[str, Any], kind: str, values: Tensor) -> None:
    """Sets what `read_mean` gives; what it gave is kept as it was, to the last bit of a block's scale."""
    place = _PLACES[kind]
    target: Tensor = state[f"state{place}"]
    if target.dtype == torch.float32:
        target.copy_(values.view(target.shape))
        return
    codes, scales = quantized(values.to(target.device), state[f"qmap{place}"])
    target.copy_(codes.view(target.shape))
    state[f"absmax{place}"].copy_(scales)


def quantized(values: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
    """(number of the nearest code for each value, scale of each block).

    A scale is found from values that were codes times a scale: the largest code is 1, and the smallest, nearest to −1,
    is −0.99, so that a block whose largest magnitude is negative does not show it as it is.

    Args:
        values: float32, of any shape.
        code: (256,), rising.
    """
    flat = values.flatten()
    blocks = functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = blocks.amax(1) / code[-1]
    if code[0] < 0:
        scales = torch.maximum(scales, blocks.amin(1) / code[0])
    normal = blocks / torch.where(scales > 0, scales, 1.0).unsqueeze(1)
    codes = torch.bucketize(normal, (code[1:] + code[:-1]) / 2)
    return codes.flatten()[: len(flat)].to(torch.uint8), scales
