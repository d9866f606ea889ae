"""`launch resubmit`: a run once more from its beginning, with the settings that it had, in a directory of its own. What
of its code, data and packages is not as it was is told."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import replace
from pathlib import Path

from launch import cluster, following, options, places, resuming, script, snapshot
from launch.records import read_json
from launch.spec import JobSpec
from launch.verbs.common import Watch, find, started
from launch.verbs.submission import submitted
from launch.verbs.submit import request_problems, show
from strict_settings import SettingsError

_ABOUT_RESUMING = ("resume_override", "accept_data_change")


def run(arguments: argparse.Namespace) -> int:
    """Prints the plan, or starts the job."""
    found = find(arguments)
    submitted_as = JobSpec.from_json(found.job)
    is_copied = submitted_as.code_root is not None
    old = snapshot.original(submitted_as, read_json(found.path / "manifest.json") or {})
    changes = {name: getattr(arguments, name.replace("-", "_")) for name, _, _ in options.RESUME_OPTIONS}
    name = arguments.name or free_name(Path(old.run_dir))
    spec = resuming.changed(anew(old, name, arguments.script_args), changes, [], accepts_data=False)
    run_dir = Path(spec.run_dir)
    problems = [*spec.problems(), *places.file_problems(spec, None), *places.directory_problems(run_dir)]
    if problems := problems or request_problems(spec):
        raise SettingsError(problems)
    plan = script.plan_text(spec, cluster.without_outer_job(os.environ))
    if arguments.dry_run:
        return show("resubmit", spec, plan, is_json=arguments.json, is_copied=is_copied)
    dependency = following.dependency_of(spec, lambda run: Watch(run).now())
    new = submitted(spec, plan, arguments, dependency, is_copied=is_copied, like=found)
    return started("resubmit", new, spec.executor, arguments)


def free_name(run_dir: Path) -> str:
    """`demo-2`, or the first number after it of which there is no directory yet; of `demo-2` too, where there is a
    `demo`. Otherwise the number is part of the name: `seed-3` once more is `seed-3-2`."""
    base, number = re.sub(r"-\d{1,3}$", "", run_dir.name), 2
    if not (run_dir.parent / base).exists():
        base = run_dir.name
    while (run_dir.parent / f"{base}-{number}").exists():
        number += 1
    return f"{base}-{number}"


def anew(spec: JobSpec, name: str, extra_args: list[str]) -> JobSpec:
    """The same job as a new run. Pure.

    Args:
        spec: the job as it was submitted, or last resumed: settings that were changed then stay changed.
        name: of the new run; its directory stands beside the old one.
        extra_args: for the script; an option takes the place of the old one of the same name.
    """
    run_dir = str(Path(spec.run_dir).parent / name)
    pairs = zip(spec.resume_args[::2], spec.resume_args[1::2], strict=True)
    resumed = [word for option, value in pairs if option[2:] not in _ABOUT_RESUMING for word in (option, value)]
    given = {word.partition("=")[0][2:].replace("-", "_") for word in extra_args if word.startswith("--")}
    own = [run_dir if word == spec.run_dir else word for word in (*spec.script_args, *resumed)]
    script_args = (*options.without_options(own, given), *extra_args)
    return replace(spec, name=name, run_dir=run_dir, script_args=script_args, resume_args=())
