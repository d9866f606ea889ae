"""What must come of a fault, and whether what was seen is that. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Seen:
    """What a test has seen come of a fault."""

    row: int
    case: str
    test: str
    """`tests/…/test_x.py::test_y`."""
    code: int | None = None
    """The run's exit code."""
    says: str = ""
    """The message that names the fault, or the part of it that does."""
    found_s: float | None = None
    """From the fault to the record that names it."""
    free_s: float | None = None
    """From the fault until nothing of the run is left on any node."""
    next_step_s: float | None = None
    """From the fault to the first step that was not done before it."""
    steps_lost: int | None = None
    """Optimizer steps that had to be done again."""
    note: str = ""
    """What else was seen, with its figures."""

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Seen:
        return cls(**{"case": "", **record})

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


@dataclass(frozen=True)
class Must:
    """What must come of a fault, as far as a comparison can tell; the rest is asserted by its test."""

    code: int | None = None
    says: str = ""
    """Must be in the message; … stands for anything."""
    found_s: float | None = None
    free_s: float | None = None
    next_step_s: float | None = None
    steps_lost: int | None = None
    also: str = ""
    """What its tests assert besides, in words."""

    def problems(self, seen: Seen, slack: float = 1.0) -> Iterator[str]:
        """What of `seen` is not as it must be.

        Args:
            seen: of a test.
            slack: by how much times may be longer, on a machine that others use too.
        """
        if self.code is not None and seen.code != self.code:
            yield f"the exit code is {seen.code}; it must be {self.code}"
        if self.says and not re.search(".*".join(map(re.escape, self.says.split("…"))), seen.says, re.DOTALL):
            yield f"it says {seen.says!r}; it must say {self.says!r}"
        for name in ("found_s", "free_s", "next_step_s"):
            limit, value = getattr(self, name), getattr(seen, name)
            if limit is not None and (value is None or value > slack * limit):
                yield f"{name} is {value}; it must be at most {limit}"
        if self.steps_lost is not None and (seen.steps_lost is None or seen.steps_lost > self.steps_lost):
            yield f"steps_lost is {seen.steps_lost}; it must be at most {self.steps_lost}"


@dataclass(frozen=True)
class Row:
    """A fault."""

    number: int
    """As in the plan of the reliability of runs."""
    fault: str
    injection: str
    cases: dict[str, Must] = field(default_factory=dict)
    """What must come of each kind of it; the name is empty where there is one."""
    tests: tuple[str, ...] = ()
    """That show it, as `folder/test_x.py::test_y` below tests/."""
    reason: str = ""
    """Why it is not shown."""


def one(must: Must) -> dict[str, Must]:
    """The cases of a fault of one kind."""
    return {"": must}
