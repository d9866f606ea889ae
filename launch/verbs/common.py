"""What several commands do: find the run that is meant, watch it, say how it stands, follow it to its end."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from launch import executor, runs
from launch.errors import INTERRUPTED, OK, LaunchError
from launch.logs import follow_raw
from launch.options import JSON_VERSION
from launch.records import read_json
from launch.runs import Run, Status

SQUEUE_INTERVAL_S = 2.0
POLL_S = 0.3
MAX_NAMED = 6
"""How many runs of a sweep a message names."""


def registry() -> Path:
    """The list of this user's runs."""
    return runs.registry_path(os.environ)


def find(arguments: argparse.Namespace) -> Run:
    """The run that the words name; without any, the latest.

    Raises:
        LaunchError: there is none; or they name a sweep or stages, of which one run is meant.
    """
    found = find_all(arguments)
    if len(found) > 1:
        names = ", ".join(one.name for one in found[:MAX_NAMED]) + (", …" if len(found) > MAX_NAMED else "")
        raise LaunchError(f"RUN is {arguments.run!r}, which is {len(found)} runs; it must be one of them: {names}.")
    return found[0]


def find_all(arguments: argparse.Namespace) -> list[Run]:
    """The run that the words name, or all of the sweep or of the stages of that name."""
    try:
        return [runs.find(arguments.run, registry(), Path.cwd())]
    except LaunchError:
        from launch import members

        found = members.runs_meant(arguments.run, Path.cwd(), runs.all_runs(registry(), None))
        if not found:
            raise
        return found


def states_of(text: str | None) -> tuple[str, ...]:
    """The states that `--state` names, of any case and with commas between; without it all.

    Raises:
        LaunchError: there is no such state.
    """
    known = (runs.PENDING, runs.RUNNING, *runs.ENDED)
    if text is None:
        return known
    states = tuple(word.strip().upper() for word in text.split(","))
    for state in states:
        if state not in known:
            raise LaunchError(f"--state is {state!r}; it must be one of {', '.join(known)}.")
    return states


def print_json(verb: str, **facts: Any) -> None:
    """One JSON object on one line, as docs/launcher.md describes it."""
    print(json.dumps({"version": JSON_VERSION, "verb": verb, **facts}), flush=True)


class Watch:
    """The status of a run, without asking Slurm more often than it likes."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._asked_at = float("-inf")
        self._has_warned = False

    def now(self) -> Status:
        """The status; LOST only after a second look, as records may still be on their way."""
        status = runs.status_of(self._run, lambda: executor.view(self._run))
        if status.state == runs.LOST:
            time.sleep(SQUEUE_INTERVAL_S)
            status = runs.status_of(self._run, lambda: executor.view(self._run))
        return status

    def has_ended(self) -> bool:
        """Whether the run has ended, at most SQUEUE_INTERVAL_S late."""
        if not self._run.is_settled and time.monotonic() - self._asked_at < SQUEUE_INTERVAL_S:
            return False
        self._asked_at = time.monotonic()
        status = self.now()
        if status.is_guess and not status.has_ended and not self._has_warned:
            self._has_warned = True
            print(f"{status.reason}: only the run's own records tell how it stands.", file=sys.stderr)
        return status.has_ended


def print_status(run: Run, status: Status) -> None:
    """How the run stands, for people."""
    from launch import report

    print(report.status_text(run, status), end="", flush=True)


def started(verb: str, run: Run, executor_name: str, arguments: argparse.Namespace) -> int:
    """Says what was submitted; with `--wait`, follows it; the exit code."""
    if arguments.json:
        checks = (read_json(run.path / "checks.json") or {}).get("checks", [])
        print_json(verb, run=run.name, path=str(run.path), job_id=run.job_id, executor=executor_name, checks=checks)
        return wait_silently(verb, run, is_json=True) if arguments.wait else OK
    print(f"run      {run.name}\nfolder   {run.path}\njob      {run.job_id} ({executor_name})")
    print(f"follow   python -m launch logs -f {run.name}")
    print(f"curves   tensorboard --logdir {run.path.parent}", flush=True)
    return follow(run) if arguments.wait else OK


def follow(run: Run) -> int:
    """Shows rank 0 as it speaks, until the job ends; the job's exit code."""
    watch = Watch(run)
    try:
        follow_raw(lambda: run.logs / "rank-0.log", watch.has_ended, sys.stdout.buffer)
    except KeyboardInterrupt:
        return interrupted(run)
    print()
    print_status(run, watch.now())
    return watch.now().code


def wait_silently(verb: str, run: Run, *, is_json: bool) -> int:
    """Waits for the end, then says how it ended; the job's exit code."""
    watch = Watch(run)
    try:
        while not watch.has_ended():
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        return interrupted(run)
    return tell_end(verb, run, watch.now(), is_json=is_json)


def tell_end(verb: str, run: Run, status: Status, *, is_json: bool) -> int:
    """Says how the run ended; the job's exit code."""
    if is_json:
        from launch import report

        print_json(verb, **report.status_facts(run, status))
    else:
        print_status(run, status)
    return status.code


def interrupted(run: Run) -> int:
    """Ctrl-C while waiting: the job goes on."""
    print(f"\n{run.name} goes on.\nfollow   python -m launch logs -f {run.name}", file=sys.stderr)
    print(f"stop     python -m launch cancel {run.name}", file=sys.stderr)
    return INTERRUPTED
