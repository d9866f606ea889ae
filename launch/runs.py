"""Run directories: where everything lies, which runs there are, and how one stands."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from launch import attempts
from launch.claims import latest_claim
from launch.errors import STOPPED as STOPPED_CODE
from launch.errors import TERMINATED, LaunchError
from launch.outcome import Outcome, read_outcome
from launch.records import make_directory, read_json, write_json

PENDING, RUNNING = "PENDING", "RUNNING"
COMPLETED, STOPPED, FAILED, CANCELLED, LOST = "COMPLETED", "STOPPED", "FAILED", "CANCELLED", "LOST"
CANCEL_GRACE_S = 120.0
"""By then a cancelled job is gone, if nothing can be learned of it: Slurm's KillWait is 30 s by default."""
ENDED = (COMPLETED, STOPPED, FAILED, CANCELLED, LOST)


@dataclass(frozen=True)
class Run:
    """A submitted run, known by its directory."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name, as submitted."""
        return str(self.job.get("name", self.path.name))

    @property
    def job(self) -> dict[str, Any]:
        """job.json: the resolved spec."""
        return read_json(self.path / "job.json") or {}

    @property
    def submission(self) -> dict[str, Any]:
        """submission.json; empty while it is not submitted."""
        return read_json(self.path / "submission.json") or {}

    @property
    def job_id(self) -> str:
        """The job that runs it, or is to run it next."""
        end = self.end or {}
        begun = attempts.read_begin(self.path, self.current_attempt) if end.get("again") else {}
        return str(begun.get("successor") or self.submission.get("job_id", ""))

    @property
    def end(self) -> dict[str, Any] | None:
        """What was decided when the current attempt ended; None before that."""
        return attempts.read_end(self.path, self.current_attempt)

    @property
    def is_settled(self) -> bool:
        """Whether the run's own records say that it has ended: nobody needs to be asked."""
        outcome, end = self.outcome(), self.end
        if end is not None:
            is_over = not end["again"] and not end.get("left_to_slurm")
            return is_over or self.code_before_begin is not None
        if self.code_before_begin is not None:
            return True
        return outcome.is_complete and (outcome.root_cause is None or not self.goes_on_by_itself)

    @property
    def code_before_begin(self) -> int | None:
        """The code with which its job ended before it began an attempt: in `launch.setup`, most of all."""
        return attempts.code_before_begin(self.path)

    @property
    def goes_on_by_itself(self) -> bool:
        """Whether an attempt may be followed by another."""
        return bool(self.job.get("chain", "none") != "none")

    @property
    def num_nodes(self) -> int:
        resources: dict[str, Any] = self.job.get("resources", {})
        return int(resources.get("nodes", 1))

    @property
    def is_complete(self) -> bool:
        """Whether its own records say that it has done what it was to do."""
        outcome = self.outcome()
        return outcome.is_complete and outcome.root_cause is None

    @property
    def follows(self) -> list[Run]:
        """The runs that must be complete before this one begins."""
        return [Run(Path(path)) for path in self.job.get("after") or ()]

    @property
    def is_cancelled(self) -> bool:
        return (self.path / "cancelled.json").exists()

    @property
    def cancelled_for_s(self) -> float:
        """Seconds since it was told to stop; 0 where it was not."""
        told = read_json(self.path / "cancelled.json") or {}
        return time.time() - float(told["cancelled_at"]) if "cancelled_at" in told else 0.0

    @property
    def attempt(self) -> int | None:
        """The latest attempt that has begun; None before the first."""
        return max(attempts.numbers(self.path), default=None)

    @property
    def current_attempt(self) -> int:
        """The latest submission's latest attempt: one that is still to begin, where the run was just resumed."""
        latest, claim = self.attempt, latest_claim(self.path)
        if latest is None:
            return 0
        own = attempts.read_begin(self.path, latest).get("claim")
        is_resumed = claim is not None and own is not None and own != claim.number
        return latest + 1 if is_resumed else latest

    @property
    def logs(self) -> Path:
        """The current attempt's logs."""
        return self.path / "logs" / str(self.current_attempt)

    def outcome(self) -> Outcome:
        """What the current attempt's records say."""
        return read_outcome(self.path / "exit" / str(self.current_attempt), self.num_nodes)


@dataclass(frozen=True)
class Snapshot(Run):
    """A run as it is at one moment: each of its files is read once. For a look at many runs."""

    @cached_property
    def job(self) -> dict[str, Any]:
        return super().job

    @cached_property
    def submission(self) -> dict[str, Any]:
        return super().submission

    @cached_property
    def attempt(self) -> int | None:
        return super().attempt

    @cached_property
    def current_attempt(self) -> int:
        return super().current_attempt

    @cached_property
    def end(self) -> dict[str, Any] | None:
        return super().end


@dataclass(frozen=True)
class View:
    """What the executor says of a job."""

    presence: Literal["waiting", "running", "ended", "unknown"]
    reason: str = ""
    """Why it waits, or in one word how it ended, as far as the executor says."""
    starts_at: str = ""
    """When the executor expects it to start, in its own words."""


@dataclass(frozen=True)
class Status:
    """How a run stands."""

    state: str
    outcome: Outcome
    reason: str = ""
    is_guess: bool = False
    """The executor can't be asked: the run's own records are all that is known."""
    chain_code: int | None = None
    """The code with which the chain of attempts has ended, where that was decided."""
    starts_at: str = ""
    """Of a run that waits: when the executor expects it to start."""

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    @property
    def is_for_good(self) -> bool:
        """Whether it will be told so at any later time too. What the executor alone says of a failure, it forgets."""
        is_recorded = self.chain_code is not None or self.outcome.root_cause is not None
        return self.has_ended and not self.is_guess and self.state != LOST and (is_recorded or self.state != FAILED)

    @property
    def code(self) -> int:
        """The exit code of `launch wait`, once it has ended."""
        if self.state == COMPLETED:
            return 0
        if self.state == CANCELLED:
            return TERMINATED
        return self.chain_code or self.outcome.code or 1


def status_of(run: Run, ask_executor: Callable[[], View]) -> Status:
    """The state, from the run's own records first; the executor is asked only where they leave it open."""
    outcome, end = run.outcome(), run.end
    cause = outcome.root_cause
    if outcome.is_complete and cause is None:
        return Status(COMPLETED, outcome)
    if end is not None and not end["again"] and not end.get("left_to_slurm"):
        return _ended_by_decision(run, outcome, end)
    if (code := run.code_before_begin) is not None:
        state = CANCELLED if run.is_cancelled else FAILED
        reason = f"its job ended with code {code} before it began an attempt"
        if run.job.get("setup") and not run.is_cancelled:
            reason += ", which begins when the lines of `setup` are done"
        return Status(state, Outcome(run.num_nodes, 0, 0, None, 0), reason, chain_code=code)
    is_open = run.goes_on_by_itself and not run.is_cancelled  # another attempt may follow
    if outcome.is_complete and cause is not None and not cause.stopped and not run.is_cancelled and not is_open:
        return Status(FAILED, outcome)
    if run.is_cancelled and outcome.is_complete:
        return Status(CANCELLED, outcome)  # it is not requeued
    view = ask_executor()
    reason = view.reason
    if view.presence == "waiting":
        state = PENDING
        reason = "; ".join(filter(None, (str(end["reason"]) if end is not None else "", reason)))
    elif view.presence == "running":
        state = RUNNING
    elif view.presence == "unknown":
        # scancel has taken it: a job that never began is gone, and one that ran is after Slurm's grace.
        is_gone = run.is_cancelled and (run.attempt is None or run.cancelled_for_s > CANCEL_GRACE_S)
        state = CANCELLED if is_gone else PENDING if run.attempt is None else RUNNING
    elif (failed := _failed_before(run)) is not None or run.is_cancelled or view.reason == "CANCELLED":
        state = CANCELLED
        reason = reason if failed is None else f"{failed.name}, which it was to follow, is not complete"
    elif cause is not None or view.reason:
        state = FAILED
    else:
        state = LOST
    starts_at = view.starts_at if state == PENDING else ""
    return Status(state, outcome, reason, is_guess=view.presence == "unknown", starts_at=starts_at)


def _failed_before(run: Run) -> Run | None:
    """The run that kept this one from beginning, which it will not now; None where there is none."""
    if run.attempt is not None:
        return None
    return next((before for before in run.follows if not before.is_complete), None)


def _ended_by_decision(run: Run, outcome: Outcome, end: dict[str, Any]) -> Status:
    code = int(end["code"])
    state = CANCELLED if run.is_cancelled else STOPPED if code == STOPPED_CODE else FAILED
    reason = str(end["reason"]) if run.goes_on_by_itself and state != CANCELLED else ""
    return Status(state, outcome, reason, chain_code=code or 1)


def note_cancelled(run_dir: Path, by: str) -> None:
    """Writes cancelled.json: whatever ends now, nothing follows it."""
    record = {"cancelled_at": time.time(), "host": socket.gethostname(), "by": by}
    write_json(run_dir / "cancelled.json", record)


# --- which runs there are


def registry_path(environ: Mapping[str, str]) -> Path:
    """The list of this user's runs, one JSON object per line, oldest first."""
    state = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME") or Path.home()) / ".local" / "state"
    return Path(state) / "cleansft" / "runs.jsonl"


def register(registry: Path, run_dir: Path, name: str, job_id: str, **facts: str) -> None:
    """Adds a line; one write in append mode, so that simultaneous submissions don't mix."""
    make_directory(registry.parent)
    record = {"name": name, "job_id": job_id, "run_dir": str(run_dir), "submitted_at": time.time()}
    line = json.dumps(record | facts)
    descriptor = os.open(registry, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def find(wanted: str | None, registry: Path, working_dir: Path) -> Run:
    """The run that is meant by a name, a job id or a directory; without any, the latest.

    Raises:
        LaunchError: there is none.
    """
    if wanted is not None:
        for path in (working_dir / wanted, working_dir / "runs" / wanted):
            if (path / "job.json").is_file():
                return Run(path.resolve())
    known = entries(registry)
    matching = [entry for entry in known if wanted is None or wanted in (entry["name"], entry["job_id"])]
    for entry in reversed(matching):
        if (Path(entry["run_dir"]) / "job.json").is_file():
            return Run(Path(entry["run_dir"]))
    if wanted is not None and re.fullmatch(r"\d+(_\d+)?", wanted):
        for path in dict.fromkeys(Path(entry["run_dir"]) for entry in reversed(known)):
            if wanted in attempts.job_ids(path) and (path / "job.json").is_file():
                return Run(path)
    if wanted is None:
        raise LaunchError("there is no run yet; start one with `python -m launch submit`.")
    if matching:
        folder, job_id = matching[-1]["run_dir"], matching[-1]["job_id"]
        look = f"pgrep -af {shlex.quote(folder)}" if job_id.startswith("local-") else f"squeue -j {job_id}"
        raise LaunchError(
            f"{folder} is gone with all that was known of {wanted}. `{look}` shows whether it still runs."
        )
    latest = ", ".join(dict.fromkeys(entry["name"] for entry in reversed(known[-5:]))) or "none"
    raise LaunchError(f"RUN is {wanted!r}; it must be a run's name, job id or directory. Latest: {latest}.")


def all_runs(registry: Path, folder: Path | None) -> list[Path]:
    """The directories of all runs, oldest first.

    Args:
        registry: the list of this user's runs.
        folder: only the runs that lie in it, also those that the list does not have; None: those of the list.
    """
    if folder is not None:
        names = os.listdir(folder) if folder.is_dir() else []
        found = [
            (path.stat().st_mtime, path.parent) for name in names if (path := folder / name / "job.json").is_file()
        ]
        return [path for _, path in sorted(found)]
    paths = list(dict.fromkeys(entry["run_dir"] for entry in reversed(entries(registry))))
    return [Path(path) for path in reversed(paths) if os.path.exists(f"{path}/job.json")]


def entries(registry: Path) -> list[dict[str, str]]:
    """The lines of the list of runs, oldest first."""
    try:
        lines = registry.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # a line cut off by a full disk
        if isinstance(entry, dict) and {"name", "job_id", "run_dir"} <= entry.keys():
            entries.append(entry)
    return entries
