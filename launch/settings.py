"""Defaults < profile < `launch:` of the settings file < command line → JobSpec."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from launch import places, profiles
from launch import spec as specs
from launch.chain import Chain
from launch.env_settings import env_words_of, with_merged_env
from launch.hosts import host_problems
from launch.secret_values import secret_problems
from launch.site import Container, num_gpus
from launch.spec import JobSpec, Resources, Watchdog
from strict_settings import Problem, SettingsError, Source, at_least, build, parse_command_line, read_yaml
from strict_settings.env_file import found_env_file

MAX_DEFAULT_LEAD_S = 120
EARLY_SIGNAL_S = 60.0
"""So much sooner than asked for Slurm may send a signal, by sbatch(1)."""
Executor = Literal["auto", "slurm", "local"]


@dataclass(frozen=True)
class LaunchSettings(Resources):
    """The `launch:` mapping of a settings file, a profile, and the options of `launch submit`."""

    executor: Executor = "auto"
    """slurm, local (N agents on this machine, or on hosts), or auto: slurm where sbatch answers, without hosts."""
    hosts: tuple[str, ...] = ()
    """Machines without a scheduler, by ssh: each is a node. They share the run directory's disk, and Python's path."""
    ssh_options: tuple[str, ...] = ()
    """Words for ssh, in front of the host: [-p, "2222"]."""
    launcher: Literal["torchrun", "deepspeed", "direct"] = "torchrun"
    """Which program starts the ranks of a node."""
    zero: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO stage: passes ds_configs/zero<stage>.json on as --deepspeed."""
    fsdp: bool = False
    """PyTorch FSDP2: passes --fsdp true on."""
    preflight: bool = False
    """On Slurm: examine the nodes before the ranks start, and go elsewhere without those that are wrong."""
    script: str | None = None
    """Training script; default: sft/train.py of this package."""
    runs_dir: str = "runs"
    """Where run directories are made."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables for the ranks."""
    env_file: str | None = None
    """File of NAME=VALUE lines with secrets for the ranks, of mode 0600; read in the process that starts each rank.
    WANDB_API_KEY and HF_TOKEN are also taken from a `.env` of mode 0600 where you submit, if they are not set."""
    setup: tuple[str, ...] = ()
    """Shell lines that run before the agents, for example `module load cuda`."""
    modules: tuple[str, ...] = ()
    """Modules that are loaded before that, as in `module load`."""
    container: Container | None = None
    """The image in which agents and ranks run: {kind: pyxis, image: …}."""
    cpus_per_gpu: Annotated[int, at_least(1)] | None = None
    """CPUs for each GPU of a node, where cpus_per_task is not given."""
    mem_gb_per_gpu: Annotated[int, at_least(1)] | None = None
    """Memory in GiB for each GPU of a node, where mem_gb is not given."""
    interface: str | None = None
    """Network interface of gloo and NCCL (their *_SOCKET_IFNAME); default: the one that leads to node 0."""
    cache_dir: str | None = None
    """Folder on each node's own disk for code that is compiled on the way (Triton, inductor, extensions)."""
    mail_user: str | None = None
    """Address to which Slurm writes, as in sbatch."""
    mail_type: str | None = None
    """When it does: BEGIN,END,FAIL,REQUEUE, …, as in sbatch; default, with mail_user: END,FAIL."""
    notify: tuple[str, ...] = ()
    """Command that is run when the run begins, goes on or ends, with one JSON object on its stdin."""
    python: str | None = None
    """Python of the job; default: the one that submits."""
    stop_grace_s: Annotated[float, at_least(1)] | None = None
    """How long ranks may take to save once they are told to stop; on Slurm no longer than it waits (KillWait) where it
    stops the job itself. Default: a minute more than signal_lead_s, as Slurm may send that signal a minute early."""
    watchdog: Watchdog = field(default_factory=Watchdog)
    """How long ranks may stand still."""
    chain: Chain | None = None
    """How a run that was stopped, or failed by no fault of its own, goes on: requeue (the same job again), singleton (a
    successor waits in the queue from the start), none. Default: requeue for our own script, none for others."""
    max_restarts: Annotated[int, at_least(0)] = 10
    """How many failures may be followed by another attempt; stops from outside (time limit, preemption) don't count."""
    signal_lead_s: Annotated[int, at_least(1)] | None = None
    """How long before the time limit the ranks are told to save and to end; default: 120, or less for short jobs."""
    import_once: bool = True
    """Fork a node's ranks from one process that imports torch and transformers for them; false: each for itself."""

    def problems(self) -> Iterator[Problem]:
        """What concerns several settings."""
        yield from super().problems()
        yield from host_problems(self.hosts, self.ssh_options)
        if self.hosts and self.executor == "slurm":
            yield Problem("executor", "slurm", "not be given with hosts", "Keep one of them: Slurm chooses the nodes.")
        if self.fsdp and self.zero is not None:
            yield Problem("fsdp", True, "not be given together with zero", "Keep one of them.")
        for line in self.setup:
            if "\n" in line:
                yield Problem("setup", line, "be one shell line per entry", "Write a list of lines.")


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    config: str | None = None
    profile: str | None = None
    name: str | None = None
    options: tuple[str, ...] = ()
    """`--nodes=2` and the other options that are LaunchSettings."""
    env: tuple[str, ...] = ()
    """`NAME=VALUE` words."""
    script_args: tuple[str, ...] = ()
    launch: tuple[Source, ...] = ()
    """Settings that win over those of profile and file, and over which `options` win."""
    defaults: tuple[Source, ...] = ()
    """Settings over which all others win."""


@dataclass(frozen=True)
class Draft:
    """All settings, before the executor is chosen."""

    settings: LaunchSettings
    config: Path | None
    run_name: str | None
    output_dir: str | None
    name: str | None
    script_args: tuple[str, ...]
    places: Mapping[str, str] = field(default_factory=dict)
    """Setting → where it was written: `run.yaml:7` or `--partition`."""

    def placed(self, problems: list[Problem]) -> list[Problem]:
        """The problems with the places of their settings."""
        return [dataclasses.replace(problem, where=self.places.get(problem.field, "")) for problem in problems]


def read(request: Request, working_dir: Path, home: Path) -> Draft:
    """The settings of a request.

    Raises:
        SettingsError: with every problem of the files and the command line.
    """
    problems: list[Problem] = []
    sources: list[Source] = list(request.defaults)
    run_name = output_dir = None
    try:
        if request.profile is not None:
            sources.append(read_yaml(profiles.path_of(request.profile, working_dir, home)))
    except SettingsError as error:
        problems += error.problems
    config = _config_path(request, working_dir)
    try:
        if config is not None:
            everything = read_yaml(config)
            sources.append(_launch_part(everything))
            problems += secret_problems("", everything.values, everything.name)
            run_name, output_dir = (_text(everything, key) for key in ("run_name", "output_dir"))
    except SettingsError as error:
        problems += error.problems
    sources += request.launch
    try:
        sources.append(parse_command_line(LaunchSettings, request.options))
    except SettingsError as error:
        problems += error.problems
    problems += secret_problems("an argument of the script", request.script_args)
    try:
        env_words = env_words_of(request.env)
        problems += secret_problems("env", env_words, "--env")
    except SettingsError as error:
        problems += error.problems
    try:
        settings = build(LaunchSettings, *with_merged_env(sources))
    except SettingsError as error:
        raise SettingsError([*problems, *error.problems]) from error
    if problems:
        raise SettingsError(problems)
    settings = dataclasses.replace(settings, env={**settings.env, **env_words})
    if config is None and settings.script is None:
        config = specs.QUICKSTART_CONFIG
    places = {key: source.where((key,)) for source in sources for key in source.values}
    return Draft(_on_hosts(settings, places), config, run_name, output_dir, request.name, request.script_args, places)


def _on_hosts(settings: LaunchSettings, given: Collection[str]) -> LaunchSettings:
    if not settings.hosts:
        return settings
    nodes = settings.nodes if "nodes" in given else len(settings.hosts)
    return dataclasses.replace(settings, executor="local", nodes=nodes)


def _config_path(request: Request, working_dir: Path) -> Path | None:
    """The settings file that is read for its `launch:` mapping: the given one, or the quick start's."""
    if request.config is not None:
        return working_dir / request.config
    has_script = any(option.startswith("--script=") for option in request.options)
    return None if has_script else specs.QUICKSTART_CONFIG


def _launch_part(everything: Source) -> Source:
    """The `launch:` mapping as a source of its own, with the lines of the file."""
    launch = everything.values.get("launch")
    if launch is not None and not isinstance(launch, Mapping):
        where = everything.where(("launch",))
        raise SettingsError(Problem("launch", launch, "be a mapping", "Write launch: {nodes: 2}.", where))
    return everything.part(("launch",))


def _text(source: Source, key: str) -> str | None:
    value = source.values.get(key)
    if value is not None and not isinstance(value, str):
        remedy = f'Write it in quotes: {key}: "{value}".'
        raise SettingsError(Problem(key, value, "be text", remedy, source.where((key,))))
    return value


def resolve(draft: Draft, executor: Literal["slurm", "local"], working_dir: Path, *, is_new: bool = True) -> JobSpec:
    """The job, with every default filled in and every path absolute.

    Args:
        draft: the settings.
        executor: what will run it.
        working_dir: where it is submitted.
        is_new: its run directory must not be taken.

    Raises:
        SettingsError: missing files, or a run directory that can't be made or is taken.
    """
    settings = draft.settings
    if settings.gres is not None and not settings.gpus_per_node:
        settings = dataclasses.replace(settings, gpus_per_node=num_gpus(settings.gres))
    run_dir, name = _run_directory(draft, working_dir)
    container = settings.container
    script = specs.DEFAULT_SCRIPT if settings.script is None else working_dir / settings.script
    found, _ = found_env_file(working_dir)
    lead_s = settings.signal_lead_s or default_lead_s(settings.time_min)
    job = JobSpec(
        name=name,
        run_dir=str(run_dir),
        executor=executor,
        launcher=settings.launcher,
        resources=_resources(settings, executor),
        script=os.path.abspath(script),
        script_args=_script_args(draft, run_dir),
        working_dir=str(working_dir),
        python=settings.python or (sys.executable if container is None else container.python),
        config=None if draft.config is None else os.path.abspath(draft.config),
        env=dict(settings.env),
        setup=settings.setup,
        modules=settings.modules,
        container=container,
        batch_python=None if container is None else sys.executable,
        interface=settings.interface,
        cache_dir=settings.cache_dir,
        mail_user=settings.mail_user,
        mail_type=settings.mail_type or ("END,FAIL" if settings.mail_user else None),
        notify=settings.notify,
        stop_grace_s=settings.stop_grace_s or default_grace_s(lead_s),
        import_once=settings.import_once,
        hosts=settings.hosts,
        ssh_options=settings.ssh_options,
        watchdog=settings.watchdog,
        chain=settings.chain or ("requeue" if settings.script is None else "none"),
        max_restarts=settings.max_restarts,
        preflight=settings.preflight,
        signal_lead_s=lead_s,
        found_env_file=None if found is None else str(found),
        env_file=None if settings.env_file is None else os.path.abspath(working_dir / settings.env_file),
    )
    taken = places.directory_problems(run_dir) if is_new else ()
    if problems := [*job.problems(), *places.file_problems(job, settings.zero), *taken]:
        raise SettingsError(problems)
    return job


def _resources(settings: LaunchSettings, executor: str) -> Resources:
    """What each node is to give, with what follows from its GPUs."""
    given = {field.name: getattr(settings, field.name) for field in dataclasses.fields(Resources)}
    procs_per_node = settings.procs_per_node or settings.gpus_per_node or 1
    cpus = settings.cpus_per_task or _per_gpu(settings.cpus_per_gpu, settings.gpus_per_node)
    return Resources(
        **given
        | {
            "procs_per_node": procs_per_node,
            "cpus_per_task": cpus or _default_cpus(settings, executor, procs_per_node),
            "mem_gb": settings.mem_gb or _per_gpu(settings.mem_gb_per_gpu, settings.gpus_per_node),
        }
    )


def _default_cpus(settings: LaunchSettings, executor: str, procs_per_node: int) -> int:
    if executor == "slurm" or settings.hosts:
        return procs_per_node
    return max(1, len(os.sched_getaffinity(0)) // settings.nodes)


def _per_gpu(number: int | None, gpus_per_node: int) -> int | None:
    return number * gpus_per_node if number is not None and gpus_per_node else None


def default_lead_s(time_min: int | None) -> int:
    """Two minutes, and at most a third of a short job: Slurm may send the signal up to a minute too early."""
    return MAX_DEFAULT_LEAD_S if time_min is None else min(MAX_DEFAULT_LEAD_S, 60 * time_min // 3)


def default_grace_s(signal_lead_s: int) -> float:
    """So long that it is Slurm that ends a job whose ranks still save, and not we before it."""
    return signal_lead_s + EARLY_SIGNAL_S


def _script_args(draft: Draft, run_dir: Path) -> tuple[str, ...]:
    """The script's arguments. Only our own script is told its settings file and run directory as arguments."""
    settings = draft.settings
    words: list[str] = []
    if settings.script is None:
        words += ["--config", os.path.abspath(draft.config or specs.QUICKSTART_CONFIG), "--output_dir", str(run_dir)]
    if settings.zero is not None:
        words += ["--deepspeed", str(places.zero_file(settings.zero))]
    if settings.fsdp:
        words += ["--fsdp", "true"]
    return (*words, *draft.script_args)


def _run_directory(draft: Draft, working_dir: Path) -> tuple[Path, str]:
    """(directory, name). The file's output_dir is the run directory unless a name is given."""
    settings = draft.settings
    runs = Path(os.path.abspath(working_dir / settings.runs_dir))
    if draft.name is not None:
        if problems := list(specs.name_problems(draft.name)):
            raise SettingsError(problems)
        return runs / draft.name, draft.name
    if draft.output_dir:
        path = Path(os.path.abspath(working_dir / draft.output_dir))
        return path, draft.run_name or path.name
    file_stem = draft.config.stem if draft.config is not None else Path(settings.script or "").stem
    # A file may be called anything; a run_name that somebody chose is refused instead, where it can be no name.
    stem = draft.run_name or re.sub(r"[^A-Za-z0-9_-]+", "-", file_stem).strip("-")[:60] or "run"
    name = base = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    while (runs / name).exists():
        number += 1
        name = f"{base}-{number}"
    return runs / name, name
