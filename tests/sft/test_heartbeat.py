"""Signals: the first asks for a stop; a second ends a rank, unless an agent is there that does so in time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from node_board import VARIABLE, NodeBoard
from sft import heartbeat

PROGRAM = """
import os, signal, sys, time
from sft import heartbeat
heartbeat.SECOND_SIGNAL_S = 0.01
beats = heartbeat.Heartbeat.from_env(os.environ)
beats.listen()
beats.beat("checkpoint", 7)
is_ended, *numbers = map(int, sys.argv[1:])
for number in numbers:
    os.kill(os.getpid(), number)
    time.sleep(0.3)
time.sleep(60 * is_ended)
assert beats.stop_reason is not None
os._exit(0)  # it has saved
"""
TERM, USR1, USR2 = "15", "10", "12"


@pytest.mark.parametrize(
    ("reason", "signals", "code"),
    [
        (None, (TERM,), 0),
        (None, (TERM, TERM), 128 + 15),
        ("preempted", (TERM, TERM, TERM), 0),
        ("preempted", (USR1, TERM), 0),
        ("SIGUSR2", (USR2, USR2), 128 + 12),
        (None, (USR1, TERM), 128 + 15),
    ],
)
def test_signals_while_a_rank_saves(reason: str | None, signals: tuple[str, ...], code: int) -> None:
    board = NodeBoard.create(1)
    try:
        if reason is not None:
            board.request_stop(reason)
        environ = {VARIABLE: str(board.path), "PYTHONPATH": str(Path(heartbeat.__file__).parents[1])}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(int(code > 0)), *signals], env=environ, capture_output=True, check=False
        )
    finally:
        board.close()
    assert done.returncode == code, done.stderr
