"""One Slurm job, through squeue, scontrol and scancel. Standard library only: the batch script uses it too."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from launch.errors import LaunchError
from launch.runs import View

COMMAND_TIMEOUT_S = 15.0
# squeue(1), JOB STATE CODES. A word that is in none of them is no end: a second job would come beside the first.
_WAITING = {
    "PENDING", "CONFIGURING", "POWER_UP_NODE", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
}  # fmt: skip
_RUNNING = {"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED", "SUSPENDED", "RESIZING"}
_ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT",
}  # fmt: skip


@dataclass(frozen=True)
class JobFacts:
    """What scontrol says of a job."""

    state: str
    reason: str
    """Why it waits or ends; `TimeLimit` while it is being ended for that."""
    num_restarts: int
    """How often it was requeued; counted already while it is being ended for that."""


def own_id(environ: Mapping[str, str]) -> str:
    """The id by which Slurm knows the job of this environment and no other: of an array's task `7_3`, as the number of
    one of the tasks is that of the whole array. Pure."""
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environ["SLURM_JOB_ID"]


def command(
    *argv: str, stdin: str | None = None, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs one of Slurm's commands. What it says need not be UTF-8: names and comments are anybody's.

    Args:
        argv: its words.
        stdin: what it reads; None: as this process.
        environ: its environment; None: that of this process.

    Raises:
        LaunchError: it is not there, or does not answer in time.
    """
    try:
        done = subprocess.run(
            argv,
            input=None if stdin is None else stdin.encode(errors="surrogateescape"),
            env=environ,
            capture_output=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise LaunchError(f"{argv[0]} is not on PATH") from error
    except subprocess.TimeoutExpired as error:
        raise LaunchError(f"{argv[0]} did not answer within {COMMAND_TIMEOUT_S:.0f} s") from error
    stdout, stderr = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    return subprocess.CompletedProcess(argv, done.returncode, stdout, stderr)


def last_line(text: str) -> str:
    """The last line of what a command said."""
    return (text.strip().splitlines() or ["nothing"])[-1]


def view(job_id: str) -> View:
    """What squeue says; it knows a job for MinJobAge (5 minutes by default) after its end."""
    try:
        result = command("squeue", "-h", "-t", "all", "-r", "-j", job_id, "-o", "%T|%r|%S")
    except LaunchError as error:
        return View("unknown", str(error))
    if result.returncode != 0 and "Invalid job id" not in result.stderr:
        return View("unknown", f"squeue says: {last_line(result.stderr)}")
    return parse_view(result.stdout.strip())


def views() -> dict[str, View]:
    """What squeue says of all jobs of this user, in one call: job id → view. A job that is not there has ended.

    Raises:
        LaunchError: it can't be asked.
    """
    result = command("squeue", "-h", "-t", "all", "--me", "-r", "-o", "%i|%A|%T|%r|%S")
    if result.returncode != 0:
        raise LaunchError(f"squeue says: {last_line(result.stderr)}")
    found: dict[str, View] = {}
    for line in result.stdout.splitlines():
        job_id, number, rest = (*line.strip().split("|", 2), "", "")[:3]
        # A task of an array has two names: `7_3`, by which it was submitted, and a number, once it has begun.
        found[job_id] = found[number] = parse_view(rest)
    return found


def parse_view(text: str) -> View:
    """The view in `%T|%r|%S` of squeue: state, reason, when it starts. Nothing: it has forgotten the job."""
    word, reason, starts_at = (*text.split("|"), "", "")[:3]
    if word in _WAITING:
        return View("waiting", "" if reason == "None" else reason, "" if starts_at == "N/A" else starts_at)
    if word in _RUNNING:
        return View("running")
    if word and word not in _ENDED:
        return View("unknown", f"squeue says {word}, which tells neither that it runs nor that it has ended")
    return View("ended", "" if word == "COMPLETED" else word)


def facts(job_id: str) -> JobFacts | None:
    """What scontrol says; None where it can't be asked or knows no such job."""
    try:
        result = command("scontrol", "--oneliner", "show", "job", job_id)
    except LaunchError:
        return None
    return None if result.returncode else parse_facts(result.stdout)


def parse_facts(text: str) -> JobFacts | None:
    """The facts in one line of `scontrol --oneliner show job`."""
    words = dict(re.findall(r"(?:^|\s)(JobState|Reason|Restarts)=(\S+)", text))
    if not {"JobState", "Restarts"} <= words.keys():
        return None
    return JobFacts(words["JobState"], words.get("Reason", ""), int(words["Restarts"]))


def requeue(job_id: str) -> None:
    """Puts a job back into the queue, from inside or after it.

    Raises:
        LaunchError: Slurm refuses, in its own words.
    """
    result = command("scontrol", "requeue", job_id)
    if result.returncode != 0:
        raise LaunchError(f"scontrol requeue {job_id} was refused: {last_line(result.stderr)}")


def exclude(job_id: str, nodes: str) -> None:
    """Lets a job that waits start on other nodes only.

    Args:
        job_id: the job.
        nodes: all that it is to avoid, as in sbatch --exclude.

    Raises:
        LaunchError: Slurm refuses, in its own words.
    """
    result = command("scontrol", "update", f"JobId={job_id}", f"ExcNodeList={nodes}")
    if result.returncode != 0:
        raise LaunchError(f"scontrol update JobId={job_id} ExcNodeList={nodes} was refused: {last_line(result.stderr)}")


class RefusedError(LaunchError):
    """Slurm has answered, and will not."""


def cancel(*job_ids: str) -> None:
    """scancel. It goes on behind a job that it refuses to end.

    Raises:
        RefusedError: it refuses one of them or more, in its own words.
        LaunchError: it does not answer.
    """
    result = command("scancel", *job_ids)
    if result.returncode != 0:
        raise RefusedError(f"scancel refused: {last_line(result.stderr)}")


def find(token: str) -> str | None:
    """This user's job whose comment is `token`, waiting or running or just ended; None where there is none.

    Raises:
        LaunchError: squeue can't be asked.
    """
    result = command("squeue", "-h", "-t", "all", "--me", "-o", "%i|%k")
    if result.returncode != 0:
        raise LaunchError(f"squeue says: {last_line(result.stderr)}")
    for line in result.stdout.splitlines():
        job_id, _, comment = line.strip().partition("|")
        if comment == token:
            return job_id
    return None


def expected_start(text: str, environ: Mapping[str, str]) -> tuple[str | None, str]:
    """(when Slurm would start the job, in its own words; why it would not), from `sbatch --test-only`.

    Args:
        text: the batch script.
        environ: sbatch's environment.
    """
    try:
        result = command("sbatch", "--test-only", stdin=text, environ=environ)
    except LaunchError as error:
        return None, str(error)
    found = re.search(r"to start at (\S+)", result.stderr)
    if result.returncode == 0 and found:
        return found[1], ""
    refusals = [
        line.partition(": ")[2].removeprefix("error: ")
        for line in result.stderr.splitlines()
        if line.startswith(("sbatch: error:", "allocation failure:"))
    ]
    if result.returncode == 0 or not refusals:
        return None, f"sbatch --test-only did not tell: {last_line(result.stderr)}"
    return None, refusals[-1]
