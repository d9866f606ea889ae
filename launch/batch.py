"""What the batch script calls on either side of srun: `python -m launch.batch begin|end RUN_DIR`.

`begin` opens an attempt and prints its number; `end` decides what follows and sees to it: the job is requeued, its
successor starts, or the chain ends. Everything else is in `attempts` and `chain`; here are the calls of Slurm.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import attempts, jobs
from launch.chain import Decision
from launch.claims import latest_claim
from launch.errors import OK, REFUSED, STORAGE, TERMINATED, LaunchError
from launch.notify import notify
from launch.records import read_json, write_json
from launch.runs import note_cancelled

FACTS_TRIES, FACTS_PAUSE_S = 3, 1.0
"""Slurm's SIGKILL is KillWait away, half a minute by default."""


def main(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Runs `begin RUN_DIR` or `end RUN_DIR CODE [what the batch script was told …]`; the exit code."""
    try:
        if words[0] == "begin":
            print(begin(Path(words[1]), environ))
            return OK
        # The job is being ended, or will be when it is requeued: what is noted below is short.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        return end(Path(words[1]), int(words[2]), words[3:], environ)
    except LaunchError as error:
        print(f"{error.prefix}{error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        # Nothing can be decided that could not be written down: the job ends, and a person goes on.
        print(f"error: {error}. `python -m launch resume` goes on.", file=sys.stderr)
        return STORAGE


class ChainEndedError(LaunchError):
    """A job that Slurm has started although its run has ended."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def begin(run_dir: Path, environ: Mapping[str, str]) -> int:
    """Opens the next attempt; its number.

    Raises:
        LaunchError: the run has ended, or belongs to another job.
    """
    job, job_id = _job(run_dir), environ["SLURM_JOB_ID"]
    previous = max(attempts.numbers(run_dir), default=None)
    if previous is not None:
        _look_back(run_dir, previous, job, job_id)
    restart = int(environ.get("SLURM_RESTART_COUNT") or 0)
    number = attempts.begin(run_dir, job_id, environ, restart=restart)
    _note_job(run_dir, jobs.own_id(environ))
    if job.get("chain") == "singleton":
        _queue_successor(run_dir, number, environ)
    notify(run_dir, job, "began", attempt=number)
    return number


def _look_back(run_dir: Path, previous: int, job: Mapping[str, Any], job_id: str) -> None:
    """Judges the attempt before where its own job could not: its node was lost, or its batch script killed."""
    begun = attempts.read_begin(run_dir, previous)
    claim = latest_claim(run_dir)
    if job.get("chain", "none") == "none" or (claim is not None and begun.get("claim") != claim.number):
        return
    ended = attempts.read_end(run_dir, previous)
    is_successor = begun.get("job_id") != job_id
    if ended is None:
        facts = jobs.facts(str(begun.get("job_id"))) if is_successor else None
        if facts is not None and facts.state == "CANCELLED":
            note_cancelled(run_dir, "scancel")
        attempts.end(run_dir, previous, job, OK)
        ended = attempts.read_end(run_dir, previous) or {}
        left_to_slurm = True
    else:
        left_to_slurm = bool(ended.get("left_to_slurm"))
    # A job that was requeued by hand, after its chain had ended, is somebody's will and goes on.
    if not ended.get("again") and (left_to_slurm or is_successor):
        code = int(ended["code"]) if ended.get("code") else TERMINATED
        raise ChainEndedError(f"the run has ended: {ended.get('reason')}.", code)


def _note_job(run_dir: Path, job_id: str) -> None:
    submission = read_json(run_dir / "submission.json")
    if submission is not None and submission.get("job_id") != job_id:
        write_json(run_dir / "submission.json", {**submission, "job_id": job_id})


def _queue_successor(run_dir: Path, number: int, environ: Mapping[str, str]) -> str | None:
    """Submits the same job again, to start when this one has ended; its id. Without one this attempt still runs."""
    from launch.submit import submit_successor

    path = run_dir / "exit" / str(number) / "attempt.json"
    try:
        successor = submit_successor(run_dir, environ)
    except LaunchError as error:
        print(f"warning: no successor could be queued: {error}", file=sys.stderr)
        return None
    write_json(path, {**attempts.read_begin(run_dir, number), "successor": successor})
    return successor


def end(run_dir: Path, launcher_code: int, told: Sequence[str], environ: Mapping[str, str]) -> int:
    """Decides what follows the attempt that has just ended, and sees to it; the job's exit code."""
    job, job_id = _job(run_dir), jobs.own_id(environ)
    number = int(environ["CLEANSFT_ATTEMPT"])
    begun = attempts.read_begin(run_dir, number)
    left_to_slurm, is_known = False, True
    if "terminated" in told:
        facts = _facts_of_end(job_id)
        is_known = facts is not None
        left_to_slurm = facts is not None and _is_being_requeued(run_dir, job, facts, begun, "signal" in told)
    decision = attempts.end(run_dir, number, job, launcher_code, is_terminated="terminated" in told)
    if left_to_slurm:
        attempts.amend_end(run_dir, number, left_to_slurm=True)
        say = "Slurm has requeued the job" if decision.again else f"Slurm has requeued the job, but {decision.reason}"
        decision = Decision(decision.again, decision.code, say)
    elif decision.again and not is_known:
        reason = "Slurm does not say whether the job was cancelled; `python -m launch resume` goes on"
        decision = Decision(False, decision.code, reason)
        attempts.amend_end(run_dir, number, again=False, reason=reason)
    elif decision.again:
        decision = _go_on(run_dir, number, job, job_id, decision, environ)
    if not decision.again and (successor := attempts.read_begin(run_dir, number).get("successor")):
        _cancel_successor(str(successor))
    print(f"attempt {number} ended with code {decision.code}: {decision.reason}", flush=True)
    event = "goes_on" if decision.again else "ended"
    notify(run_dir, job, event, attempt=number, code=decision.code, reason=decision.reason)
    return decision.code


def _facts_of_end(job_id: str) -> jobs.JobFacts | None:
    """What Slurm says of the job that it ends; a controller that is busy is asked again."""
    for _ in range(FACTS_TRIES):
        if (facts := jobs.facts(job_id)) is not None:
            return facts
        time.sleep(FACTS_PAUSE_S)
    return None


def _is_being_requeued(
    run_dir: Path, job: Mapping[str, Any], facts: jobs.JobFacts, begun: Mapping[str, Any], was_signalled: bool
) -> bool:
    """Whether Slurm, which ends this job, has put it back into the queue; notes a cancellation where it is one."""
    if facts.num_restarts > int(begun.get("restart", 0)) and facts.reason != "TimeLimit":
        return True
    is_preempted = job.get("chain") == "singleton" and was_signalled
    if facts.reason != "TimeLimit" and not is_preempted:
        note_cancelled(run_dir, "scancel")
    return False


def _go_on(
    run_dir: Path, number: int, job: Mapping[str, Any], job_id: str, decision: Decision, environ: Mapping[str, str]
) -> Decision:
    """Requeues the job, or makes sure that its successor waits; the decision, revised where Slurm refuses."""
    try:
        if job["chain"] == "requeue":
            jobs.requeue(job_id)
        elif not attempts.read_begin(run_dir, number).get("successor") and not _queue_successor(
            run_dir, number, environ
        ):
            raise LaunchError("no successor could be queued")
    except LaunchError as error:
        revised = Decision(False, decision.code, f"{error}; `python -m launch resume` goes on")
        attempts.amend_end(run_dir, number, again=False, reason=revised.reason)
        return revised
    return decision


def _cancel_successor(job_id: str) -> None:
    try:
        jobs.cancel(job_id)
    except LaunchError as error:
        print(f"warning: successor {job_id} is left in the queue, where it will end at once: {error}", file=sys.stderr)


def _job(run_dir: Path) -> dict[str, Any]:
    job = read_json(run_dir / "job.json")
    if job is None:
        raise LaunchError(f"{run_dir}/job.json is missing; the run directory must be on a disk that nodes share.")
    return job


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("begin", "end"):
        sys.exit(REFUSED)
    sys.exit(main(sys.argv[1:], os.environ))
