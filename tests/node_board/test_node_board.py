"""The board between a node's agent and its ranks."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from node_board import VARIABLE, NodeBoard

RANK = """
import os, sys
from node_board import NodeBoard

board = NodeBoard.attach_from(os.environ, int(sys.argv[1]))
board.beat("step", 7)
board.plan(100)
board.checkpointed(5)
board.tell_slowness(1.75, "data")
board.tell_reason("diverged")
print(os.getpid(), board.stop_reason)
"""


@pytest.fixture
def board() -> NodeBoard:
    return NodeBoard.create(3)


def environment(board: NodeBoard) -> dict[str, str]:
    return {VARIABLE: str(board.path)}


def test_what_a_process_tells_is_seen_by_another_in_its_slot_alone(board: NodeBoard) -> None:
    board.request_stop("time_limit")
    before = time.monotonic()
    root = str(Path(__file__).parents[2])
    rank = subprocess.run(
        [sys.executable, "-c", RANK, "1"],
        env={**environment(board), "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    pid, reason = rank.stdout.split()
    first, slot, last = board.slots()
    assert (slot.pid, slot.phase, slot.step, slot.num_beats) == (int(pid), "step", 7, 2)
    assert (slot.last_checkpoint, slot.num_steps, slot.slowness, reason) == (5, 100, 1.75, "time_limit")
    assert (first.reason, slot.reason, last.reason) == ("", "diverged", "")
    assert (first.slow_phase, slot.slow_phase, last.slow_phase) == ("", "data", "")
    assert before < slot.beat_at < time.monotonic()
    assert (first.pid, last.pid) == (0, 0)
    board.close()


def test_the_first_reason_to_stop_stays(board: NodeBoard) -> None:
    rank = NodeBoard.attach_from(environment(board), 0)
    assert rank is not None
    assert rank.stop_reason is None
    board.request_stop("é" * 100)
    board.request_stop("cancelled")
    assert rank.stop_reason is not None
    assert rank.stop_reason.startswith("é" * 48)
    rank.close()
    board.close()


def test_its_file_is_the_owners_alone_and_goes_with_its_maker(board: NodeBoard) -> None:
    assert stat.S_IMODE(board.path.stat().st_mode) == 0o600
    rank = NodeBoard.attach_from(environment(board), 2)
    assert rank is not None
    board.close()
    assert not board.path.exists()
    rank.beat("evaluation", 3)  # a rank that is still there does not fall
    assert rank.slots()[2].phase == "evaluation"
    rank.close()


def test_without_a_board_there_is_none(board: NodeBoard, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for content in (b"", b"x" * 4096):
        other.write_bytes(content)
        assert NodeBoard.attach_from({VARIABLE: str(other)}, 0) is None
    link = tmp_path / "link"
    link.symlink_to(board.path)
    for environ in ({}, {VARIABLE: ""}, {VARIABLE: str(tmp_path / "none")}, {VARIABLE: str(link)}):
        assert NodeBoard.attach_from(environ, 0) is None
    assert NodeBoard.attach_from(environment(board), 3) is None
    board.close()


def test_a_beat_costs_next_to_nothing(board: NodeBoard) -> None:
    rank = NodeBoard.attach_from(environment(board), 0)
    assert rank is not None
    called: list[str] = []

    def note(_frame: FrameType, event: str, what: Any) -> None:
        if event in ("call", "c_call"):
            called.append(getattr(what, "__name__", "beat"))

    sys.setprofile(note)
    try:
        rank.beat("step", 1)
    finally:
        sys.setprofile(None)
    assert called[:-1] == ["beat", "monotonic_ns", "index"]  # the last is setprofile itself: no file, no lock
    rank.close()
    board.close()


MAKER = """
import os, signal
from node_board import NodeBoard

board = NodeBoard.create(1)
print(board.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_boards_of_makers_that_were_killed_are_removed_and_no_others(board: NodeBoard) -> None:
    killed = []
    for _ in range(2):
        root = str(Path(__file__).parents[2])
        maker = subprocess.run(
            [sys.executable, "-c", MAKER], env={"PYTHONPATH": root}, capture_output=True, text=True, check=False
        )
        killed.append(Path(maker.stdout.strip()))
    old, new = killed
    for path in (old, board.path):
        os.utime(path, (time.time() - 3600,) * 2)
    assert old.exists()
    another = NodeBoard.create(1)
    assert not old.exists()
    assert board.path.exists()  # its maker lives, however old it is
    assert new.exists()  # it may be one that is just being made
    another.close()
    new.unlink()
    board.close()
