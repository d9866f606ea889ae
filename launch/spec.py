"""JobSpec: everything about a job that is known before it is submitted. A frozen value, kept as job.json."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from launch.chain import Chain
from launch.site import Container, module_problems
from strict_settings import Problem, at_least

ROOT = Path(__file__).resolve().parent.parent
"""Where launch, sft, strict_settings and ds_configs stand side by side: the clone, or site-packages."""
DEFAULT_SCRIPT = ROOT / "sft" / "train.py"
COMMANDS_SCRIPT = ROOT / "sft" / "__main__.py"
"""`python -m sft`, by its path."""
CheckedCommand = Literal["evaluate", "export", "optimize-prompt", "report"]
"""Its commands that can check their words without doing anything."""
QUICKSTART_CONFIG = ROOT / "sft" / "quickstart" / "run.yaml"


def python_path(environ: Mapping[str, str]) -> str:
    """PYTHONPATH with which a command of ours finds these packages first, wherever it is started."""
    return os.pathsep.join(filter(None, (str(ROOT), environ.get("PYTHONPATH"))))


MAX_NAME_LENGTH = 100
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OURS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_INTERFACE = re.compile(r"[A-Za-z0-9_.:^=,-]{1,64}")
_SBATCH_WORD = re.compile(r"[A-Za-z0-9._:,@=+\[\]&|*()/-]+")


@dataclass(frozen=True)
class Resources:
    """What the job asks of the cluster. Names as in Slurm, units in the names."""

    nodes: Annotated[int, at_least(1)] = 1
    """Number of nodes."""
    procs_per_node: Annotated[int, at_least(1)] | None = None
    """Processes (ranks) per node; default: gpus_per_node, or 1 without GPUs."""
    gpus_per_node: Annotated[int, at_least(0)] = 0
    """GPUs per node."""
    gres: str | None = None
    """Generic resources per node, as in sbatch --gres, where a site does not take --gpus-per-node: gpu:h100:8."""
    cpus_per_task: Annotated[int, at_least(1)] | None = None
    """CPUs per node, as one task runs on each; default: procs_per_node on Slurm, an equal share locally."""
    mem_gb: Annotated[int, at_least(1)] | None = None
    """Memory per node in GiB; default: the partition's."""
    time_min: Annotated[int, at_least(1)] | None = None
    """Time limit in minutes; default: the partition's."""
    partition: str | None = None
    """Slurm partition; default: the cluster's."""
    account: str | None = None
    """Slurm account to charge."""
    qos: str | None = None
    """Slurm quality of service."""
    constraint: str | None = None
    """Node features, as in sbatch --constraint."""
    exclude: str | None = None
    """Nodes to avoid, as in sbatch --exclude."""

    def problems(self) -> Iterator[Problem]:
        """Words that would not survive in an `#SBATCH` line."""
        for name in ("partition", "account", "qos", "constraint", "exclude", "gres"):
            value = getattr(self, name)
            if value is not None and not _SBATCH_WORD.fullmatch(value):
                yield Problem(name, value, "be one word without spaces or quotes", "Write it as sbatch expects it.")


@dataclass(frozen=True)
class Watchdog:
    """How long ranks may stand still before the job is ended with code 12. For our own training script, which tells its
    progress; other scripts are not judged."""

    enabled: bool = True
    """false: ranks may hang for as long as the job has time."""
    start_s: Annotated[float, at_least(1)] = 300.0
    """From one stage of loading to the next, and for the first step."""
    step_s: Annotated[float, at_least(1)] = 9.0
    """For a step, at least; more where the run's own steps are slow."""
    step_factor: Annotated[float, at_least(2)] = 5.0
    """A step may take so many times the slowest of the recent ones."""
    checkpoint_s: Annotated[float, at_least(1)] = 300.0
    """While saving, without a byte that any rank gets to the disk; for one file of the final model."""
    evaluation_s: Annotated[float, at_least(1)] = 300.0
    """For one batch of an evaluation."""


@dataclass(frozen=True)
class JobSpec:
    """A job, resolved: every default filled in, every path absolute."""

    name: str
    run_dir: str
    executor: Literal["slurm", "local"]
    launcher: Literal["torchrun", "deepspeed", "direct"]
    resources: Resources
    script: str
    script_args: tuple[str, ...]
    working_dir: str
    python: str
    config: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    container: Container | None = None
    batch_python: str | None = None
    """Python of the batch script, where `python` is that of a container."""
    interface: str | None = None
    cache_dir: str | None = None
    sweep: str | None = None
    """The sweep that it is a run of."""
    after: tuple[str, ...] = ()
    """Directories of the runs that must be complete before this one begins."""
    mail_user: str | None = None
    mail_type: str | None = None
    notify: tuple[str, ...] = ()
    stop_grace_s: float = 180.0
    """From the request to stop until the ranks are ended, in which they save."""
    kill_wait_s: float | None = None
    """From Slurm's SIGTERM to its SIGKILL; None where there is no such limit."""
    watchdog: Watchdog = field(default_factory=Watchdog)
    chain: Chain = "none"
    max_restarts: int = 10
    signal_lead_s: int = 120
    import_once: bool = True
    """Whether a node's ranks are forked from one process that imports for them, where the script has a file for it."""
    env_file: str | None = None
    """A file of variables that hold secrets, which the ranks' wrappers read."""
    code_root: str | None = None
    """Where launch and sft stand in the copy of the code that the job runs from; None: where they were submitted."""
    preflight: bool = False
    """Whether the job examines its nodes before its ranks start, and goes elsewhere where one is wrong."""
    found_env_file: str | None = None
    """A `.env` that was found where the job was submitted; two names of it are taken (`launch.env_file`)."""
    resume_args: tuple[str, ...] = ()
    """What `launch resume` has added to the script's arguments."""
    hosts: tuple[str, ...] = ()
    """The machines that are the nodes, by ssh; empty: nodes are Slurm's, or agents on this machine."""
    ssh_options: tuple[str, ...] = ()
    """Words for ssh, in front of the host."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether its nodes are machines of their own: Slurm's, or hosts; not agents on this one."""
        return self.executor == "slurm" or bool(self.hosts)

    @property
    def checks_itself(self) -> bool:
        """Whether the script can check its words (`--check`) without doing anything."""
        if Path(self.script) == self.own(COMMANDS_SCRIPT):
            return bool(self.script_args) and self.script_args[0] in get_args(CheckedCommand)
        return self.is_our_trainer

    @property
    def is_our_trainer(self) -> bool:
        """Whether the script is ours, sft/train.py: here, or in the copy of the code that the job runs from."""
        return Path(self.script) == self.own(DEFAULT_SCRIPT)

    def own(self, path: Path) -> Path:
        """Where a file of these packages stands for the job."""
        return path if self.code_root is None else Path(self.code_root) / path.relative_to(ROOT)

    @property
    def host_python(self) -> str:
        """Python outside of any container."""
        return self.batch_python or self.python

    @property
    def procs_per_node(self) -> int:
        """Ranks on each node."""
        return self.resources.procs_per_node or 1

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.resources.nodes * self.procs_per_node

    @property
    def cpus_per_task(self) -> int:
        """CPUs that the agent and its ranks share on one node."""
        return self.resources.cpus_per_task or 1

    def problems(self) -> Iterator[Problem]:
        """What no type can hold: names, variables, and paths that Slurm would rewrite."""
        yield from self.resources.problems()
        yield from name_problems(self.name)
        if self.hosts and self.resources.nodes != len(self.hosts):
            rule = f"be {len(self.hosts)}, the number of hosts"
            yield Problem("nodes", self.resources.nodes, rule, "Leave it out, or name as many hosts.")
        if self.hosts and self.executor == "slurm":
            yield Problem("hosts", ",".join(self.hosts), "not be given for a job on Slurm", "Slurm chooses the nodes.")
        if any(character in self.run_dir for character in "%\\") or not self.run_dir.isprintable():
            rule = "hold no %, backslash or control character"
            yield Problem("the run directory", self.run_dir, rule, "Slurm rewrites them in paths: choose another one.")
        limit_s = 60 * self.resources.time_min if self.resources.time_min is not None else None
        if limit_s is not None and self.signal_lead_s >= limit_s:
            rule = f"be less than the time limit, {limit_s} s (time_min is {self.resources.time_min})"
            yield Problem("signal_lead_s", self.signal_lead_s, rule, "Ask for more time, or for an earlier signal.")
        if limit_s is not None and self.stop_grace_s < self.signal_lead_s:
            rule = f"be signal_lead_s ({self.signal_lead_s} s) or more: that is how long the job has for its last save"
            yield Problem("stop_grace_s", self.stop_grace_s, rule, "Leave it out, or lower signal_lead_s.")
        for name, value in self.env.items():
            yield from _variable_problems(name, value)
        yield from module_problems(self.modules)
        for name in ("mail_user", "mail_type"):
            value = getattr(self, name)
            if value is not None and not _SBATCH_WORD.fullmatch(value):
                yield Problem(name, value, "be one word without spaces or quotes", "Write it as sbatch expects it.")
        if self.container is not None:
            yield from self._container_problems(self.container)
        if self.interface is not None and not _INTERFACE.fullmatch(self.interface):
            yield Problem("interface", self.interface, "be the name of a network interface, such as ib0")
        if self.cache_dir is not None and not os.path.isabs(self.cache_dir):
            yield Problem("cache_dir", self.cache_dir, "be an absolute path on the nodes")

    def _container_problems(self, container: Container) -> Iterator[Problem]:
        yield from container.problems()
        if self.executor == "local":
            remedy = "Take the container out, or run the launcher itself inside it."
            where = "with hosts" if self.hosts else "where the nodes run on this machine"
            yield Problem("container", container.kind, f"not be given {where}", remedy)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for job.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> JobSpec:
        """The spec that `to_json` gave."""
        lists = {
            name: tuple(data[name] or ())
            for name in ("script_args", "setup", "resume_args", "modules", "notify", "after", "hosts", "ssh_options")
            if name in data
        }
        nested: dict[str, Any] = {
            "resources": Resources(**data["resources"]),
            "watchdog": Watchdog(**data.get("watchdog", {})),
        }
        if (given := data.get("container")) is not None:
            nested["container"] = Container(**{**given, "mounts": tuple(given["mounts"])})
        return cls(**{**data, **lists, **nested})


def name_problems(name: str) -> Iterator[Problem]:
    """Whether `name` can be a folder, a Slurm job name and a word on the command line."""
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME_LENGTH:
        rule = f"be 1 to {MAX_NAME_LENGTH} of A-Z a-z 0-9 . _ - and begin with none of . -"
        yield Problem("the run's name", name, rule, "Choose another --name.")


def _variable_problems(name: str, value: str) -> Iterator[Problem]:
    if not _VARIABLE.fullmatch(name):
        yield Problem("the name of an environment variable", name, "be letters, digits and _", "Write NAME=VALUE.")
    elif name in _OURS or name.startswith(("SLURM_", "CLEANSFT_", "TORCHELASTIC_")):
        yield Problem(f"env.{name}", value, "not be given", "The launcher sets it for each rank.")
    if "\0" in value:
        yield Problem(f"env.{name}", value, "hold no NUL character")
