"""`launch submit`: checks everything, then starts the job. The same checks serve `print` and `run`."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from launch import cluster, devices, options, profiles, runs, script, settings
from launch import submit as effects
from launch.errors import OK
from launch.following import following
from launch.runs import Run
from launch.spec import JobSpec
from launch.verbs.common import Watch, print_json, registry, started
from strict_settings import Problem, SettingsError
from strict_settings.env_file import found_env_file


def run(arguments: argparse.Namespace) -> int:
    """Prints the plan, or starts the job; with `--attach`, goes to the run that is the same, where there is one."""
    if arguments.attach and (same := _submitted_before(arguments)) is not None:
        print(f"{same.name} is the same, and was submitted before; nothing is submitted now", file=sys.stderr)
        return started("submit", same, str(same.job.get("executor")), arguments)
    spec, plan = prepared(arguments)
    dependency = None
    if arguments.after is not None:
        earlier = runs.find(arguments.after, registry(), Path.cwd())
        spec, dependency = following(spec, earlier, Watch(earlier).now())
    if arguments.dry_run:
        return show("submit", spec, plan, is_json=arguments.json, is_copied=arguments.snapshot)
    from launch.verbs.submission import submitted

    return started("submit", submitted(spec, plan, arguments, dependency), spec.executor, arguments)


def _submitted_before(arguments: argparse.Namespace) -> Run | None:
    from launch.verbs.submission import twin_of

    _, spec = draft_of(arguments, is_new=False)
    return twin_of(spec, is_named=bool(arguments.name))


def prepared(arguments: argparse.Namespace) -> tuple[JobSpec, str]:
    """(the job, its whole dry run), with everything checked that needs no claim on the run directory."""
    draft, spec = draft_of(arguments)
    if problems := request_problems(spec):
        raise SettingsError(draft.placed(problems))
    if spec.executor == "slurm":
        spec = replace(spec, kill_wait_s=cluster.kill_wait_s())
    return spec, script.plan_text(spec, cluster.without_outer_job(os.environ))


def draft_of(arguments: argparse.Namespace, *, is_new: bool = True) -> tuple[settings.Draft, JobSpec]:
    """The settings as they were written, and the job that they are where it would run."""
    working_dir = Path.cwd()
    draft = settings.read(request_of(arguments), working_dir, Path.home())
    executor, note = cluster.choose_executor(draft.settings.executor)
    for told in filter(None, (note, found_env_file(working_dir)[1])):
        print(told, file=sys.stderr)
    return draft, settings.resolve(draft, executor, working_dir, is_new=is_new)


def request_problems(spec: JobSpec) -> list[Problem]:
    """What the job asks for and the cluster, or this machine, can't give."""
    if spec.executor == "slurm":
        found = [*cluster.request_problems(spec, cluster.read_partitions()), *cluster.exclude_problems(spec)]
        if not found:
            return []
        from launch import request_checks

        return [*found, *request_checks.other_problems(spec, found)]
    return list(devices.request_problems(spec, devices.num_gpus(os.environ)))


def show(verb: str, spec: JobSpec, plan: str, *, is_json: bool, is_copied: bool = False) -> int:
    """Prints what would be submitted, once the script itself has checked its settings; with the paths of the copy where
    it would run from one."""
    effects.check_script(spec, os.environ)
    if is_copied:
        spec, plan = in_copy(spec)
    if is_json:
        print_json(verb, run=spec.name, path=spec.run_dir, executor=spec.executor, job=spec.to_json(), plan=plan)
        return OK
    # The very bytes of plan.txt, whatever the terminal's encoding.
    sys.stdout.buffer.write(plan.encode("utf-8", errors="surrogateescape"))
    sys.stdout.buffer.flush()
    return OK


def in_copy(spec: JobSpec) -> tuple[JobSpec, str]:
    """(the job, its whole dry run) as `--snapshot` would submit it; nothing is copied."""
    from launch import snapshot

    spec, _ = snapshot.planned(spec)
    return spec, script.plan_text(spec, cluster.without_outer_job(os.environ))


def request_of(arguments: argparse.Namespace) -> settings.Request:
    """What was asked for on the command line."""
    given = {name: getattr(arguments, name.replace("-", "_")) for name, _, _ in options.OPTIONS}
    words = [f"--{name}={value}" for name, value in given.items() if value is not None]
    if arguments.fsdp:
        words.append("--fsdp=true")
    if arguments.preflight:
        words.append("--preflight=true")
    return settings.Request(
        config=arguments.config,
        profile=arguments.profile or os.environ.get(profiles.VARIABLE),
        name=arguments.name,
        options=tuple(words),
        env=tuple(arguments.env),
        script_args=tuple(arguments.script_args),
        defaults=(profiles.sbatch_defaults(os.environ),),
    )
