"""Frozen dataclasses from YAML files and command lines, with one exact message per mistake.

`launch` and `sft` share this package and nothing else. It knows nothing of either.
"""

from strict_settings.command_line import parse_command_line
from strict_settings.description import field_kinds
from strict_settings.problems import Problem, SettingsError, with_suggestion
from strict_settings.schema import above, at_least, at_most, below, build, field_docs, located
from strict_settings.source import Source
from strict_settings.yaml_file import read_yaml

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
