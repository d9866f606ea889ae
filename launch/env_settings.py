"""Environment variables as settings: `--env NAME=VALUE`, and `env` mappings that are joined."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from strict_settings import Problem, SettingsError, Source


def env_words_of(words: tuple[str, ...]) -> dict[str, str]:
    """`NAME=VALUE` words as a mapping, each value to the letter, control characters too."""
    env: dict[str, str] = {}
    problems = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            problems.append(Problem("--env", word, "be NAME=VALUE"))
        elif name in env:
            problems.append(Problem(f"--env {name}", word, "be given once", "Remove one of the two."))
        env[name] = value
    if problems:
        raise SettingsError(problems)
    return env


def with_merged_env(sources: list[Source]) -> list[Source]:
    """The sources, with `env` joined variable by variable: a later source adds, and replaces the same name."""
    merged: dict[str, Any] = {}
    result = []
    for source in sources:
        env = source.values.get("env")
        if isinstance(env, Mapping):
            merged = {**merged, **env}
            result.append(dataclasses.replace(source, values={**source.values, "env": merged}))
        else:
            result.append(source)
    return result
