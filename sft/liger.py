"""Liger's kernels for norms, rotary positions and gated feed-forward blocks, in place of the model's own.

Not its losses: ours makes logits on trained positions only. The only file that imports liger_kernel.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from strict_settings import Problem, SettingsError

_KERNELS = {"rope": True, "rms_norm": True, "swiglu": True, "geglu": True, "layer_norm": True}
_LOSSES = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def require_liger(device: torch.device) -> Mapping[str, Callable[..., None]]:
    """What Liger knows: a model's kind → what replaces its parts.

    Raises:
        SettingsError: the device is no GPU, or the library is not installed.
    """
    if device.type != "cuda":
        remedy = "Leave it out: its kernels are Triton's, for GPUs (CUDA)."
        raise SettingsError(Problem("liger", True, f"be false on a {device.type}", remedy))
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        remedy = f"Run pip install 'cleansft[liger]' ({error})."
        raise SettingsError(Problem("liger", True, "come with liger-kernel, which is not here", remedy)) from error
    found: Mapping[str, Callable[..., None]] = MODEL_TYPE_TO_APPLY_LIGER_FN
    return found


def use_liger(model: Any, device: torch.device) -> None:
    """Replaces what Liger knows of the model's kind.

    Args:
        model: of transformers, before adapters are added.
        device: where it is going to be.

    Raises:
        SettingsError: the device is no GPU, the library is not installed, or knows no such model.
    """
    known, model_type = require_liger(device), model.config.model_type
    apply = known.get(model_type)
    if apply is None:
        remedy = f"Liger knows {', '.join(sorted(known))}."
        raise SettingsError(Problem("liger", True, f"be false for {model_type}", remedy))
    taken = inspect.signature(apply).parameters
    apply(model=model, **{name: on for name, on in {**_KERNELS, **_LOSSES}.items() if name in taken})
