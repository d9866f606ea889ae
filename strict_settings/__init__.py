"""Frozen dataclasses from YAML files and command lines, with one exact message per mistake; files of secrets.

`launch` and `sft` share this package and nothing else. It knows nothing of either.
"""

from __future__ import annotations

from pathlib import Path

from strict_settings.command_line import parse_command_line
from strict_settings.description import field_kinds
from strict_settings.problems import Problem, SettingsError, with_suggestion
from strict_settings.schema import above, at_least, at_most, below, build, field_docs, located
from strict_settings.source import Source

__all__ = [
    "Problem",
    "SettingsError",
    "Source",
    "above",
    "at_least",
    "at_most",
    "below",
    "build",
    "field_docs",
    "field_kinds",
    "located",
    "parse_command_line",
    "read_yaml",
    "with_suggestion",
]


def read_yaml(path: str | Path) -> Source:
    """The top-level mapping of a YAML file.

    Raises:
        SettingsError: missing or unreadable file, not UTF-8, over 1 MB, bad YAML, duplicate key, a key that is
            no text, an explicit tag, or a top level that is no mapping; with file and line.
    """
    from strict_settings import yaml_file  # PyYAML takes 20 ms to import, and not every command reads a file

    return yaml_file.read(path)
