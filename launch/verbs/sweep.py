"""`launch sweep`: a run for each combination of values, as one Slurm array or one after another on this machine."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from launch import cluster, options, resuming, script, settings, sweep, sweep_runner
from launch import submit as effects
from launch.claims import Claim
from launch.errors import OK, LaunchError
from launch.records import make_directory, write_json, write_text
from launch.runs import Run
from launch.spec import JobSpec, name_problems
from launch.verbs.common import print_json
from launch.verbs.submit import request_of, request_problems
from strict_settings import Problem, SettingsError


def run(arguments: argparse.Namespace) -> int:
    """Checks every value, then starts the sweep."""
    axes = sweep.axes_of(_axis_words(arguments))
    points = sweep.points_of(axes)
    if arguments.parallel < 1:
        raise LaunchError(f"--parallel is {arguments.parallel}; it must be 1 or more.")
    folder, specs = _specs(arguments, points)
    plans = [script.plan_text(spec, cluster.without_outer_job(os.environ)) for spec in specs]
    for number in sweep.covering(axes):
        effects.check_script(specs[number], os.environ)
    if arguments.dry_run:
        return _show(folder, specs, points, arguments)
    if not arguments.skip_audit and (said := effects.audit_data(specs[0], os.environ)):
        print(said, file=sys.stderr)
    with ExitStack() as stack:
        claims = [stack.enter_context(resuming.claimed(Path(spec.run_dir))) for spec in specs]
        for spec, plan in zip(specs, plans, strict=True):
            effects.fill(spec, script.script_text(spec), plan)
        record = {"name": folder.name, "axes": {axis.name: axis.values for axis in axes}, "points": points}
        write_json(folder / "sweep.json", record | {"parallel": arguments.parallel, "created_at": time.time()})
        job_id = _start(folder, specs, claims, arguments.parallel)
    return _started(folder, specs, job_id, arguments)


def _axis_words(arguments: argparse.Namespace) -> list[str]:
    """The axes; a first word that is none is the settings file."""
    words = list(arguments.axes)
    if words and "=" not in words[0]:
        if arguments.config is not None:
            raise LaunchError(f"the settings file is {words[0]!r} and --config {arguments.config}; it must be one.")
        arguments.config = words.pop(0)
    return words


def _specs(arguments: argparse.Namespace, points: Sequence[Mapping[str, str]]) -> tuple[Path, list[JobSpec]]:
    """(the sweep's folder, the job of each point)."""
    working_dir = Path.cwd()
    request = request_of(arguments)
    draft = settings.read(replace(request, name=None), working_dir, Path.home())
    executor, note = cluster.choose_executor(draft.settings.executor)
    if note:
        print(note, file=sys.stderr)
    folder = _folder(arguments, draft, working_dir)
    within = replace(draft.settings, runs_dir=str(folder))
    specs = []
    for number, point in enumerate(points):
        own = options.without_options(draft.script_args, point)
        words = (*own, *(f"--{name}={value}" for name, value in point.items()))
        one = replace(draft, settings=within, name=str(number), script_args=words, output_dir=None)
        spec = settings.resolve(one, executor, working_dir)
        specs.append(replace(spec, name=f"{folder.name}-{number}", sweep=folder.name))
    first = specs[0]
    problems = [*name_problems(specs[-1].name), *request_problems(first), *_array_problems(first, len(specs))]
    if problems:
        raise SettingsError(draft.placed(problems))
    if executor == "slurm":
        kill_wait_s = cluster.kill_wait_s()
        specs = [replace(spec, kill_wait_s=kill_wait_s) for spec in specs]
    return folder, specs


def _folder(arguments: argparse.Namespace, draft: settings.Draft, working_dir: Path) -> Path:
    runs_dir = Path(os.path.abspath(working_dir / draft.settings.runs_dir))
    if arguments.name is None:
        stem = Path(draft.config or draft.settings.script or "sweep").stem
        return sweep.free_folder(runs_dir, f"{stem}-sweep", time.strftime("%Y%m%d-%H%M%S"))
    if problems := list(name_problems(arguments.name)):
        raise SettingsError(problems)
    if os.path.lexists(runs_dir / arguments.name):
        raise LaunchError(f"the sweep's folder is {runs_dir / arguments.name}; it must be new. Choose another --name.")
    return Path(runs_dir / arguments.name)


def _array_problems(spec: JobSpec, count: int) -> list[Problem]:
    problems = []
    if spec.chain == "singleton":
        remedy = "Use requeue: each task of the array is requeued by itself."
        problems.append(Problem("chain", spec.chain, "not be given for a sweep", remedy))
    limit = cluster.max_array_size() if spec.executor == "slurm" else None
    if limit is not None and count >= limit:
        problems.append(Problem("the number of runs", count, f"be below {limit}, this cluster's MaxArraySize"))
    return problems


def _show(
    folder: Path, specs: Sequence[JobSpec], points: Sequence[Mapping[str, str]], arguments: argparse.Namespace
) -> int:
    if arguments.json:
        print_json("sweep", sweep=folder.name, path=str(folder), points=points, jobs=[spec.to_json() for spec in specs])
        return OK
    if specs[0].executor == "slurm":
        print(script.array_text(specs[0], folder), end="")
    for spec, point in zip(specs, points, strict=True):
        print(f"# {spec.name}: " + " ".join(f"{name}={value}" for name, value in point.items()))
    print(f"\n{script.plan_text(specs[0], cluster.without_outer_job(os.environ))}", end="")
    return OK


def _start(folder: Path, specs: Sequence[JobSpec], claims: Sequence[Claim], parallel: int) -> str:
    """Starts the array, or the runner of this machine, and notes in each run what it is; the job's id."""
    found = [Run(Path(spec.run_dir)) for spec in specs]
    if specs[0].executor == "slurm":
        write_text(folder / "array.sh", script.array_text(specs[0], folder))
        for spec in specs:
            make_directory(Path(spec.run_dir) / "logs")
        array = f"0-{len(specs) - 1}%{parallel}"
        job_id, command = cluster.submit_array(
            folder / "array.sh", array, f"cleansft-{os.urandom(8).hex()}", os.environ
        )
        for number, (one, claim) in enumerate(zip(found, claims, strict=True)):
            submission = {"executor": "slurm", "job_id": f"{job_id}_{number}", "command": command}
            effects.write_submission(one, claim, submission, os.environ)
        return job_id
    with effects.undisturbed():
        return sweep_runner.start(folder, [Path(spec.run_dir) for spec in specs], os.environ)


def _started(folder: Path, specs: Sequence[JobSpec], job_id: str, arguments: argparse.Namespace) -> int:
    if arguments.json:
        print_json("sweep", sweep=folder.name, path=str(folder), job_id=job_id, runs=[spec.name for spec in specs])
        return OK
    print(f"sweep    {folder.name}, {len(specs)} runs, at most {arguments.parallel} at a time")
    print(f"folder   {folder}\njob      {job_id} ({specs[0].executor})")
    print(f"results  python -m launch list --sweep {folder.name}")
    print(f"stop     python -m launch cancel {folder.name}", flush=True)
    return OK
