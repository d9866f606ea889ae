"""What runs a run, asked and told: its Slurm job, or its supervisor on this machine."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Mapping
from typing import Any

from launch import attempts, jobs, processes, runs
from launch.errors import LaunchError
from launch.runs import Run, View


def view(run: Run) -> View:
    """What the executor says of the run's job."""
    submission = run.submission
    if not submission:
        return View("unknown", "it was not submitted to the end: submission.json is missing")
    if submission["executor"] == "slurm":
        return jobs.view(run.job_id)
    if submission["host"] != socket.gethostname():
        return View("unknown", f"it runs on {submission['host']}")
    if not _supervisor_lives(submission) or (submission.get("waits") and run.is_cancelled):
        return View("ended")
    why = _why_it_waits(run, submission)
    return View("waiting", why) if why else View("running")


def _why_it_waits(run: Run, submission: Mapping[str, Any]) -> str:
    """Of a run on this machine: what it waits for; empty where it waits for nothing."""
    if submission.get("waits"):
        return "its turn in the sweep"
    if run.attempt is not None:
        return ""
    names = [before.name for before in run.follows]
    return f"it follows {', '.join(names)}" if names else ""


def is_running(run: Run) -> bool:
    """Whether the executor still holds something of the run: processes here, nodes on a cluster."""
    return view(run).presence == "running"


def _supervisor_lives(submission: Mapping[str, Any]) -> bool:
    ticks = processes.start_ticks(int(submission["pid"]))
    return ticks is not None and ticks == submission["start_ticks"]


def cancel(run: Run) -> None:
    """Asks the executor to stop the job, and notes that it was asked."""
    submission = run.submission
    if not submission:
        raise LaunchError(f"{run.path} has no submission.json; there is nothing to cancel.")
    if submission["executor"] == "local" and submission["host"] != socket.gethostname():
        raise LaunchError(f"the run is local to {submission['host']}; cancel it there.")
    runs.note_cancelled(run.path, "launch cancel")
    if submission["executor"] == "slurm":
        successor = attempts.read_begin(run.path, run.current_attempt).get("successor")
        try:
            jobs.cancel(*dict.fromkeys(filter(None, (run.job_id, successor))))
        except LaunchError:
            (run.path / "cancelled.json").unlink(missing_ok=True)  # it goes on
            raise
    elif _supervisor_lives(submission) and not submission.get("waits"):
        processes.send([submission["pid"]], signal.SIGTERM)


class ViewOfMany:
    """What the executors say of many runs, with one call of the scheduler at most."""

    def __init__(self, ask_scheduler: Callable[[], dict[str, View]] = jobs.views) -> None:
        self._ask_scheduler = ask_scheduler
        self._views: dict[str, View] | None = None
        self._problem = ""

    def __call__(self, run: Run) -> View:
        """The view of one run."""
        if run.submission.get("executor") != "slurm":
            return view(run)
        if self._views is None:
            try:
                self._views = self._ask_scheduler()
            except LaunchError as error:
                self._views, self._problem = {}, str(error)
        return View("unknown", self._problem) if self._problem else self._views.get(run.job_id, View("ended"))
