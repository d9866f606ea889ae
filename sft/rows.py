"""A row of a file with its place, a row that cannot be used, and what is done about the latter."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from sft.errors import DataError

MAX_SHOWN_PROBLEMS = 10
"""How many bad rows a message lists."""
_MAX_REASONS = 1000
"""How many different reasons are told apart; what varies in them is cut out, so real data has a handful."""


@dataclass(frozen=True)
class Line:
    """A line of JSON Lines that is not parsed yet."""

    file: str
    number: int
    """From 1."""
    text: bytes


@dataclass(frozen=True)
class Row:
    """One value of a file: a row, if the file is right."""

    value: Any
    source: str
    """`train.jsonl:17`, or `train.parquet[3]` where there are no lines; for messages to people."""


@dataclass(frozen=True)
class BadRow:
    """One row that cannot be used."""

    source: str
    """As `Row.source`; with the column (`train.jsonl:17:42`) where the line is no JSON."""
    reason: str
    """A sentence; what differs from row to row is in quotes, digits or behind a colon."""

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


class BadRows:
    """Counts the rows that cannot be used and decides when they are too many.

    Attributes:
        count: bad rows so far.
        reasons: how many of them for which reason, with numbers and quoted values replaced by `…`.
        examples: the first of them.
    """

    def __init__(self, policy: Literal["error", "skip"] = "error", limit: int = 100) -> None:
        """
        Args:
            policy: `error` lets the whole data be read, so that one message names all that is wrong; `skip` goes on
                without them.
            limit: with `skip`, the number of bad rows that are still taken.
        """
        self.policy, self.limit = policy, limit
        self.count = 0
        self.reasons: Counter[str] = Counter()
        self.examples: list[BadRow] = []

    def add(self, bad: BadRow) -> None:
        """Counts one.

        Raises:
            DataError: with `skip`, it is one more than the limit.
        """
        self.count += 1
        reason = without_values(bad.reason)
        known = reason in self.reasons or len(self.reasons) < _MAX_REASONS
        self.reasons[reason if known else "another reason"] += 1
        if len(self.examples) < MAX_SHOWN_PROBLEMS:
            self.examples.append(bad)
        if self.policy == "skip" and self.count > self.limit:
            raise DataError(f"{self.report()}\nThat is more than max_bad_rows: {self.limit}.")

    def finish(self, num_rows: int) -> None:
        """Call it when all data has been read.

        Args:
            num_rows: good and bad ones together.

        Raises:
            DataError: with `error`, there are bad rows; with either, no good one is left.
        """
        if self.count and (self.policy == "error" or self.count >= num_rows):
            raise DataError(f"{self.report()}\n{self.count} of {num_rows} rows cannot be used.")
        if not num_rows:
            raise DataError("the data holds no row. Name a file with at least one conversation.")

    def report(self) -> str:
        """The first bad rows with their places, and how many there are for each reason; empty if there are none."""
        lines = [str(bad) for bad in self.examples]
        if self.count > len(lines):
            lines.append(f"… and {self.count - len(lines)} more")
            lines += [f"{number:>7} × {reason}" for reason, number in self.reasons.most_common(MAX_SHOWN_PROBLEMS)]
        return "\n".join(lines)


def without_values(reason: str) -> str:
    """The reason without what differs from row to row, so that like ones count together."""
    return re.sub(r"'[^']*'|\d+(\.\d+)?", "…", reason)[:300]
