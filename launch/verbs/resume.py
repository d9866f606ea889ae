"""`launch resume`: submits a run, or stages, that stopped or failed once more, in their directories."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from launch import attempts, cluster, following, host_checks, members, options, resuming, runs, script
from launch import submit as effects
from launch.errors import OK, LaunchError
from launch.runs import Run
from launch.spec import JobSpec
from launch.verbs.common import Watch, find, registry, started
from launch.verbs.wait import wait_for_all
from strict_settings import SettingsError


def run(arguments: argparse.Namespace) -> int:
    """Starts the next attempt, with other resources or settings where they are given; of stages, of all that have
    ended and are not complete."""
    try:
        found = find(arguments)
    except LaunchError:
        stages = members.stages_meant(arguments.run, Path.cwd(), runs.all_runs(registry(), None))
        if not stages:
            raise
        return _resume_stages(stages, arguments)
    spec = _resumed(found, arguments)
    return started("resume", found, spec.executor, arguments)


def _resumed(found: Run, arguments: argparse.Namespace) -> JobSpec:
    """Starts the next attempt of a run, after those that it follows; its job."""
    if os.path.realpath(run_dir := str(found.job.get("run_dir", ""))) != os.path.realpath(found.path):
        rule = f"it must be where it was submitted, in {run_dir}: that is where its jobs would write"
        raise LaunchError(f"{found.path} was copied or renamed; {rule}. Move it back, or use `launch resubmit`.")
    attempts.check_owner(found.path)
    changes = {name: getattr(arguments, name.replace("-", "_")) for name, _, _ in options.RESUME_OPTIONS}
    spec = resuming.changed(
        JobSpec.from_json(found.job), changes, arguments.override, accepts_data=arguments.accept_data_change
    )
    if spec.executor == "slurm":
        problems = [*cluster.request_problems(spec, cluster.read_partitions()), *cluster.exclude_problems(spec)]
        if problems:
            raise SettingsError(problems)
    dependency = following.dependency_of(spec, lambda run: Watch(run).now())
    plan = script.plan_text(spec, cluster.without_outer_job(os.environ))
    with resuming.claimed_again(found) as claim:
        effects.check_script(spec, os.environ)
        host_checks.require(spec, cluster.without_outer_job(os.environ))
        if not arguments.json:
            step = attempts.newest_step(found.path)
            print(f"goes on from step {step}" if step else "there is no checkpoint: it begins again")
        effects.submit(spec, claim, script.script_text(spec), plan, os.environ, dependency=dependency)
    return spec


def _resume_stages(stages: Sequence[Run], arguments: argparse.Namespace) -> int:
    """Resumes the stages that have ended and are not complete, each after those before it; the others stay."""
    resumed = []
    for stage in stages:
        status = Watch(stage).now()
        if status.has_ended and status.state != runs.COMPLETED:
            resumed.append((stage, _resumed(stage, arguments)))
        else:
            print(f"{stage.name} is {status.state}", file=sys.stderr)
    if not resumed:
        raise LaunchError(f"all stages of {arguments.run} wait, run or are complete; there is nothing to resume.")
    for stage, spec in resumed:
        started("resume", stage, spec.executor, argparse.Namespace(**{**vars(arguments), "wait": False}))
    return wait_for_all("resume", stages, is_json=arguments.json) if arguments.wait else OK
