"""`launch sweep`: a run for each combination of values, as one Slurm array or one after another on this machine."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch import cluster, options, resuming, script, settings, sweep, sweep_runner
from launch import submit as effects
from launch.checks import facts
from launch.claims import Claim
from launch.errors import OK, LaunchError
from launch.records import read_json, write_json, write_text
from launch.runs import Run
from launch.spec import JobSpec, name_problems
from launch.verbs.common import print_json
from launch.verbs.submission import Examined, examined, examined_like
from launch.verbs.submit import in_copy, request_of, request_problems
from strict_settings import Problem, SettingsError


def run(arguments: argparse.Namespace) -> int:
    """Checks every value, and of the first run all that `submit` does; then starts the sweep."""
    axes = sweep.axes_of(_axis_words(arguments))
    points = sweep.points_of(axes)
    if arguments.parallel < 1:
        raise LaunchError(f"--parallel is {arguments.parallel}; it must be 1 or more.")
    folder, specs = _specs(arguments, points)
    plans = [script.plan_text(spec, cluster.without_outer_job(os.environ)) for spec in specs]
    first, *others = sweep.covering(axes)
    for number in [first, *others] if arguments.dry_run else others:
        effects.check_script(specs[number], os.environ)
    if arguments.dry_run:
        return _show(folder, specs, points, arguments)
    with ExitStack() as stack:
        stack.callback(_remove_if_empty, folder)
        claims = [stack.enter_context(resuming.claimed(Path(spec.run_dir))) for spec in specs]
        ready = _examined(specs, plans, arguments)
        for job in ready:
            effects.fill(job.spec, job.text, job.plan)
            write_json(Path(job.spec.run_dir) / "checks.json", {"checks": facts(job.checks)})
        record = {
            "name": folder.name,
            "axes": {axis.name: axis.values for axis in axes},
            "points": points,
            "parallel": arguments.parallel,
            "created_at": time.time(),
            "token": f"cleansft-{os.urandom(8).hex()}",
        }
        stack.enter_context(_recorded(folder, record, claims))
        job_id = _start(folder, [job.spec for job in ready], claims, record)
    return _started(folder, ready, job_id, arguments)


def _examined(specs: Sequence[JobSpec], plans: Sequence[str], arguments: argparse.Namespace) -> list[Examined]:
    """The jobs, once the first of them was looked at: all ask for the same, and read the same code and files."""
    is_named, audits, is_copied = arguments.name is not None, not arguments.skip_audit, arguments.snapshot
    first = examined(specs[0], plans[0], is_named=is_named, audits=audits, is_copied=is_copied)
    rest = zip(specs[1:], plans[1:], strict=True)
    return [first, *(examined_like(first, spec, plan, is_copied=is_copied) for spec, plan in rest)]


@contextmanager
def _recorded(folder: Path, record: Mapping[str, Any], claims: Sequence[Claim]) -> Iterator[None]:
    """sweep.json, which is taken back where nothing was submitted. The array's token is there before the array."""
    write_json(folder / "sweep.json", dict(record))
    try:
        yield
    except cluster.InDoubtError:
        raise
    except BaseException:
        if not any("job_id" in (read_json(claim.path) or {}) for claim in claims):
            for name in ("sweep.json", "array.sh"):
                (folder / name).unlink(missing_ok=True)
        raise


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


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
    folder = Path(runs_dir / arguments.name)
    if os.path.lexists(folder):
        resuming.adopt_sweep(folder)
        raise LaunchError(f"the sweep's folder is {folder}; it must be new. Choose another --name.")
    return folder


def _array_problems(spec: JobSpec, count: int) -> list[Problem]:
    problems = []
    if spec.chain == "singleton":
        remedy = "Use requeue: each task of the array is requeued by itself."
        problems.append(Problem("chain", spec.chain, "not be given for a sweep", remedy))
    limit = cluster.max_array_size() if spec.executor == "slurm" else None
    if limit is not None and count > limit:
        problems.append(Problem("the number of runs", count, f"be at most {limit}, this cluster's MaxArraySize"))
    return problems


def _show(
    folder: Path, specs: Sequence[JobSpec], points: Sequence[Mapping[str, str]], arguments: argparse.Namespace
) -> int:
    if arguments.snapshot:
        shown = specs if arguments.json else specs[:1]  # of the others the names alone
        specs = [*(in_copy(spec)[0] for spec in shown), *specs[len(shown) :]]
    if arguments.json:
        print_json("sweep", sweep=folder.name, path=str(folder), points=points, jobs=[spec.to_json() for spec in specs])
        return OK
    if specs[0].executor == "slurm":
        print(script.array_text(specs[0], folder), end="")
    for spec, point in zip(specs, points, strict=True):
        print(f"# {spec.name}: " + " ".join(f"{name}={value}" for name, value in point.items()))
    print(f"\n{script.plan_text(specs[0], cluster.without_outer_job(os.environ))}", end="")
    return OK


def _start(folder: Path, specs: Sequence[JobSpec], claims: Sequence[Claim], record: Mapping[str, Any]) -> str:
    """Starts the array, or the runner of this machine, and notes in each run what it is; the job's id."""
    with effects.undisturbed():
        if specs[0].executor == "local":
            return sweep_runner.start(folder, [Path(spec.run_dir) for spec in specs], os.environ)
        write_text(folder / "array.sh", script.array_text(specs[0], folder))
        array = f"0-{len(specs) - 1}%{record['parallel']}"
        try:
            job_id, command = cluster.submit_array(folder / "array.sh", array, record["token"], os.environ)
        except cluster.InDoubtError as error:
            raise cluster.InDoubtError(f"{error} Name it then: --name {folder.name}.") from error
        try:
            for spec, claim in zip(specs, claims, strict=True):
                own = {"executor": "slurm", "job_id": sweep.task_id(job_id, Path(spec.run_dir)), "command": command}
                effects.write_submission(Run(Path(spec.run_dir)), claim, own, os.environ)
        except OSError as error:
            what = f"job {job_id} was submitted, and not every run of {folder.name} could note it: {error}"
            raise cluster.InDoubtError(f"{what}. The same command with --name {folder.name} does.") from error
        return job_id


def _started(folder: Path, jobs: Sequence[Examined], job_id: str, arguments: argparse.Namespace) -> int:
    if arguments.json:
        names, checks = [job.spec.name for job in jobs], facts(jobs[0].checks)
        print_json("sweep", sweep=folder.name, path=str(folder), job_id=job_id, runs=names, checks=checks)
        return OK
    print(f"sweep    {folder.name}, {len(jobs)} runs, at most {arguments.parallel} at a time")
    print(f"folder   {folder}\njob      {job_id} ({jobs[0].spec.executor})")
    print(f"results  python -m launch list --sweep {folder.name}")
    print(f"stop     python -m launch cancel {folder.name}", flush=True)
    return OK
