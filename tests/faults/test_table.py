"""docs/faults.md is what its code and its record say, and every row names tests that show it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from .matrix import NUM_FAULTS, ROWS
from .recording import TESTS
from .requirement import Must, Seen
from .table import DOCUMENT, RECORD, is_shown, read, render

MIN_SHOWN = 53


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def numbers_shown(test: ast.FunctionDef) -> set[int | None]:
    """The rows that a test hands to `shows`; None stands for a number that is a parameter."""
    calls = [node for node in ast.walk(test) if isinstance(node, ast.Call)]
    own = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "shows"]
    return {first.value if isinstance(first := call.args[0], ast.Constant) else None for call in own}  # type: ignore[misc]


def test_there_are_all_rows() -> None:
    assert sorted(number for number in ROWS if number <= NUM_FAULTS) == list(range(1, 55))
    assert all(row.cases and (row.tests or row.reason) for row in ROWS.values())


@pytest.mark.parametrize("number", ROWS)
def test_each_row_is_shown_by_tests_that_are_there(number: int) -> None:
    for name in ROWS[number].tests:
        file, _, test = name.partition("::")
        found = functions(TESTS / file)
        assert test in found, name
        assert {number, None} & numbers_shown(found[test]), f"{name} does not show row {number}"


def test_what_was_recorded_is_as_required() -> None:
    """By the very limits: those of a test that runs on a busy machine are wider."""
    for seen in read(RECORD):
        assert seen.test in ROWS[seen.row].tests, seen
        assert list(ROWS[seen.row].cases[seen.case].problems(seen)) == [], seen


def test_the_document_is_made_of_the_record() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == render(read(RECORD)), "run `python -m tests.faults.table`"


def test_enough_rows_are_shown() -> None:
    seen = read(RECORD)
    missing = [number for number, row in ROWS.items() if number <= NUM_FAULTS and not is_shown(row, seen)]
    assert NUM_FAULTS - len(missing) >= MIN_SHOWN, missing


@pytest.mark.parametrize(
    ("seen", "problem"),
    [
        ({"code": 12}, "the exit code is 12; it must be 11"),
        ({"says": "rank 0 died"}, "it says 'rank 0 died'; it must say 'rank 1 on … died'"),
        ({"found_s": 2.5}, "found_s is 2.5; it must be at most 2"),
        ({"found_s": None}, "found_s is None; it must be at most 2"),
        ({"steps_lost": 5}, "steps_lost is 5; it must be at most 4"),
    ],
)
def test_what_is_not_as_required_is_told(seen: dict[str, object], problem: str) -> None:
    must = Must(11, "rank 1 on … died", found_s=2, steps_lost=4)
    good: dict[str, object] = {"code": 11, "says": "rank 1 on n2 died (9)", "found_s": 2.0, "steps_lost": 4}
    assert list(must.problems(Seen(1, "", "x", **good))) == []  # type: ignore[arg-type]
    assert list(must.problems(Seen(1, "", "x", **{**good, **seen}))) == [problem]  # type: ignore[arg-type]
    slow = {**good, "found_s": 7.0}
    assert list(must.problems(Seen(1, "", "x", **slow), slack=4)) == []  # type: ignore[arg-type]
