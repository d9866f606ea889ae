"""The effects of a submission: the run directory, the script's own check, and the one call that starts the job."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launch import cluster, processes, runs
from launch.claims import CLAIM, Claim, latest_claim
from launch.env_file import secrets_of
from launch.errors import REFUSED, LaunchError
from launch.records import make_directory, read_json, write_json, write_text
from launch.runs import Run
from launch.spec import COMMANDS_SCRIPT, JobSpec, python_path

CHECK_TIMEOUT_S = 60.0
AUDIT_TIMEOUT_S = 120.0


class ScriptRefusedError(LaunchError):
    """The training script's own words about its settings, and its code."""

    prefix = ""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def check_script(spec: JobSpec, environ: Mapping[str, str]) -> None:
    """Lets a script of ours check its words (`--check`), for this world, before anything is submitted.

    Raises:
        ScriptRefusedError: with its message and code.
        LaunchError: it does not end, or cannot be started.
    """
    if not spec.checks_itself:
        if not spec.is_elsewhere and os.path.isabs(spec.host_python) and not os.access(spec.host_python, os.X_OK):
            raise LaunchError(f"python is {spec.host_python!r}; it must be a program that starts here.")
        return
    command = [spec.host_python, spec.script, *spec.script_args, *spec.resume_args, "--check"]
    try:
        result = _run_as_job(command, spec, environ, CHECK_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        what = f"{shlex.join(command)} did not end within {CHECK_TIMEOUT_S:g} s"
        raise LaunchError(
            f"{what}; it must. Is a disk slow that holds Python or the data? Nothing was submitted."
        ) from error
    except OSError as error:
        raise LaunchError(f"python is {spec.python!r}; it must be a program that starts: {error.strerror}.") from error
    if result.returncode:
        message = result.stderr.strip() or f"error: {spec.script} --check exits with {result.returncode}."
        raise ScriptRefusedError(message, result.returncode if result.returncode > 0 else REFUSED)


def audit_data(spec: JobSpec, environ: Mapping[str, str]) -> str:
    """What the quick audit of the training data says, for our own script; empty for others. It reads the first rows,
    with the job's interpreter and settings.

    Raises:
        ScriptRefusedError: there are rows that end the run, or no tokenizer; with the audit's message and code.
    """
    if not spec.is_our_trainer:
        return ""
    command = [spec.host_python, str(spec.own(COMMANDS_SCRIPT)), "audit", "--quick"]
    command += [f"--processes={spec.world_size}", *spec.script_args]
    try:
        result = _run_as_job(command, spec, environ, AUDIT_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"the audit of the data was ended after {AUDIT_TIMEOUT_S:g} s; nothing is known of it."
    said = "\n".join(filter(None, (result.stderr.strip(), result.stdout.strip())))
    if result.returncode:
        message = f"{said}\nNothing was submitted. --skip-audit submits without looking at the data."
        raise ScriptRefusedError(message, result.returncode if result.returncode > 0 else REFUSED)
    return said


def _run_as_job(
    command: list[str], spec: JobSpec, environ: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Runs a command of our own where the job will run, in the environment that it will have."""
    environment = {**cluster.without_outer_job(environ), **spec.env}
    environment |= {**secrets_of(spec.to_json(), environment), "WORLD_SIZE": str(spec.world_size)}
    environment["PYTHONPATH"] = python_path(environ)
    return subprocess.run(
        command,
        cwd=spec.working_dir,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
    )


def fill(spec: JobSpec, script: str, plan: str) -> None:
    """Fills the run directory."""
    path = Path(spec.run_dir)
    write_json(path / "job.json", spec.to_json())
    write_text(path / "submit.sh", script)
    write_text(path / "plan.txt", plan)
    for name in ("logs", "exit", "submitit"):
        make_directory(path / name)


def submit(
    spec: JobSpec,
    claim: Claim,
    script: str,
    plan: str,
    environ: Mapping[str, str],
    *,
    dependency: str | None = None,
) -> Run:
    """Fills the run directory and starts the job; on Slurm with a dependency, as in sbatch."""
    path = Path(spec.run_dir)
    fill(spec, script, plan)
    with undisturbed():
        if spec.executor == "slurm":
            submission = _start_on_slurm(spec, claim, script, environ, dependency)
        else:
            submission = start_here(spec, claim, environ)
        write_submission(Run(path), claim, submission, environ)
    return Run(path)


def write_submission(run: Run, claim: Claim, submission: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Notes the job that a claim was used for: submission.json, the claim, the list of runs."""
    facts = {"host": socket.gethostname(), "submitted_at": time.time(), "claim": claim.number}
    write_json(run.path / "submission.json", {**submission, **facts})
    claim.with_job(submission["job_id"])
    signature = str((read_json(run.path / "manifest.json") or {}).get("signature", ""))
    registry = runs.registry_path(environ)
    try:
        runs.register(registry, run.path, run.name, submission["job_id"], signature=signature)
    except OSError as error:  # the job is on its way: what it is called is told all the same
        told = f"warning: {registry} cannot be written: {error.strerror}. `list` will not show this run"
        print(f"{told}; name it by its folder, {run.path}.", file=sys.stderr)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Between the job and the record of it, a closed terminal or Ctrl-C waits."""
    came: list[int] = []
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    # Handlers, as an ignored signal would stay ignored in what is started.
    before = {number: signal.signal(number, lambda number, _frame: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        os.kill(os.getpid(), came[0])


def submit_successor(run_dir: Path, environ: Mapping[str, str]) -> str:
    """Queues the run's job once more, to start when all its earlier ones have ended; its id.

    Raises:
        LaunchError: Slurm refuses.
    """
    claim = latest_claim(run_dir)
    job = read_json(run_dir / "job.json")
    if claim is None or job is None:
        raise LaunchError(f"{run_dir} holds no submission.")
    own = Claim(claim.path, claim.number, {**claim.record, "token": f"{claim.token}.{os.urandom(4).hex()}"})
    text = (run_dir / "submit.sh").read_text(encoding="utf-8", errors="surrogateescape")
    return cluster.submit(JobSpec.from_json(job), text, environ, own, dependency="singleton")[0]


def _start_on_slurm(
    spec: JobSpec, claim: Claim, script: str, environ: Mapping[str, str], dependency: str | None
) -> dict[str, Any]:
    job_id, command = cluster.submit(spec, script, environ, claim, dependency=dependency)
    return {"executor": "slurm", "job_id": job_id, "command": command}


def start_here(spec: JobSpec, claim: Claim, environ: Mapping[str, str]) -> dict[str, Any]:
    """Starts submit.sh on this machine; its submission.json."""
    job_id = local_job_id()
    command = ["bash", f"{spec.run_dir}/submit.sh"]
    own = {"CLEANSFT_JOB_ID": job_id, CLAIM: str(claim.number)}
    facts = start_detached(command, Path(spec.run_dir, "logs", "local.log"), {**environ, **own}, own)
    return {"executor": "local", "job_id": job_id, "command": command, **facts}


def local_job_id() -> str:
    """A new id for what runs without Slurm."""
    return f"local-{int.from_bytes(os.urandom(4), 'big') % 900_000 + 100_000}"


def start_detached(
    command: list[str], log_path: Path, environ: Mapping[str, str], kept: Collection[str] = ()
) -> dict[str, Any]:
    """Starts a command in a session of its own: it outlives this terminal. Its `pid` and `start_ticks`.

    Args:
        command: what is started.
        log_path: takes what it says.
        environ: its environment, from which an outer job's variables are taken.
        kept: names of such variables that it is to have.
    """
    own = {name: environ[name] for name in kept}
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**cluster.without_outer_job(environ), **own},
            start_new_session=True,
        )
    finally:
        os.close(log)
    ticks = processes.start_ticks(process.pid)
    process.returncode = 0  # it is on its own from here: Popen must not warn that it still runs
    return {"pid": process.pid, "start_ticks": ticks}
