"""The right to submit: a run is claimed by one process at a time, the first time and whenever it is resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from launch import cluster, executor, runs, sweep
from launch.claims import Claim, latest_claim, make_claim
from launch.errors import LaunchError, LockedError
from launch.options import without_options
from launch.records import make_directory, read_json, write_text
from launch.runs import Run
from launch.secret_values import secret_problems
from launch.settings import LaunchSettings, default_grace_s, default_lead_s
from launch.spec import JobSpec
from launch.submit import write_submission
from strict_settings import Problem, SettingsError, build, parse_command_line

_REWRITTEN = ("job.json", "submit.sh", "plan.txt", "cancelled.json")
_MADE = ("job.json", "submit.sh", "plan.txt", "manifest.json", "logs", "exit", "submitit", "code")
"""What a submission makes in the run directory, beside its claim."""
COMPLETING_S = 20.0
"""How long `resume` waits for the nodes of a run that has just ended."""


@contextmanager
def claimed(run_dir: Path) -> Iterator[Claim]:
    """The right to submit into `run_dir`, which is made; where what follows fails, it is as before.

    Raises:
        LaunchError: somebody else has it, and who.
    """
    is_new, missing = not run_dir.exists(), _first_missing(run_dir)
    previous = latest_claim(run_dir)
    if previous is not None:
        _refuse_unless_abandoned(run_dir, previous)
    make_directory(run_dir)
    there = {name for name in _MADE if (run_dir / name).exists()}
    claim = make_claim(run_dir, 0 if previous is None else previous.number + 1)
    if claim is None:
        raise _taken(run_dir)
    try:
        yield claim
    except cluster.InDoubtError:
        raise
    except BaseException:
        if _is_used(claim):
            raise
        was_filled = (run_dir / "job.json").exists()
        if is_new:
            shutil.rmtree(run_dir, ignore_errors=True)
        else:
            _undo(run_dir, claim, [name for name in _MADE if name not in there])
        for path in run_dir.parents:
            if missing is not None and path.is_relative_to(missing) and not was_filled:
                with contextlib.suppress(OSError):
                    path.rmdir()  # only where it is empty
        raise


def _is_used(claim: Claim) -> bool:
    """Whether there is a job by now: what came after that, as Ctrl-C, does not undo it."""
    return "job_id" in (read_json(claim.path) or {})


def _first_missing(path: Path) -> Path | None:
    """The outermost directory that has to be made."""
    missing = [part for part in (path, *path.parents) if not part.exists()]
    return missing[-1] if missing else None


def _taken(run_dir: Path) -> LaunchError:
    claim = latest_claim(run_dir)
    holder = "another process" if claim is None else claim.holder
    return LaunchError(f"{run_dir} is taken by {holder}; each run has one. Choose another --name.")


def _refuse_unless_abandoned(run_dir: Path, claim: Claim) -> None:
    """A process that was submitting and is gone may have left a job behind: then the run is that job."""
    if claim.job_id is not None or claim.submitter_lives() is not False:
        raise _taken(run_dir)
    job = read_json(run_dir / "job.json")
    if job is None or job["executor"] != "slurm":
        return
    job_id = _adopted(Run(run_dir), claim)
    if job_id is None:
        return
    raise LaunchError(
        f"{run_dir} was submitted already, as job {job_id}, by a process that ended before it could say so. Nothing "
        f"was submitted now. `python -m launch status {run_dir.name}` shows it."
    )


def _adopted(run: Run, claim: Claim) -> str | None:
    """The job that a submission has left behind, noted in its run; None where there is none."""
    array = sweep_token(run.path.parent) if run.job.get("sweep") and claim.number == 0 else None
    if array is None:
        job_id = cluster.adopt(str(run.path), claim)
    else:
        found = cluster.find_array(array)
        job_id = None if found is None else sweep.task_id(found, run.path)
    if job_id is not None:
        write_submission(run, claim, {"executor": "slurm", "job_id": job_id, "command": []}, os.environ)
    return job_id


def sweep_token(folder: Path) -> str | None:
    """The comment of a sweep's array."""
    token: str | None = (read_json(folder / "sweep.json") or {}).get("token")
    return token


def adopt_sweep(folder: Path) -> None:
    """Notes the array of a sweep in its runs, where the process that submitted it ended before it could.

    Raises:
        LaunchError: it did: what has become of the sweep; or the queue can't be asked.
    """
    claims = [(run, latest_claim(run.path)) for run, _ in sweep.runs_of(folder)]
    left = [
        (run, claim)
        for run, claim in claims
        if claim is not None and claim.number == 0 and claim.job_id is None and claim.submitter_lives() is False
    ]
    token = sweep_token(folder)
    if not left or token is None or left[0][0].job.get("executor") != "slurm":
        return
    array = cluster.find_array(token)
    if array is None:
        rule = "it must be new, and no job of it is in the queue. Remove the folder, or choose another --name"
        raise LaunchError(f"the sweep's folder is {folder}; {rule}.")
    for run, claim in left:
        own = {"executor": "slurm", "job_id": sweep.task_id(array, run.path), "command": []}
        write_submission(run, claim, own, os.environ)
    raise LaunchError(
        f"{folder} was submitted already, as job {array}, by a process that ended before it could say so. Nothing "
        f"was submitted now. `python -m launch list --sweep {folder.name}` shows it."
    )


def _undo(path: Path, claim: Claim, names: Iterable[str]) -> None:
    """Takes back a claim and what was made under it; what was there before stays."""
    for name in names:
        made = path / name
        if made.is_dir():
            shutil.rmtree(made, ignore_errors=True)
        else:
            made.unlink(missing_ok=True)
    claim.path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        claim.path.parent.rmdir()


@contextmanager
def claimed_again(run: Run) -> Iterator[Claim]:
    """The right to submit a run again that stopped or failed; where what follows fails, the run is as before.

    Raises:
        LockedError: it still waits or runs, or another process resumes it in this moment; with the holder.
        LaunchError: it is complete.
    """
    previous = latest_claim(run.path)
    _refuse_unless_ended(run, previous)
    claim = make_claim(run.path, 0 if previous is None else previous.number + 1)
    if claim is None:
        current = latest_claim(run.path)
        raise LockedError(f"{run.name} is being resumed by {current.holder if current else 'another process'}.")
    names = [name for name in _REWRITTEN if (run.path / name).exists()]
    old = {name: (run.path / name).read_text(encoding="utf-8", errors="surrogateescape") for name in names}
    try:
        (run.path / "cancelled.json").unlink(missing_ok=True)
        yield claim
    except cluster.InDoubtError:
        raise
    except BaseException:
        if _is_used(claim):
            raise
        for name, text in old.items():
            write_text(run.path / name, text)
        claim.path.unlink(missing_ok=True)
        raise


def _refuse_unless_ended(run: Run, claim: Claim | None) -> None:
    if claim is not None and claim.job_id is None:
        if (lives := claim.submitter_lives()) is not False:
            remedy = f" If that process is gone, remove {claim.path}." if lives is None else ""
            raise LockedError(f"{run.name} is held by {claim.holder}.{remedy}")
        if run.job.get("executor") == "slurm":
            _adopted(run, claim)
    deadline = time.monotonic() + COMPLETING_S
    while (view := executor.view(run)).presence != "ended":
        status = runs.status_of(run, lambda view=view: view)  # type: ignore[misc]
        if view.presence == "running" and status.has_ended and time.monotonic() < deadline:
            time.sleep(0.5)  # its nodes are being freed
            continue
        why = {"unknown": f"whether it has ended is unknown: {view.reason}"}.get(view.presence, f"it is {status.state}")
        raise LockedError(f"{run.name} is held by job {run.job_id} on {run.submission.get('host')}; {why}.")
    if runs.status_of(run, lambda: view).state == runs.COMPLETED:
        raise LaunchError(f"{run.name} is complete; there is nothing to resume.")


def changed(
    spec: JobSpec, resources: Mapping[str, str | None], overrides: Sequence[str], *, accepts_data: bool
) -> JobSpec:
    """The job as it is resumed: other resources where they are given, and what the trainer is told of changes.

    Args:
        spec: the job as it was submitted.
        resources: `time-min`, `partition`, … as words of the command line; None keeps what it has.
        overrides: `key=value`, a setting of the trainer with its new value, or `key`, one that may differ as it is.
        accepts_data: whether data that has changed may be trained on.

    Raises:
        SettingsError: a value that can't be.
    """
    words = [f"--{name}={value}" for name, value in resources.items() if value is not None]
    given = parse_command_line(LaunchSettings, words)
    values = build(LaunchSettings, given)
    new = {name.replace("-", "_") for name, value in resources.items() if value is not None}
    fields = {field.name for field in dataclasses.fields(spec.resources)}
    kept = dataclasses.replace(spec.resources, **{name: getattr(values, name) for name in new & fields})
    if "hosts" in new:
        kept = dataclasses.replace(kept, nodes=values.nodes if "nodes" in new else len(values.hosts))
        spec = dataclasses.replace(spec, hosts=values.hosts)
    spec = dataclasses.replace(_told(spec, overrides, accepts_data=accepts_data), resources=kept)
    lead_s = values.signal_lead_s or min(spec.signal_lead_s, default_lead_s(kept.time_min))
    grace_s = spec.stop_grace_s if spec.stop_grace_s >= lead_s else default_grace_s(lead_s)
    spec = dataclasses.replace(spec, signal_lead_s=lead_s, stop_grace_s=grace_s)
    if problems := list(spec.problems()):
        raise SettingsError(problems)
    return spec


def _told(spec: JobSpec, overrides: Sequence[str], *, accepts_data: bool) -> JobSpec:
    """The job with new values among its script's arguments, in place of old ones. What an earlier resume has changed
    stays so."""
    before = _pairs(spec.resume_args)
    keys = [key for key in before.get("resume_override", "[]").strip("[]").split(", ") if key]
    values = {key: before[key] for key in keys if key in before}
    for word in overrides:
        key, equals, value = word.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", key):
            raise SettingsError(Problem("override", word, "be KEY=VALUE or KEY, with a setting of the trainer"))
        keys += [] if key in keys else [key]
        values |= {key: value} if equals else {}
    if problems := list(secret_problems("override", list(values.values()))):
        raise SettingsError(problems)
    told = [word for key, value in values.items() for word in (f"--{key}", value)]
    told += ["--resume_override", f"[{', '.join(keys)}]"] if keys else []
    told += ["--accept_data_change", "true"] if accepts_data else []
    return dataclasses.replace(spec, script_args=without_options(spec.script_args, values), resume_args=tuple(told))


def _pairs(words: Sequence[str]) -> dict[str, str]:
    return {name[2:]: value for name, value in zip(words[::2], words[1::2], strict=True)}
