"""What a run begins after: the runs that must be complete before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from launch import runs
from launch.errors import LaunchError
from launch.runs import Run, Status
from launch.spec import JobSpec


def following(spec: JobSpec, before: Run, status: Status) -> tuple[JobSpec, str | None]:
    """(the job, its dependency for sbatch) so that it begins when another run is complete. Pure.

    Raises:
        LaunchError: that run has ended otherwise, or can't be followed.
    """
    if status.state == runs.COMPLETED:
        return spec, None
    if status.has_ended:
        raise LaunchError(
            f"--after is {before.name}, which is {status.state}; it must be complete, waiting or running."
        )
    if before.job.get("executor") != spec.executor:
        where = f"{before.job.get('executor')}, this one on {spec.executor}"
        raise LaunchError(f"--after is {before.name}, which runs on {where}; both must be the same.")
    spec = replace(spec, after=tuple(dict.fromkeys((*spec.after, str(before.path)))))
    if spec.executor == "local":
        return spec, None
    if before.job.get("chain") == "singleton":
        raise LaunchError(f"--after is {before.name}, with chain singleton; it must be one job. Use chain requeue.")
    return spec, f"afterok:{before.job_id}"


def dependency_of(spec: JobSpec, ask: Callable[[Run], Status]) -> str | None:
    """The dependency for sbatch of a job that is submitted again: on those that it follows and that are not complete.

    Args:
        spec: the job.
        ask: how a run stands.

    Raises:
        LaunchError: one of them has ended otherwise.
    """
    befores = [Run(Path(path)) for path in spec.after]
    found = [following(spec, before, ask(before))[1] for before in befores]
    return ",".join(filter(None, found)) or None
