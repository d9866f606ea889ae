"""What agents note of their ranks: how far they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.notes import ProgressNotes
from node_board import Slot

SLOT = Slot(0, 100, "step", 1, 1, 0.0, None, 50, 0.0)


def noted(folder: Path, node: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"progress-{node}.json").read_text())
    return found


def test_steps_and_their_pace(tmp_path: Path) -> None:
    notes = ProgressNotes(tmp_path, 1, 2, num_nodes=2, host="n2")
    for step in range(1, 11):
        slots = [
            replace(SLOT, step=step, beat_at=0.5 * step),
            replace(SLOT, local_rank=1, step=step, beat_at=0.25 * step),
        ]
        notes.look(slots, now=float(step))
    found = noted(tmp_path)
    assert (found["node"], found["host"]) == (1, "n2")
    assert [(rank["rank"], rank["step"], rank["step_s"], rank["num_steps"]) for rank in found["ranks"]] == [
        (2, 10, 0.5, 50), (3, 10, 0.25, 50),
    ]  # fmt: skip


def test_ranks_that_are_not_on_the_board_are_left_out(tmp_path: Path) -> None:
    notes = ProgressNotes(tmp_path, 1, 2, num_nodes=2, host="n2")
    notes.look([replace(SLOT, pid=0)], now=1.0)
    assert not (tmp_path / "progress-1.json").exists()
    notes.look([SLOT, replace(SLOT, local_rank=1, pid=0)], now=2.0)
    assert [rank["rank"] for rank in noted(tmp_path)["ranks"]] == [2]


@pytest.mark.parametrize(("num_nodes", "num_writes"), [(2, 20), (256, 3)])
def test_the_disk_is_written_to_once_in_a_while_and_only_when_something_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_nodes: int, num_writes: int
) -> None:
    """Twenty seconds of steps: every second on few nodes, seldom on many."""
    written: list[Path] = []
    monkeypatch.setattr("launch.notes.write_json", lambda path, _, **__: written.append(path))
    notes = ProgressNotes(tmp_path, 1, 0, num_nodes=num_nodes, host="n2")
    for tick in range(200):
        notes.look([replace(SLOT, step=tick)], now=tick / 10)
    assert len(written) == num_writes
    notes.look([replace(SLOT, step=199)], now=1000.0)
    notes.look([replace(SLOT, step=199)], now=2000.0)
    assert len(written) == num_writes + 1


def test_a_run_that_goes_on_from_an_earlier_step_has_no_negative_pace(tmp_path: Path) -> None:
    notes = ProgressNotes(tmp_path, 1, 0, num_nodes=1, host="n2")
    for number, step in enumerate((100, 101, 50, 51)):
        notes.look([replace(SLOT, step=step, beat_at=float(number))], now=10.0 * number)
    assert noted(tmp_path)["ranks"][0]["step_s"] == 1.0


def test_a_full_disk_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("launch.notes.write_json", refuse)
    ProgressNotes(tmp_path, 1, 0, num_nodes=1, host="n2").look([SLOT], now=1.0)
    assert list(tmp_path.iterdir()) == []
