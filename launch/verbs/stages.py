"""`launch stages`: the jobs that one file describes, each after others; all checked before the first is submitted."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from launch import cluster, executor, options, profiles, resuming, script, settings, stages, sweep
from launch import submit as effects
from launch.claims import Claim
from launch.errors import OK, LaunchError
from launch.members import STAGES
from launch.records import write_json
from launch.runs import Run
from launch.spec import JobSpec, name_problems
from launch.stages import Stage
from launch.verbs.common import print_json
from launch.verbs.submission import Examined, examined, sent
from launch.verbs.submit import in_copy, request_problems
from launch.verbs.wait import wait_for_all
from strict_settings import Problem, SettingsError


@dataclass(frozen=True)
class Planned:
    """A stage and its job."""

    stage: Stage
    spec: JobSpec
    plan: str


def run(arguments: argparse.Namespace) -> int:
    """Checks every stage, then submits them all."""
    folder, planned = _planned(stages.read_stages(arguments.file), arguments)
    if arguments.dry_run:
        _check_scripts(folder, planned)
        if arguments.snapshot:
            planned = [Planned(one.stage, *in_copy(one.spec)) for one in planned]
        return _show(folder, planned, arguments)
    found = _submitted(folder, planned, arguments)
    _tell(folder, planned, found, arguments)
    return wait_for_all("stages", found, is_json=arguments.json) if arguments.wait else OK


def _planned(found: Sequence[Stage], arguments: argparse.Namespace) -> tuple[Path, list[Planned]]:
    """(the folder of the stages, the job of each)."""
    working_dir = Path.cwd()
    problems: list[Problem] = []
    drafts: list[settings.Draft] = []
    for stage in found:
        try:
            drafts.append(settings.read(_request(stage, arguments), working_dir, Path.home()))
        except SettingsError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise SettingsError(problems)
    folder = _folder(arguments, drafts[0].settings.runs_dir, working_dir)
    wanted = {draft.settings.executor for draft in drafts}
    if any(draft.settings.hosts for draft in drafts):
        wanted.discard("auto")  # what has no hosts runs here, from where the others are reached
    if len(wanted) > 1:
        raise LaunchError(f"executor is {' and '.join(sorted(wanted))}; it must be the same for all stages.")
    where, note = cluster.choose_executor(wanted.pop())
    if note:
        print(note, file=sys.stderr)
    directories = {stage.name: str(folder / stage.name) for stage in found}
    specs: list[JobSpec] = []
    for stage, draft in zip(found, drafts, strict=True):
        try:
            specs.append(_spec(stage, draft, where, working_dir, folder, directories))
        except SettingsError as error:
            problems += error.problems
    if problems := problems or _chain_problems(found, specs):
        raise SettingsError(problems)
    inherited = cluster.without_outer_job(os.environ)
    return folder, [
        Planned(stage, spec, script.plan_text(spec, inherited)) for stage, spec in zip(found, specs, strict=True)
    ]


def _request(stage: Stage, arguments: argparse.Namespace) -> settings.Request:
    given = {name: getattr(arguments, name.replace("-", "_")) for name, _, _ in options.STAGES_OPTIONS}
    words = [f"--{name}={value}" for name, value in given.items() if value is not None]
    words += [] if stage.script is None else [f"--script={stage.script}"]
    return settings.Request(
        config=stage.settings.config,
        profile=arguments.profile or os.environ.get(profiles.VARIABLE),
        options=tuple(words),
        script_args=stage.settings.args,
        launch=stage.launch,
        defaults=(profiles.sbatch_defaults(os.environ),),
    )


def _folder(arguments: argparse.Namespace, runs_dir: str, working_dir: Path) -> Path:
    """The folder of the stages, which is not there yet."""
    parent = Path(os.path.abspath(working_dir / runs_dir))
    if arguments.name is None:
        return sweep.free_folder(parent, Path(arguments.file).stem, time.strftime("%Y%m%d-%H%M%S"))
    if problems := list(name_problems(arguments.name)):
        raise SettingsError(problems)
    if os.path.lexists(parent / arguments.name):
        raise LaunchError(f"the stages' folder is {parent / arguments.name}; it must be new. Choose another --name.")
    return Path(parent / arguments.name)


def _spec(
    stage: Stage,
    draft: settings.Draft,
    where: Literal["slurm", "local"],
    working_dir: Path,
    folder: Path,
    directories: Mapping[str, str],
) -> JobSpec:
    own = replace(
        draft,
        settings=replace(draft.settings, runs_dir=str(folder)),
        name=stage.name,
        output_dir=None,
        script_args=stage.script_args(directories),
    )
    spec = settings.resolve(own, where, working_dir)
    after = tuple(directories[name] for name in stage.after)
    spec = replace(spec, name=f"{folder.name}-{stage.name}", after=after)
    problems = [*name_problems(spec.name), *request_problems(spec)]
    if stage.settings.command in stages.ALONE and spec.world_size > 1:
        rule = f"be one process on one node, as {stage.settings.command} is"
        problems.append(Problem(f"stages.{stage.name}.launch", spec.world_size, rule, "Leave nodes and processes out."))
    if problems:
        raise SettingsError(draft.placed(problems))
    return replace(spec, kill_wait_s=cluster.kill_wait_s()) if spec.executor == "slurm" else spec


def _chain_problems(found: Sequence[Stage], specs: Sequence[JobSpec]) -> list[Problem]:
    followed = {name for stage in found for name in stage.after}
    return [
        Problem("chain", spec.chain, f"not be given for {stage.name}, which others follow", "Use requeue.")
        for stage, spec in zip(found, specs, strict=True)
        if spec.executor == "slurm" and spec.chain == "singleton" and stage.name in followed
    ]


def _check_scripts(folder: Path, planned: Sequence[Planned]) -> None:
    """Lets the scripts check their words. What they are to find of other stages is made elsewhere for so long."""
    with tempfile.TemporaryDirectory(prefix="cleansft-stages-") as stand_in:
        for one in planned:
            Path(stand_in, one.stage.name).mkdir()
        for one in planned:
            words = tuple(word.replace(str(folder), stand_in) for word in one.spec.script_args)
            with _naming(one.stage):
                effects.check_script(replace(one.spec, script_args=words), os.environ)


@contextlib.contextmanager
def _naming(stage: Stage) -> Iterator[None]:
    """Says which stage it is whose check is refused."""
    try:
        yield
    except LaunchError:
        print(f"stage {stage.name} is refused:", file=sys.stderr)
        raise


def _submitted(folder: Path, planned: Sequence[Planned], arguments: argparse.Namespace) -> list[Run]:
    """Starts the jobs, once all of them may be; their runs."""
    with ExitStack() as stack:
        claims = [stack.enter_context(resuming.claimed(Path(one.spec.run_dir))) for one in planned]
        ready = [_examined(one, arguments) for one in planned]
        return _sent(folder, planned, ready, claims)


def _examined(one: Planned, arguments: argparse.Namespace) -> Examined:
    print(f"stage {one.stage.name}", file=sys.stderr)
    audits = not arguments.skip_audit and not one.stage.needs_others  # a tokenizer or data that are still to come
    is_named = arguments.name is not None
    with _naming(one.stage):
        return examined(one.spec, one.plan, is_named=is_named, audits=audits, is_copied=arguments.snapshot)


def _sent(folder: Path, planned: Sequence[Planned], ready: Sequence[Examined], claims: Sequence[Claim]) -> list[Run]:
    """Starts one after another; where one is refused, those before it are cancelled."""
    record = [{"name": one.stage.name, "after": list(one.stage.after)} for one in planned]
    write_json(folder / STAGES, {"name": folder.name, "stages": record, "created_at": time.time()})
    sent_ones: dict[str, Run] = {}
    try:
        for one, job, claim in zip(planned, ready, claims, strict=True):
            ids = [sent_ones[name].job_id for name in one.stage.after]
            dependency = f"afterok:{':'.join(ids)}" if ids and one.spec.executor == "slurm" else None
            sent_ones[one.stage.name] = sent(job, claim, dependency)
    except BaseException:
        for found in reversed(sent_ones.values()):
            with contextlib.suppress(LaunchError):
                executor.cancel(found)
        if sent_ones:
            print(f"{', '.join(sent_ones)} had been submitted, and are cancelled", file=sys.stderr)
        else:
            (folder / STAGES).unlink(missing_ok=True)
        raise
    return list(sent_ones.values())


def _show(folder: Path, planned: Sequence[Planned], arguments: argparse.Namespace) -> int:
    if arguments.json:
        facts = [
            {"stage": one.stage.name, "after": one.stage.after, "job": one.spec.to_json(), "plan": one.plan}
            for one in planned
        ]
        print_json("stages", stages=folder.name, path=str(folder), jobs=facts)
        return OK
    for one in planned:
        after = f", after {' and '.join(one.stage.after)}" if one.stage.after else ""
        print(f"# ########## stage {one.stage.name}{after} ##########\n{one.plan}")
    return OK


def _tell(folder: Path, planned: Sequence[Planned], found: Sequence[Run], arguments: argparse.Namespace) -> None:
    if arguments.json:
        facts = [
            {"stage": one.stage.name, "after": one.stage.after, "run": run.name, "path": str(run.path)}
            | {"job_id": run.job_id}
            for one, run in zip(planned, found, strict=True)
        ]
        print_json("stages", stages=folder.name, path=str(folder), executor=planned[0].spec.executor, runs=facts)
        return
    print(f"stages   {folder.name}\nfolder   {folder}")
    for one, run in zip(planned, found, strict=True):
        after = f", after {' and '.join(one.stage.after)}" if one.stage.after else ""
        print(f"         {one.stage.name}: job {run.job_id} ({one.spec.executor}){after}")
    print(f"look     python -m launch list --runs-dir {folder}")
    print(f"stop     python -m launch cancel {folder.name}", flush=True)
