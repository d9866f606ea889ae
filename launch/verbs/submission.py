"""What a submission does once its plan is made: the claim, the checks, the copy of the code, the start of the job."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from launch import before, cluster, identity, manifest, resuming, script, snapshot
from launch import submit as effects
from launch.checks import facts
from launch.records import write_json
from launch.runs import Run
from launch.spec import JobSpec
from launch.verbs.common import Watch, registry


def submitted(spec: JobSpec, plan: str, arguments: argparse.Namespace, dependency: str | None = None) -> Run:
    """Starts the job; its run."""
    # Claimed before the checks, which take seconds: a second submission is told at once.
    with resuming.claimed(Path(spec.run_dir)) as claim:
        text = script.script_text(spec)
        made_of, patches = manifest.gather(spec, text)
        twin = identity.twin(made_of["signature"], registry(), lambda run: Watch(run).now())
        same = identity.check(twin, is_named=_is_named(spec, arguments))
        checks = before.checked(spec, text, os.environ, same, audits=not arguments.skip_audit)
        manifest.write(claim.path.parent.parent, made_of, patches)
        if getattr(arguments, "snapshot", False):
            spec = snapshot.take(spec)
            text, plan = script.script_text(spec), script.plan_text(spec, cluster.without_outer_job(os.environ))
        run = effects.submit(spec, claim, text, plan, os.environ, dependency=dependency)
    write_json(run.path / "checks.json", {"checks": facts(checks)})
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
