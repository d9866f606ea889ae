"""The strings that a tokenizer makes control tokens of."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class ControlTokens:
    """The strings that a tokenizer makes control tokens of."""

    pattern: re.Pattern[str]
    """Finds them; the longest first."""
    ends: frozenset[str]
    """Those that are known to end a turn: the end-of-text token and the model's own list."""
    tags: frozenset[str]
    """Those that mark up what an assistant says, such as `<think>` and its end; they end no turn."""
    learned_ends: frozenset[str] = frozenset()
    """Those that end an assistant's turns in a made-up conversation."""
