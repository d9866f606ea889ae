"""What runs a run, asked and told: its Slurm job, or its supervisor on this machine."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from launch import attempts, jobs, processes, runs
from launch.errors import LaunchError
from launch.runs import Run, View


def view(run: Run) -> View:
    """What the executor says of the run's job."""
    submission = run.submission
    if not submission:
        return View("unknown", "it was not submitted to the end: submission.json is missing, or damaged")
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
    """Asks the executor to stop the job, and notes that it was asked.

    Raises:
        LaunchError: it can't be asked, or refuses.
    """
    if refused := cancel_all([run]):
        raise LaunchError(refused[run])


def cancel_all(found: Sequence[Run]) -> dict[Run, str]:
    """Asks the executors to stop jobs, in this order and with one scancel for all, and notes that they were asked.
    Runs that go on → why; one that is refused keeps no other from being stopped."""
    refused: dict[Run, str] = {}
    on_slurm: dict[Run, list[str]] = {}
    here: list[int] = []
    for run in found:
        submission = run.submission
        if problem := _obstacle(run, submission):
            refused[run] = problem
            continue
        runs.note_cancelled(run.path, "launch cancel")
        if submission["executor"] == "slurm":
            successor = attempts.read_begin(run.path, run.current_attempt).get("successor")
            on_slurm[run] = list(dict.fromkeys(filter(None, (run.job_id, successor))))
        elif _supervisor_lives(submission) and not submission.get("waits"):
            here.append(submission["pid"])
    processes.send(here, signal.SIGTERM)
    for run, problem in _cancel_jobs(on_slurm).items():
        (run.path / "cancelled.json").unlink(missing_ok=True)  # it goes on
        refused[run] = problem
    return refused


def _obstacle(run: Run, submission: Mapping[str, Any]) -> str:
    if not submission:
        return f"{run.path} has no submission.json; there is nothing to cancel."
    if submission["executor"] == "local" and submission["host"] != socket.gethostname():
        return f"the run is local to {submission['host']}; cancel it there."
    return ""


def _cancel_jobs(ids: Mapping[Run, Sequence[str]]) -> dict[Run, str]:
    """Ends Slurm's jobs; the runs whose jobs it refuses to end, with its words."""
    if not ids:
        return {}
    try:
        jobs.cancel(*(job_id for own in ids.values() for job_id in own))
    except jobs.RefusedError as error:
        # Which of them, its words may not say: each is asked for by itself.
        return {run: str(error) for run in ids} if len(ids) == 1 else _cancel_each(ids)
    except LaunchError as error:
        return {run: str(error) for run in ids}
    return {}


def _cancel_each(ids: Mapping[Run, Sequence[str]]) -> dict[Run, str]:
    refused: dict[Run, str] = {}
    for run, own in ids.items():
        try:
            jobs.cancel(*own)
        except LaunchError as error:
            refused[run] = str(error)
    return refused


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
