"""Finds the processes of a run that tests do something to."""

from __future__ import annotations

import os
import time
from pathlib import Path

from node_board import VARIABLE, NodeBoard


def environment_of(pid: int) -> bytes:
    """As the kernel has it of the process's start; empty where the process is gone."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def script_of(wrapper: int, local_rank: int = 0, timeout_s: float = 60) -> int:
    """The pid of a rank's script, which need not be a child of its wrapper: its node's board tells it."""
    words = dict(word.partition(b"=")[::2] for word in environment_of(wrapper).split(b"\0"))
    board = NodeBoard.attach(Path(os.fsdecode(words[VARIABLE.encode()])))
    assert board is not None
    deadline = time.monotonic() + timeout_s
    while not (pid := board.slots()[local_rank].pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    board.close()
    assert pid
    return pid
