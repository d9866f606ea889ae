"""The effects of a submission: the run directory, the script's own check, and the one call that starts the job."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch import cluster, processes, runs
from launch.errors import REFUSED, LaunchError
from launch.records import make_directory, write_json, write_text
from launch.runs import Run, View
from launch.spec import DEFAULT_SCRIPT, ROOT, JobSpec

CHECK_TIMEOUT_S = 60.0
AUDIT_TIMEOUT_S = 120.0


class ScriptRefusedError(LaunchError):
    """The training script's own words about its settings, and its code."""

    prefix = ""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def check_script(spec: JobSpec, environ: Mapping[str, str]) -> None:
    """Lets our own script check its settings (`--check`), for this world, before anything is submitted.

    Raises:
        ScriptRefusedError: with its message and code.
        LaunchError: it does not end, or cannot be started.
    """
    if Path(spec.script) != DEFAULT_SCRIPT:
        return
    command = [spec.python, spec.script, *spec.script_args, "--check"]
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
    if Path(spec.script) != DEFAULT_SCRIPT:
        return ""
    command = [spec.python, str(DEFAULT_SCRIPT.with_name("__main__.py")), "audit", "--quick"]
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
    environment = {**cluster.without_outer_job(environ), **spec.env, "WORLD_SIZE": str(spec.world_size)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environ.get("PYTHONPATH"))))
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


def submit(spec: JobSpec, script: str, plan: str, environ: Mapping[str, str]) -> Run:
    """Makes the run directory and starts the job; leaves nothing behind where that fails."""
    path = Path(spec.run_dir)
    is_new = not path.exists()
    make_directory(path)
    _claim(path / "job.json")
    try:
        write_json(path / "job.json", spec.to_json())
        write_text(path / "submit.sh", script, mode=0o700)
        write_text(path / "plan.txt", plan)
        make_directory(path / "logs")
        make_directory(path / "exit")
        start = _start_on_slurm if spec.executor == "slurm" else _start_here
        submission = start(spec, script, environ)
    except BaseException:
        _undo(path, is_new)
        raise
    host = socket.gethostname()
    write_json(path / "submission.json", {**submission, "host": host, "submitted_at": time.time()})
    runs.register(runs.registry_path(environ), path, spec.name, submission["job_id"])
    return Run(path)


def _claim(path: Path) -> None:
    """Two submissions of one name at the same moment: the second one fails here."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError as error:
        raise LaunchError(f"{path} exists; the run is submitted already. Choose another --name.") from error


def _undo(path: Path, is_new: bool) -> None:
    if is_new:
        shutil.rmtree(path, ignore_errors=True)
        return
    for name in ("job.json", "submit.sh", "plan.txt"):
        (path / name).unlink(missing_ok=True)
    for name in ("logs", "exit", "submitit"):
        shutil.rmtree(path / name, ignore_errors=True)


def _start_on_slurm(spec: JobSpec, script: str, environ: Mapping[str, str]) -> dict[str, Any]:
    job_id, command = cluster.submit(spec, script, environ)
    return {"executor": "slurm", "job_id": job_id, "command": command}


def _start_here(spec: JobSpec, _script: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """Starts submit.sh in a session of its own: it outlives this terminal."""
    job_id = f"local-{int.from_bytes(os.urandom(4), 'big') % 900_000 + 100_000}"
    command = ["bash", f"{spec.run_dir}/submit.sh"]
    log = os.open(f"{spec.run_dir}/logs/local.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**cluster.without_outer_job(environ), "CLEANSFT_JOB_ID": job_id},
            start_new_session=True,
        )
    finally:
        os.close(log)
    ticks = processes.start_ticks(process.pid)
    process.returncode = 0  # it is on its own from here: Popen must not warn that it still runs
    return {"executor": "local", "job_id": job_id, "command": command, "pid": process.pid, "start_ticks": ticks}


# --- afterwards


def executor_view(run: Run) -> View:
    """What the executor says of the run's job."""
    submission = run.submission
    if not submission:
        return View("unknown", "it was not submitted to the end: submission.json is missing")
    if submission["executor"] == "slurm":
        return cluster.view(run.job_id)
    if submission["host"] != socket.gethostname():
        return View("unknown", f"it runs on {submission['host']}")
    return View("running" if _supervisor_lives(submission) else "ended")


def is_running(run: Run) -> bool:
    """Whether the executor still holds something of the run: processes here, nodes on a cluster."""
    return executor_view(run).presence == "running"


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
    write_json(run.path / "cancelled.json", {"cancelled_at": time.time(), "host": socket.gethostname()})
    if submission["executor"] == "slurm":
        try:
            cluster.cancel(run)
        except LaunchError:
            (run.path / "cancelled.json").unlink(missing_ok=True)  # it goes on
            raise
    elif _supervisor_lives(submission):
        processes.send([submission["pid"]], signal.SIGTERM)
