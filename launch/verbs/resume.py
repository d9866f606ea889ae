"""`launch resume`: submits a run that has stopped or failed once more, in its directory."""

from __future__ import annotations

import argparse
import os

from launch import attempts, cluster, options, resuming, script
from launch import submit as effects
from launch.errors import LaunchError
from launch.spec import JobSpec
from launch.verbs.common import find, started
from strict_settings import SettingsError


def run(arguments: argparse.Namespace) -> int:
    """Starts the next attempt, with other resources or settings where they are given."""
    found = find(arguments)
    if os.path.realpath(run_dir := str(found.job.get("run_dir", ""))) != os.path.realpath(found.path):
        rule = f"it must be where it was submitted, in {run_dir}: that is where its jobs would write"
        raise LaunchError(f"{found.path} was copied or renamed; {rule}. Move it back, or use `launch resubmit`.")
    attempts.check_owner(found.path)
    changes = {name: getattr(arguments, name.replace("-", "_")) for name, _, _ in options.RESUME_OPTIONS}
    spec = resuming.changed(
        JobSpec.from_json(found.job), changes, arguments.override, accepts_data=arguments.accept_data_change
    )
    if spec.executor == "slurm" and (problems := list(cluster.request_problems(spec, cluster.read_partitions()))):
        raise SettingsError(problems)
    plan = script.plan_text(spec, cluster.without_outer_job(os.environ))
    with resuming.claimed_again(found) as claim:
        effects.check_script(spec, os.environ)
        if not arguments.json:
            step = attempts.newest_step(found.path)
            print(f"goes on from step {step}" if step else "there is no checkpoint: it begins again")
        effects.submit(spec, claim, script.script_text(spec), plan, os.environ)
    return started("resume", found, spec.executor, arguments)
