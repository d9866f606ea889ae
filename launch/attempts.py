"""The attempts of a run: each has a number of its own, over requeues, successors and resumed jobs, and its records.

`exit/<attempt>/attempt.json` says who began it and where it started from; `end.json` how it ended and what follows;
`stop.json` asks its ranks to save their state and to end. `exit/not_begun.json` says how a job ended that began none.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.chain import Attempt, Decision, decide
from launch.claims import CLAIM, latest_claim
from launch.errors import PEER_LOST, LaunchError, LockedError
from launch.outcome import Outcome, exit_line, read_outcome
from launch.processes import start_ticks
from launch.records import make_directory, read_json, telling_failure, write_json

NOT_BEGUN = "not_begun.json"
"""In `exit`: how the job of a claim ended before an attempt of it began. The batch script writes it (launch.script)."""
_STEP = re.compile(r"step-(\d+)")


def numbers(run_dir: Path) -> list[int]:
    """The attempts that have begun, in order."""
    folder = run_dir / "exit"
    return sorted(int(name) for name in (os.listdir(folder) if folder.is_dir() else []) if name.isdigit())


def newest_step(run_dir: Path) -> int:
    """The step of the newest checkpoint; 0 where there is none. One that is being written has another name."""
    folder = run_dir / "checkpoints"
    names = os.listdir(folder) if folder.is_dir() else []
    return max((int(found[1]) for name in names if (found := _STEP.fullmatch(name))), default=0)


def _newest(run_dir: Path) -> list[int]:
    """[step, time of its last change] of the newest checkpoint: another one, even of the same step, has another."""
    step = newest_step(run_dir)
    if not step:
        return [0, 0]
    try:
        return [step, (run_dir / "checkpoints" / f"step-{step:08d}").stat().st_mtime_ns]
    except OSError:
        return [step, 0]


def _has_saved(run_dir: Path, claim: int, newest: list[int]) -> bool:
    """Whether an earlier attempt of the same submission has saved a checkpoint, by what was the newest before."""
    begun = (read_begin(run_dir, number) for number in numbers(run_dir))
    first = next((record for record in begun if record.get("claim") == claim), None)
    return first is not None and newest[0] > 0 and newest != first.get("newest")


def begin(run_dir: Path, job_id: str, environ: Mapping[str, str], **facts: Any) -> int:
    """Opens a new attempt; its number.

    Args:
        run_dir: the run directory.
        job_id: the job that the attempt belongs to.
        environ: the job's environment.
        facts: what else is to be noted of it.

    Raises:
        LockedError: the run has been submitted again meanwhile, or another attempt opens in this moment.
    """
    check_owner(run_dir)
    own, latest = int(environ.get(CLAIM, 0)), latest_claim(run_dir)
    if latest is not None and own != latest.number:
        raise LockedError(f"{run_dir} belongs to {latest.holder}; job {job_id} was submitted before that. It ends.")
    number = max(numbers(run_dir), default=-1) + 1
    folder = run_dir / "exit" / str(number)
    make_directory(folder.parent)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError as error:
        raise LockedError(f"{folder} has just been made; another job begins in {run_dir}.") from error
    (folder.parent / NOT_BEGUN).unlink(missing_ok=True)  # of a job that was put back into the queue by hand
    make_directory(run_dir / "logs" / str(number))
    newest = _newest(run_dir)
    record = {
        "attempt": number,
        "claim": own,
        "job_id": job_id,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "start_ticks": start_ticks(os.getpid()),
        "step": newest[0],
        "newest": newest,
        "goes_on": _has_saved(run_dir, own, newest),
        "began_at": time.time(),
    }
    write_json(folder / "attempt.json", record | facts)
    return number


def note_not_begun(run_dir: Path, environ: Mapping[str, str], code: int) -> None:
    """Notes that a job ends with `code` before an attempt of it has begun."""
    with telling_failure():
        write_json(run_dir / "exit" / NOT_BEGUN, {"code": code, "claim": int(environ.get(CLAIM, 0))})


def code_before_begin(run_dir: Path) -> int | None:
    """The code, never 0, with which the latest submission's job ended before it began an attempt; None where it did
    not, or not yet."""
    path = run_dir / "exit" / NOT_BEGUN
    record = read_json(path) if path.exists() else None
    claim = latest_claim(run_dir)
    is_latest = record is not None and (claim is None or claim.number == record.get("claim"))
    return int(record.get("code") or 1) if record is not None and is_latest else None


def check_owner(run_dir: Path) -> None:
    """Refuses a run directory that somebody else could have written to: what lies in it will be run.

    A link is followed: it and what it leads to must be this user's. Its own mode says nothing.

    Raises:
        LaunchError: it, or its folder of pickles, belongs to another user or is writable by others.
    """
    own = os.geteuid()
    for path in (run_dir, run_dir / "submitit", run_dir / "job.json"):
        try:
            link, facts = path.lstat(), path.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        if {link.st_uid, facts.st_uid} != {own} or facts.st_mode & 0o022:
            owner = link.st_uid if link.st_uid != own else facts.st_uid
            rule = f"it must belong to user {own} and be writable by no other"
            remedy = f"Use `chmod go-w {path}`" if owner == own else "Choose another directory"
            raise LaunchError(
                f"{path} belongs to user {owner} and has mode {facts.st_mode & 0o777:03o}; {rule}. {remedy}."
            )


def earlier_jobs(folder: Path, job_id: str) -> list[str]:
    """The other jobs that have run attempts of this run. All have ended, or it would not have gone on.

    Args:
        folder: `exit`.
        job_id: the job that runs now.
    """
    begun = (read_json(path) or {} for path in sorted(folder.glob("*/attempt.json")))
    return sorted({str(record["job_id"]) for record in begun if "job_id" in record} - {job_id})


def job_ids(run_dir: Path) -> set[str]:
    """The jobs that have run attempts of a run, or are to run the next: a successor was submitted by no command."""
    begun = [read_begin(run_dir, number) for number in numbers(run_dir)]
    return {str(record[name]) for record in begun for name in ("job_id", "successor") if record.get(name)}


def request_stop(run_dir: Path, attempt: int, reason: str) -> None:
    """Asks the agents of an attempt to let their ranks save and end; they look twice a second."""
    write_json(run_dir / "exit" / str(attempt) / "stop.json", {"reason": reason, "at": time.time()})


def history(run_dir: Path, num_nodes: int) -> list[Attempt]:
    """The attempts since the run was submitted or resumed, oldest first, the last one as it stands now."""
    # An attempt that was given up for its nodes, before any rank began, tells nothing of the run.
    begun = [number for number in numbers(run_dir) if not (read_end(run_dir, number) or {}).get("excluded")]
    found = [_attempt(run_dir, number, num_nodes) for number in begun]
    claims = [read_begin(run_dir, attempt.number).get("claim") for attempt in found]
    return [attempt for attempt, claim in zip(found, claims, strict=True) if claim == claims[-1]]


def _attempt(run_dir: Path, number: int, num_nodes: int) -> Attempt:
    folder = run_dir / "exit" / str(number)
    begun, ended = read_json(folder / "attempt.json") or {}, read_json(folder / "end.json")
    step_before = int(begun.get("step", 0))
    if ended is not None:
        flags = {name: bool(ended[name]) for name in ("was_killed", "was_stopped")}
        return Attempt(number, ended["own_code"], step_before, int(ended["step"]), **flags)
    outcome = read_outcome(folder, num_nodes)
    cause = outcome.root_cause
    return Attempt(
        number,
        _code(outcome),
        step_before,
        newest_step(run_dir),
        was_killed=cause is not None and bool(cause.signal) and not cause.stopped,
        was_stopped=(cause is None or cause.stopped) and (folder / "stop.json").exists(),
    )


def _code(outcome: Outcome) -> int | None:
    if outcome.root_cause is not None:
        return outcome.root_cause.code
    return 0 if outcome.is_complete else None


def end(
    run_dir: Path, number: int, job: Mapping[str, Any], launcher_code: int, *, is_terminated: bool = False
) -> Decision:
    """Decides what follows attempt `number`, and writes it down as end.json.

    Args:
        run_dir: the run directory.
        number: the attempt, the latest.
        job: job.json.
        launcher_code: what srun, or the supervisor, ended with: it counts where the ranks and nodes left no record.
        is_terminated: the job itself is being ended (SIGTERM): whether another attempt follows is for Slurm to say.
    """
    is_cancelled = (run_dir / "cancelled.json").exists()
    folder, num_nodes = run_dir / "exit" / str(number), int(job["resources"]["nodes"])
    if launcher_code and not is_terminated and not is_cancelled and _note_dead_agents(folder):
        print(exit_line(read_outcome(folder, num_nodes), str(job.get("name", run_dir.name))), flush=True)
    attempts = history(run_dir, num_nodes)
    last = attempts[-1]
    if last.code is None and launcher_code:
        last = attempts[-1] = _with_launcher_code(last, launcher_code, is_terminated)
    decision = decide(attempts, job.get("chain", "none"), job.get("max_restarts", 0), is_cancelled=is_cancelled)
    write_end(run_dir, last, decision)
    return decision


def _note_dead_agents(folder: Path) -> bool:
    """Records what an agent that was killed could not: a node that was there and has said nothing of its end. Whether
    there was one."""
    found = False
    for path in sorted(folder.glob("here-*.json")):
        node = int(path.stem.removeprefix("here-"))
        if (folder / f"node-{node}.json").exists() or (folder / "stop.json").exists():
            continue
        host = (read_json(path) or {}).get("host", "")
        error = f"the agent of node {node} ({host}) died, and its ranks with it"
        note_lost_node(folder, node, host, PEER_LOST, error, reason="agent_died")
        found = True
    return found


def note_lost_node(folder: Path, node: int, host: str, code: int, error: str, *, reason: str) -> None:
    """Writes and prints how a node ended whose agent could not say so itself.

    Args:
        folder: `exit/<attempt>`.
        node: its number.
        host: its name.
        code: its exit code.
        error: in words.
        reason: in one word.
    """
    record = {
        "node": node,
        "host": host,
        "own_code": code,
        "code": code,
        "reason": reason,
        "stopped": False,
        "signal": None,
        "error": error,
        "tail": [],
        "ended_at": time.time(),
    }
    write_json(folder / f"node-{node}.json", record)
    print(f"error: {error}", flush=True)


def _with_launcher_code(last: Attempt, launcher_code: int, is_terminated: bool) -> Attempt:
    was_stopped = last.was_stopped or is_terminated
    return Attempt(last.number, launcher_code, last.step_before, last.step_after, was_stopped=was_stopped)


def read_begin(run_dir: Path, number: int) -> dict[str, Any]:
    """attempt.json; empty where there is none."""
    return read_json(run_dir / "exit" / str(number) / "attempt.json") or {}


def read_end(run_dir: Path, number: int) -> dict[str, Any] | None:
    """end.json; None while nothing is decided."""
    return read_json(run_dir / "exit" / str(number) / "end.json")


def write_end(run_dir: Path, attempt: Attempt, decision: Decision, **facts: Any) -> None:
    """Writes end.json: how the attempt ended, and what follows."""
    record = {
        "own_code": attempt.code,
        "was_killed": attempt.was_killed,
        "was_stopped": attempt.was_stopped,
        "step": attempt.step_after,
        "again": decision.again,
        "code": decision.code,
        "reason": decision.reason,
        "ended_at": time.time(),
    }
    write_json(run_dir / "exit" / str(attempt.number) / "end.json", record | facts)


def amend_end(run_dir: Path, number: int, **facts: Any) -> None:
    """Adds to end.json what became of the decision."""
    write_json(run_dir / "exit" / str(number) / "end.json", (read_end(run_dir, number) or {}) | facts)
