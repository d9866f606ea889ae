"""What is wrong with a setting: where, which value, which rule, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One mistake. Prints as `<file>:<line>: <field> is <value>; it must <rule>. <remedy>`."""

    field: str
    value: object
    rule: str
    remedy: str = ""
    where: str = ""
    """`run.yaml:12`, `--learning_rate` or empty."""

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        remedy = f" {self.remedy}" if self.remedy else ""
        return f"{where}{self.field} is {written(self.value)}; it must {self.rule}.{remedy}"


class Described(str):
    """What is said of a value in place of the value: `unknown`, `given twice`. Printed without quotes."""

    def __repr__(self) -> str:
        return str(self)


class SettingsError(ValueError):
    """Every problem of one request, gathered, so that nobody mends them one run at a time."""

    exit_code = 2

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def written(value: object) -> str:
    """The value as its author would recognise it: YAML words for null and booleans, quotes around text."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:190]}… ({len(text)} characters)"


def with_suggestion(name: str, known: Iterable[str]) -> str:
    """`Did you mean 'learning_rate'?` where something known is close, else all that is known; both where one begins as
    the other does, as `r` and `rank`."""
    import difflib

    known = sorted(known)
    if close := difflib.get_close_matches(name, known, n=1, cutoff=0.6):
        return f"Did you mean {close[0]!r}?"
    akin = [other for other in known if name and (name.startswith(other) or other.startswith(name))]
    question = f"Did you mean {max(akin, key=len)!r}? " if akin else ""
    return f"{question}Known: {', '.join(known)}."
