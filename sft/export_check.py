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
    """The largest of any logit from what was trained, in the same number format, as a share of the largest logit."""
    num_tokens: int
    dtype: torch.dtype
    rounding: float
    """The same from what was trained, in float32."""

    def __str__(self) -> str:
        close = f"to {self.difference:.1g} of the largest"
        if self.dtype == torch.float32:
            return f"the logits of {self.num_tokens} tokens are those of the training {close}"
        name = str(self.dtype).removeprefix("torch.")
        return (
            f"the logits of {self.num_tokens} tokens are those of the trained weights in {name} {close}, and differ by "
            f"{self.rounding:.1g} from those in float32"
        )


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
    folder: Path,
    expected: Tensor,
    template: str,
    dtype: torch.dtype,
    *,
    tolerance: float,
    exact: Tensor,
    adapter_base: Any = None,
) -> Proof:
    """Loads an exported folder with transformers, and compares logits and chat template.

    Args:
        folder: what was exported.
        expected: `probe_logits` of what was trained, in `dtype`.
        template: of the training.
        dtype: of the weights.
        tolerance: how far logits may differ, as a share of the largest.
        exact: the same in float32.
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
    found = probe_logits(model, dtype)
    difference = relative_difference(found, expected)
    same = AutoTokenizer.from_pretrained(folder).chat_template == template
    if not difference <= tolerance or not same:
        what = f"logits that differ by {difference:.2g} of the largest" if same else "another chat template"
        remedy = "It was not kept; --no-check keeps it. Please report how it was made."
        raise SftError(f"what was written has {what}; it must give what was trained. {remedy}")
    return Proof(difference, len(expected), dtype, relative_difference(found, exact))


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max())
