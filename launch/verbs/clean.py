"""`launch clean`: removes runs that have ended, or their checkpoints. What would go is shown first."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import runs
from launch.checks import counted
from launch.claims import latest_claim, make_claim
from launch.errors import OK, LaunchError, LockedError
from launch.executor import ViewOfMany
from launch.report import duration
from launch.runs import COMPLETED, Run, Snapshot, Status
from launch.verbs.common import print_json, registry, states_of

DAY_S = 86_400.0


@dataclass(frozen=True)
class Item:
    """A run, and the folders of it that are to go."""

    run: Run
    state: str
    claim: int
    """Number of the claim that counted when the run was looked at: a higher one means that it goes on."""
    paths: tuple[Path, ...]
    num_bytes: int
    ended_ago_s: float


def run(arguments: argparse.Namespace) -> int:
    """Shows what would be removed, and removes it once that is confirmed."""
    items = list(_items(arguments))
    total = sum(item.num_bytes for item in items)
    if not arguments.json:
        for item in items:
            what = "the run" if item.paths == (item.run.path,) else f"{len(item.paths)} checkpoints"
            age = f"{duration(item.ended_ago_s)} old"
            print(f"{size(item.num_bytes):>9}  {item.state:<9}  {age:<12}  {what} of {item.run.path}")
        print(f"{size(total):>9}  in {counted(len(items), 'run')}" if items else "nothing to remove")
    is_sure = arguments.yes or (bool(items) and not arguments.json and _is_confirmed())
    if is_sure:
        for item in items:
            remove(item)
    if arguments.json:
        print_json("clean", is_removed=is_sure, bytes=total, runs=[_facts(item) for item in items])
    elif items and not is_sure:
        print("nothing was removed; --yes removes it")
    return OK


def _facts(item: Item) -> dict[str, Any]:
    paths = [str(path) for path in item.paths]
    return {"run": item.run.name, "state": item.state, "bytes": item.num_bytes, "paths": paths}


def _is_confirmed() -> bool:
    return sys.stdin.isatty() and input("remove this? [y/N] ").strip().lower() in ("y", "yes")


def _items(arguments: argparse.Namespace) -> Iterator[Item]:
    """What is to go, oldest first.

    Raises:
        LaunchError: nothing says which runs; or one that is named may not go.
    """
    if not arguments.runs and arguments.older_than is None and arguments.state is None:
        raise LaunchError("no run is named; name runs, or give --older-than DAYS or --state FAILED.")
    named = [runs.find(name, registry(), Path.cwd()).path for name in arguments.runs]
    states = states_of(arguments.state)
    views = ViewOfMany()
    for path in named or runs.all_runs(registry(), None):
        found = Snapshot(path)
        claim = latest_claim(path)
        status = runs.status_of(found, lambda found=found: views(found))  # type: ignore[misc]
        if (problem := why_not(found, status)) is not None:
            if named:
                raise LockedError(problem) if not status.has_ended else LaunchError(problem)
            continue
        age_s = max(0.0, time.time() - _ended_at(found))
        is_young = arguments.older_than is not None and age_s < arguments.older_than * DAY_S
        if is_young or status.state not in states:
            continue
        paths = checkpoints_to_go(path, status.state) if arguments.checkpoints else [path]
        if paths:
            num_bytes = sum(map(_num_bytes, paths))
            yield Item(found, status.state, -1 if claim is None else claim.number, tuple(paths), num_bytes, age_s)


def why_not(run: Run, status: Status) -> str | None:
    """Why a run must stay; None where it may go."""
    if not status.has_ended or status.is_guess:
        why = f" ({status.reason})" if status.reason else ""
        return f"{run.name} is {status.state}{why}; it must have ended to be removed."
    job = run.job
    inside = [job.get("working_dir"), job.get("script"), job.get("config"), str(Path.cwd()), str(Path.home())]
    copied = [job.get("script"), job.get("config")] if job.get("code_root") else []  # `--snapshot` has made them
    for path in filter(None, inside):
        is_copy = path in copied and Path(path).is_relative_to(run.path / "code")
        if Path(path).is_relative_to(run.path) and not is_copy:
            return f"{run.path} holds {path}, which is not of the run; it must hold nothing else. Remove it by hand."
    if (run.path / ".git").exists():
        return f"{run.path} is a git repository; it must hold a run and nothing else. Remove it by hand."
    return None


def checkpoints_to_go(run_dir: Path, state: str) -> list[Path]:
    """The checkpoints of a run that has ended: all if it is complete, else all but the newest, where it goes on"""
    folder = run_dir / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    steps = sorted((int(name[5:]), name) for name in names if name.startswith("step-") and name[5:].isdigit())
    left_over = [name for name in names if name.startswith("step-") and not name[5:].isdigit()]
    complete = [name for _, name in (steps if state == COMPLETED else steps[:-1])]
    return [folder / name for name in (*complete, *left_over)]


def _ended_at(run: Run) -> float:
    """When the last record was written."""
    folder = run.path / "exit" / str(run.current_attempt)
    paths: Sequence[Path] = [*folder.glob("*.json"), run.path / "job.json"]
    return max(path.stat().st_mtime for path in paths)


def _num_bytes(path: Path) -> int:
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue  # it has gone meanwhile
    return total


def size(num_bytes: int) -> str:
    """`3.2 GiB`."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def remove(item: Item) -> None:
    """Removes it, while nobody else can resume the run.

    Raises:
        LockedError: somebody has resumed it meanwhile.
    """
    claim = make_claim(item.run.path, item.claim + 1)
    if claim is None:
        raise LockedError(f"{item.run.name} has just been resumed; it stays.")
    try:
        for path in item.paths:
            # Out of sight at once: half a checkpoint, or half a run, must not be found by anyone.
            gone = path.with_name(f".{path.name}.removing-{os.getpid()}")
            path.rename(gone)
            shutil.rmtree(gone)
    finally:
        claim.path.unlink(missing_ok=True)
