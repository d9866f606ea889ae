"""The trainers whose settings can be read, and which of them a file is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft.migration.axolotl import AXOLOTL
from sft.migration.llamafactory import LLAMAFACTORY
from sft.migration.mapping import Tool
from sft.migration.trl import TRL
from strict_settings import Problem, SettingsError

TOOLS: Mapping[str, Tool] = {tool.name: tool for tool in (TRL, AXOLOTL, LLAMAFACTORY)}


def num_known(values: Mapping[str, Any]) -> dict[str, int]:
    """How many of a file's keys each trainer knows, by its name."""
    return {name: sum(key.name in values for key in tool.keys) for name, tool in TOOLS.items()}


def tool_of(values: Mapping[str, Any], file: str) -> Tool:
    """The trainer that knows most of the keys.

    Raises:
        SettingsError: none knows any, or two know as many.
    """
    counts = num_known(values)
    first, second = sorted(counts.values(), reverse=True)[:2]
    if first == second:
        remedy = f"Its keys do not tell which trainer it is for. Say it: --from {' | '.join(TOOLS)}."
        raise SettingsError(Problem("--from", None, "be given", remedy, where=file))
    return TOOLS[max(counts, key=lambda name: counts[name])]
