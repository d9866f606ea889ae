"""`launch cancel`: stops a run, a sweep or stages, and waits until it has stopped."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from launch import executor, runs
from launch.errors import OK, STILL_RUNS, LaunchError
from launch.runs import Run, Status
from launch.verbs.common import POLL_S, SQUEUE_INTERVAL_S, find_all, print_json

CANCEL_MARGIN_S = 30.0
"""How much longer than the ranks may take to save it waits for the end."""


TELL_AFTER_S = 5.0
"""What ends sooner needs no word of waiting."""


class StillRunsError(LaunchError):
    """What was told to stop had not stopped when nobody waited any longer."""

    exit_code = STILL_RUNS


def run(arguments: argparse.Namespace) -> int:
    """Stops the run, or all of a sweep or of stages; prints the state.

    Raises:
        LaunchError: one goes on, as it was refused or does not end in time; the others are stopped all the same.
    """
    found = find_all(arguments)
    living = [one for one, status in _look(found).items() if not status.has_ended]
    # The last first: those that wait are not started when others end.
    refused = executor.cancel_all(living[::-1])
    told = [one for one in living if one not in refused]
    grace_s = CANCEL_MARGIN_S + max((float(one.job.get("stop_grace_s", 0.0)) for one in told), default=0.0)
    left = _wait(told, grace_s)
    statuses = _look(found)
    for one, status in statuses.items():
        if arguments.json:
            print_json("cancel", run=one.name, path=str(one.path), state=status.state)
        else:
            print(f"{one.name}: {status.state}", flush=True)
    if going_on := [f"{one.name}: {refused[one]}" for one in refused if not statuses[one].has_ended]:
        raise LaunchError("\n".join(going_on) if len(found) > 1 else going_on[0].partition(": ")[2])
    if left:
        names = ", ".join(one.name for one in left)
        raise StillRunsError(f"{names} did not end within {grace_s:.0f} s; `python -m launch status` shows what runs.")
    return OK


def _wait(told: Sequence[Run], grace_s: float) -> list[Run]:
    """Waits until runs have ended and hold nothing any more; those that have not in time."""
    began = time.monotonic()
    deadline, tell_at = began + grace_s, began + TELL_AFTER_S
    interval_s = SQUEUE_INTERVAL_S if any(one.job.get("executor") == "slurm" for one in told) else POLL_S
    left = list(told)
    while left:
        views = executor.ViewOfMany()
        statuses = _statuses(left, views)
        # The last record of a rank comes before the end of what wrote it: the nodes are free a little later.
        left = [one for one in left if not statuses[one].has_ended or views(one).presence == "running"]
        if not left or time.monotonic() > deadline:
            break
        if time.monotonic() > tell_at:
            names, left_s = ", ".join(one.name for one in left), deadline - time.monotonic()
            said = f"waiting at most {left_s:.0f} s for {names} to save and end; Ctrl-C ends only the waiting"
            print(said, file=sys.stderr, flush=True)
            tell_at = deadline
        time.sleep(interval_s)
    return left


def _look(found: Sequence[Run]) -> dict[Run, Status]:
    """How runs stand; LOST only after a second look, as records may still be on their way."""
    statuses = _statuses(found, executor.ViewOfMany())
    if any(status.state == runs.LOST for status in statuses.values()):
        time.sleep(SQUEUE_INTERVAL_S)
        statuses = _statuses(found, executor.ViewOfMany())
    return statuses


def _statuses(found: Sequence[Run], views: executor.ViewOfMany) -> dict[Run, Status]:
    return {one: runs.status_of(one, lambda one=one: views(one)) for one in found}  # type: ignore[misc]
