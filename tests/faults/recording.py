"""The fixture `shows`: a test tells what it has seen come of a fault, which is compared and, on request, recorded."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from .matrix import ROWS
from .requirement import Seen

VARIABLE = "CLEANSFT_RECORD_FAULTS"
"""A file to which what is seen is appended, for `python -m tests.faults.table FILE`."""
SLACK = 4.0
"""A test may run on a machine that is busy with others; the times in docs/faults.md keep within the limits."""
TESTS = Path(__file__).resolve().parents[1]


class Shows:
    """Called with the number of a fault and what came of it."""

    def __init__(self, test: str) -> None:
        self._test = test

    def __call__(self, row: int, case: str = "", **seen: Any) -> None:
        """
        Raises:
            AssertionError: it is not what must come of it.
        """
        for name in ("found_s", "free_s", "next_step_s"):
            if seen.get(name) is not None:
                seen[name] = round(seen[name], 1)
        found = Seen(row, case, self._test, **{**seen, "says": without_places(seen.get("says", ""))})
        required = ROWS[row]
        assert self._test in required.tests, f"row {row} must name {self._test} among its tests"
        assert case in required.cases, f"row {row} has no case {case!r}"
        print(f"fault {row} {case}: {found}")
        problems = list(required.cases[case].problems(found, SLACK))
        assert not problems, f"row {row} {case}: {'; '.join(problems)}"
        if path := os.environ.get(VARIABLE):
            with Path(path).open("a", encoding="utf-8") as file:
                file.write(json.dumps(found.to_json(), ensure_ascii=False) + "\n")


def without_places(text: str) -> str:
    """The text without the names of this machine and of its temporary folders."""
    text = re.sub(rf"\b{re.escape(os.uname().nodename)}\b", "host", text)
    text = re.sub(r"/(?:tmp|run|dev/shm|var/tmp)/[^\s'\",;:)]*/", "…/", text)
    return " ".join(text.split())


@pytest.fixture
def shows(request: pytest.FixtureRequest) -> Shows:
    """Tells what a test has seen come of a fault of docs/faults.md."""
    path = request.path.relative_to(TESTS)
    return Shows(f"{path}::{request.node.originalname}")
