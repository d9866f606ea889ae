"""MaskOptions: what is trained, and how templates are rendered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from sft.config import Args


@dataclass(frozen=True)
class MaskOptions:
    """The mask settings of `Args`, under the same names."""

    train_on: Literal["assistant", "last", "all"] = "assistant"
    history: Literal["exact", "as_rendered"] = "exact"
    prompt_mismatch: Literal["as_rendered", "unroll", "refuse"] = "as_rendered"
    special_tokens_in_data: Literal["escape", "error"] = "escape"
    system_prompt: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    template_date: str | None = None
    truncation: Literal["right", "left", "drop"] = "right"

    @classmethod
    def of(cls, args: Args) -> MaskOptions:
        """The options among all settings."""
        return cls(**{option.name: getattr(args, option.name) for option in fields(cls)})
