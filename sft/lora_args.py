"""LoraArgs: the settings under `lora:`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from strict_settings import above, at_least, below


@dataclass(frozen=True)
class LoraArgs:
    """`lora:` — low-rank adapters instead of full fine-tuning."""

    enabled: bool = True
    """Train adapters; `false` keeps the other values in the file for later."""
    r: Annotated[int, at_least(1)] = 16
    """Rank of the adapters."""
    alpha: Annotated[float, above(0)] = 32.0
    """The adapters' product is scaled by alpha / r."""
    dropout: Annotated[float, at_least(0), below(1)] = 0.0
    """Dropout on the adapters' input."""
    target_modules: tuple[str, ...] = ()
    """Names of the layers that get adapters; empty: every linear layer but the output layer."""
    merge: bool = False
    """Also write the merged weights, to `merged/` in the output directory."""
    dora: bool = False
    """Train the size of each column of a weight apart from its direction (DoRA, Liu et al., 2024)."""
    rslora: bool = False
    """Scale by alpha / √r instead, for high ranks (rsLoRA, Kalajdzievski, 2023)."""
