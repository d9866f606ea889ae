"""What a submission does once its plan is made: the claim, the checks, the copy of the code, the start of the job."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from launch import before, cluster, identity, manifest, resuming, script, snapshot
from launch import submit as effects
from launch.checks import Check, facts
from launch.claims import Claim
from launch.records import write_json
from launch.runs import Run
from launch.spec import JobSpec
from launch.verbs.common import Watch, registry


class Examined(NamedTuple):
    """A job that may be submitted: all checks have passed."""

    spec: JobSpec
    text: str
    """submit.sh."""
    plan: str
    checks: list[Check]
    made_of: dict[str, Any]
    """manifest.json."""
    patches: dict[str, str]


def submitted(
    spec: JobSpec,
    plan: str,
    arguments: argparse.Namespace,
    dependency: str | None = None,
    *,
    is_copied: bool = False,
    like: Run | None = None,
) -> Run:
    """Starts the job; its run.

    Args:
        spec: the job.
        plan: plan.txt.
        arguments: of the command.
        dependency: for sbatch.
        is_copied: whether it is to run from a copy of the code, as `--snapshot` says too.
        like: the run that it is once more.
    """
    # Claimed before the checks, which take seconds: a second submission is told at once.
    with resuming.claimed(Path(spec.run_dir)) as claim:
        is_copied = is_copied or getattr(arguments, "snapshot", False)
        is_named = _is_named(spec, arguments)
        return sent(
            examined(spec, plan, is_named=is_named, audits=not arguments.skip_audit, is_copied=is_copied, like=like),
            claim,
            dependency,
        )


def examined(
    spec: JobSpec, plan: str, *, is_named: bool, audits: bool, is_copied: bool, like: Run | None = None
) -> Examined:
    """The job, once it was looked at. Its manifest is written, and its code copied where that is wanted.

    Args:
        spec: of a run directory that is claimed.
        plan: plan.txt.
        is_named: somebody chose the run's name: it may be like another one.
        audits: whether to look at the first rows of the data.
        is_copied: whether it is to run from a copy of the code.
        like: the run that it is once more: what has changed since is told.

    Raises:
        LaunchError: a check has failed.
    """
    text = script.script_text(spec)
    made_of, patches = manifest.gather(spec, text)
    twin = identity.twin(made_of["signature"], registry(), lambda run: Watch(run).now())
    same = identity.check(twin, is_named=is_named)
    same += identity.changes(like, made_of) if like is not None else []
    checks = before.checked(spec, text, os.environ, same, audits=audits)
    return _settled(Examined(spec, text, plan, checks, made_of, patches), is_copied=is_copied)


def examined_like(first: Examined, spec: JobSpec, plan: str, *, is_copied: bool) -> Examined:
    """A run of a sweep, by what was seen of the sweep's first: that has other values of some settings alone."""
    text = script.script_text(spec)
    made_of = manifest.of_another(spec, text, first.made_of)
    return _settled(Examined(spec, text, plan, first.checks, made_of, first.patches), is_copied=is_copied)


def _settled(job: Examined, *, is_copied: bool) -> Examined:
    manifest.write(Path(job.spec.run_dir), job.made_of, job.patches)
    if not is_copied:
        return job
    spec = snapshot.take(job.spec)
    plan = script.plan_text(spec, cluster.without_outer_job(os.environ))
    return job._replace(spec=spec, text=script.script_text(spec), plan=plan)


def sent(job: Examined, claim: Claim, dependency: str | None = None) -> Run:
    """Starts the job; its run."""
    run = effects.submit(job.spec, claim, job.text, job.plan, os.environ, dependency=dependency)
    write_json(run.path / "checks.json", {"checks": facts(job.checks)})
    return run


def _is_named(spec: JobSpec, arguments: argparse.Namespace) -> bool:
    """Whether somebody chose this run's name or directory, on the command line or in the settings file."""
    made_up = re.fullmatch(r".*-\d{8}-\d{6}(-\d+)?", spec.name)
    return arguments.name is not None or made_up is None or arguments.command == "resubmit"


def twin_of(spec: JobSpec, *, is_named: bool) -> Run | None:
    """The run with the same settings, code and data: in the same directory however it stands, or elsewhere, unless this
    one has a name of its own, where it waits, runs or is done. None where there is none."""
    made_of, _ = manifest.gather(spec, script.script_text(spec))
    if identity.signature_of(Run(Path(spec.run_dir))) == made_of["signature"]:
        return Run(Path(spec.run_dir))
    found = None if is_named else identity.twin(made_of["signature"], registry(), lambda run: Watch(run).now())
    return Run(found[0].path) if found is not None else None
