"""The files that a job needs, and the directory that it gets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from launch.attempts import check_owner
from launch.claims import latest_claim
from launch.env_file import read_env_file
from launch.errors import LaunchError
from launch.spec import ROOT, JobSpec
from strict_settings import Problem


def zero_file(stage: int) -> Path:
    """DeepSpeed's settings for a ZeRO stage."""
    return ROOT / "ds_configs" / f"zero{stage}.json"


def file_problems(job: JobSpec, zero: int | None) -> Iterator[Problem]:
    """The files of a job that are not there, or are not as they must be."""
    if not Path(job.script).is_file():
        yield Problem("script", job.script, "be a file", "Give --script PATH.")
    if zero is not None and not zero_file(zero).is_file():
        yield Problem("zero", zero, f"have the file {zero_file(zero)}")
    if job.env_file is not None:
        try:
            read_env_file(Path(job.env_file))
        except LaunchError as error:
            yield Problem("env_file", job.env_file, "be a file of secrets that only you can read", str(error))
    if job.is_elsewhere and not Path(job.host_python).is_absolute():
        yield Problem("python", job.python, "be an absolute path", "It must be the same on every node.")


def directory_problems(run_dir: Path) -> Iterator[Problem]:
    """Why a run directory can not be made, or is taken."""
    claim = latest_claim(run_dir)
    is_abandoned = claim is not None and claim.job_id is None and claim.submitter_lives() is False
    if (run_dir / "job.json").exists() and not is_abandoned:
        holder = "" if claim is None else f"It belongs to {claim.holder}. "
        shown = f"`python -m launch status {run_dir.name}` shows it, `resume` goes on with it if it stopped or failed."
        remedy = f"{holder}{shown} Choose another --name."
        yield Problem("the run directory", str(run_dir), "not hold a submission already", remedy)
        return
    if run_dir.is_symlink() and not run_dir.exists():
        yield Problem("the run directory", str(run_dir), "not be a link to nothing", "Make the directory it leads to.")
        return
    try:
        check_owner(run_dir)  # the job would look when it begins, hours later
    except LaunchError as error:
        yield Problem("the run directory", str(run_dir), "be yours, and writable by you alone", str(error))
        return
    existing = run_dir
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        yield Problem("the run directory", str(run_dir), f"be below directories; {existing} is a file")
        return
    try:
        # Only trying it tells the truth, to root and on network disks too.
        probe = existing / f".cleansft-{os.getpid()}"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        rule = f"be writable; in {existing} it is not ({error.strerror})"
        yield Problem("the run directory", str(run_dir), rule, "Choose another launch.runs_dir.")
