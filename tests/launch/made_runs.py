"""Run directories made by hand: what launcher, agents and trainer would have written."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.runs import Run
from launch.spec import JobSpec

MakeSpec = Callable[..., JobSpec]


def made_run(folder: Path, make_spec: MakeSpec, *, job_id: str = "7", **changes: Any) -> Run:
    """A submitted run in `folder`, of 2 nodes with 2 ranks each; `changes` are fields of its spec."""
    folder.mkdir(parents=True)
    spec = make_spec(**{"name": folder.name, "run_dir": str(folder)} | changes)
    write(folder / "job.json", spec.to_json())
    submission = {"executor": spec.executor, "job_id": job_id, "host": os.uname().nodename, "submitted_at": time.time()}
    if spec.executor == "local":
        submission |= {"pid": 1, "start_ticks": -1}
    write(folder / "submission.json", submission)
    return Run(folder)


def write(path: Path, value: Any) -> None:
    """`value` as JSON, with the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))


def end_run(run: Run, code: int = 0, *, attempt: int = 0, step: int | None = None) -> None:
    """The records of an attempt whose ranks have all ended with `code`."""
    folder = run.path / "exit" / str(attempt)
    base = {"host": "n1", "signal": None, "stopped": False, "error": "X" if code else None, "tail": [], "code": code}
    for rank in range(4):
        write(folder / f"rank-{rank}.json", base | {"rank": rank, "node": rank // 2, "ended_at": 1e9, "step": step})
    for node in (0, 1):
        write(folder / f"node-{node}.json", base | {"node": node, "own_code": code, "ended_at": 1e9})
    begun = {"attempt": attempt, "claim": 0, "job_id": "7", "began_at": 1e9 - 60, "step": 0}
    write(folder / "attempt.json", begun)
    ended = {"own_code": code, "was_killed": False, "was_stopped": False, "step": step or 0, "again": False}
    write(folder / "end.json", ended | {"code": code, "reason": "done" if not code else "it failed", "ended_at": 1e9})


def stand_in(folder: Path, name: str, text: str) -> Path:
    """A shell script in place of one of Slurm's commands, each call noted in `<name>.calls`."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "$@" >> {folder}/{name}.calls\n{text}\n')
    path.chmod(0o755)
    return path


def calls(folder: Path, name: str) -> list[str]:
    """The words of each call of a stand-in."""
    path = folder / f"{name}.calls"
    return path.read_text().splitlines() if path.exists() else []
