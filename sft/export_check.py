"""Is what was exported what was trained? The folder is loaded as everyone loads it, and asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sft.errors import SftError

TOLERANCE = 1e-5
"""By how much logits may differ, as a share of the largest: rounding of sums in another order."""
ROUNDED_TOLERANCE = 2e-2
"""The same for merged weights in half precision: the sum of a weight and its adapter may round to a neighbour."""
_LENGTH = 24


@dataclass(frozen=True)
class Proof:
    """What was compared."""

    difference: float
    """The largest of any logit, as a share of the largest logit."""
    num_tokens: int
    template_is_same: bool


@torch.no_grad()
def probe_logits(model: Any, dtype: torch.dtype) -> Tensor:
    """The logits of made-up tokens, with the weights in a number format: (tokens, vocabulary), float32."""
    num_ids = int(model.config.get_text_config().vocab_size)
    ids = torch.randint(num_ids, (2, _LENGTH), generator=torch.Generator().manual_seed(0))
    was_training = model.training
    found: Tensor = model.eval().to(dtype)(input_ids=ids, use_cache=False).logits.float().flatten(0, 1)
    model.train(was_training)
    return found


def prove(
    folder: Path, expected: Tensor, template: str, dtype: torch.dtype, *, tolerance: float, adapter_base: Any = None
) -> Proof:
    """Loads an exported folder with transformers, and compares logits and chat template.

    Args:
        folder: what was exported.
        expected: `probe_logits` of what was trained.
        template: of the training.
        dtype: of the weights.
        tolerance: how far logits may differ, as a share of the largest.
        adapter_base: the model that an exported adapter belongs to.

    Raises:
        SftError: they differ; the folder is not to be used.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if adapter_base is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(adapter_base, str(folder))
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    difference = relative_difference(probe_logits(model, dtype), expected)
    same = AutoTokenizer.from_pretrained(folder).chat_template == template
    if not difference <= tolerance or not same:
        what = f"logits that differ by {difference:.2g} of the largest" if same else "another chat template"
        raise SftError(
            f"{folder} has {what}; it must give what was trained. Do not use it, and please report how it was made."
        )
    return Proof(difference, len(expected), same)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max())
