"""What a partition and a quality of service allow beyond what each node has, against what a job asks for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from launch import jobs
from launch.errors import LaunchError
from launch.spec import JobSpec
from strict_settings import Problem, with_suggestion

_MB_PER_GIB = 1024
_OPEN = ("", "ALL", "UNLIMITED", "INFINITE", "N/A", "(null)", "NONE")


@dataclass(frozen=True)
class Qos:
    """A quality of service, as far as one job can exceed it; None where there is no limit."""

    name: str
    max_time_min: int | None = None
    max_nodes: int | None = None
    max_cpus: int | None = None
    max_gpus: int | None = None


@dataclass(frozen=True)
class Limits:
    """What a partition allows; None, or empty, where there is no limit."""

    partition: str
    state: str = "UP"
    min_nodes: int = 0
    max_nodes: int | None = None
    max_time_min: int | None = None
    default_time_min: int | None = None
    max_cpus_per_node: int | None = None
    max_mem_per_node_mb: int | None = None
    node_mem_mb: int | None = None
    """The most memory that a node of it has."""
    num_nodes: int = 0
    nodes_by_state: dict[str, int] = field(default_factory=dict)
    """`idle` → how many nodes are in that state, in sinfo's words."""
    gpu_kinds: tuple[str, ...] = ()
    """What its GPUs are called, where the cluster says so: `h100`."""
    allowed_qos: tuple[str, ...] = ()
    denied_qos: tuple[str, ...] = ()
    allowed_accounts: tuple[str, ...] = ()
    denied_accounts: tuple[str, ...] = ()
    qos: str | None = None
    """The partition's own quality of service, whose limits hold for every job in it."""

    @property
    def num_usable(self) -> int:
        """Nodes that are up, or come back by themselves."""
        out = ("down", "drain", "drng", "fail", "maint", "unk", "inval", "no_respond")
        return sum(count for state, count in self.nodes_by_state.items() if not state.startswith(out))


def read_limits(partition: str | None) -> list[Limits]:
    """The limits of each partition of `a,b`, or of the cluster's default one; of those alone that Slurm tells of."""
    try:
        shown = jobs.command("scontrol", "show", "partition", "--oneliner")
        nodes = jobs.command("sinfo", "-h", "-e", "-o", "%R|%D|%t|%m|%G")
    except LaunchError:
        return []
    if shown.returncode or nodes.returncode:
        return []
    names: list[str | None] = [*partition.split(",")] if partition is not None else [None]
    found = [parse_limits(shown.stdout, nodes.stdout, name) for name in dict.fromkeys(names)]
    return [limits for limits in found if limits is not None]


def parse_limits(shown: str, nodes: str, partition: str | None) -> Limits | None:
    """The limits in `scontrol show partition --oneliner` and `sinfo -h -e -o '%R|%D|%t|%m|%G'`. Pure.

    Args:
        shown: a line for each partition.
        nodes: a line for each kind of node in each partition.
        partition: the one that is meant; None for the default one.
    """
    for line in shown.splitlines():
        words = dict(re.findall(r"(?:^|\s)([A-Za-z]+)=(\S*)", line))
        name = words.get("PartitionName")
        if name is not None and (name == partition or (partition is None and words.get("Default") == "YES")):
            return _limits(name, words, nodes)
    return None


def _limits(name: str, words: dict[str, str], nodes: str) -> Limits:
    by_state: dict[str, int] = {}
    memory: list[int] = []
    kinds: list[str] = []
    for line in nodes.splitlines():
        owner, count, state, megabytes, gres = line.strip().split("|")
        if owner == name:
            kinds += re.findall(r"(?:^|,)gpu:([^,:(]+):\d", gres)
            state = re.sub(r"[^a-z_]", "", state.lower())
            by_state[state] = by_state.get(state, 0) + int(count)
            memory.append(int(megabytes.rstrip("+")))
    return Limits(
        name,
        state=words.get("State", "UP"),
        min_nodes=_number(words.get("MinNodes", "")) or 0,
        max_nodes=_number(words.get("MaxNodes", "")),
        max_time_min=minutes(words.get("MaxTime", "")),
        default_time_min=minutes(words.get("DefaultTime", "")),
        max_cpus_per_node=_number(words.get("MaxCPUsPerNode", "")),
        max_mem_per_node_mb=_number(words.get("MaxMemPerNode", "")),
        node_mem_mb=max(memory, default=None),
        num_nodes=sum(by_state.values()),
        nodes_by_state=by_state,
        gpu_kinds=tuple(dict.fromkeys(kinds)),
        allowed_qos=_names(words.get("AllowQos", "")),
        denied_qos=_names(words.get("DenyQos", "")),
        allowed_accounts=_names(words.get("AllowAccounts", "")),
        denied_accounts=_names(words.get("DenyAccounts", "")),
        qos=next(iter(_names(words.get("QoS", ""))), None),
    )


def read_qos() -> dict[str, Qos]:
    """Name → quality of service; empty without an accounting database."""
    try:
        shown = jobs.command("sacctmgr", "-n", "-P", "show", "qos", "format=Name,MaxWall,MaxTRESPerJob")
    except LaunchError:
        return {}
    return parse_qos(shown.stdout) if shown.returncode == 0 else {}


def parse_qos(text: str) -> dict[str, Qos]:
    """From `sacctmgr -n -P show qos format=Name,MaxWall,MaxTRESPerJob`. Pure."""
    found = {}
    for line in text.splitlines():
        name, wall, tres = (*line.strip().split("|"), "", "")[:3]
        counts = dict(word.partition("=")[::2] for word in tres.split(",") if word)
        gpus = next((count for key, count in counts.items() if key.startswith("gres/gpu")), "")
        found[name] = Qos(
            name, minutes(wall), _number(counts.get("node", "")), _number(counts.get("cpu", "")), _number(gpus)
        )
    return found


def minutes(limit: str) -> int | None:
    """`1-02:30:00` → 1590, in whole minutes upwards; None for no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if match is None:
        return None
    days, hours, whole, seconds = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + whole + (seconds > 0)


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _names(text: str) -> tuple[str, ...]:
    return () if text in _OPEN else tuple(text.split(","))


def limit_problems(spec: JobSpec, limits: Limits, qualities: dict[str, Qos]) -> Iterator[Problem]:
    """What the partition, or the quality of service, does not allow: Slurm would refuse it, or let it wait for ever."""
    resources, here = spec.resources, f"partition {limits.partition!r}"
    if limits.state in ("INACTIVE", "DRAIN"):
        yield Problem("partition", limits.partition, f"take jobs; it is {limits.state}", "Choose another one.")
    if limits.max_nodes is not None and resources.nodes > limits.max_nodes:
        yield Problem("nodes", resources.nodes, f"be at most {limits.max_nodes}, what {here} allows a job")
    if resources.nodes < limits.min_nodes:
        yield Problem("nodes", resources.nodes, f"be at least {limits.min_nodes}, what {here} asks of a job")
    cpus = limits.max_cpus_per_node
    if cpus is not None and spec.cpus_per_task > cpus:
        yield Problem("cpus_per_task", spec.cpus_per_task, f"be at most {cpus}, what {here} allows on a node")
    yield from _memory_problems(spec, limits)
    for kind, given, allowed, denied in (
        ("account", resources.account, limits.allowed_accounts, limits.denied_accounts),
        ("qos", resources.qos, limits.allowed_qos, limits.denied_qos),
    ):
        if given is not None and ((allowed and given not in allowed) or given in denied):
            remedy = f"Allowed: {', '.join(allowed)}." if allowed else f"All but {', '.join(denied)} are."
            yield Problem(kind, given, f"be one that {here} allows", remedy)
    if resources.qos is not None and qualities and resources.qos not in qualities:
        remedy = with_suggestion(resources.qos, qualities)
        yield Problem("qos", resources.qos, "be one of this cluster", remedy)
    for name in dict.fromkeys(filter(None, (limits.qos, resources.qos))):
        if name in qualities:
            yield from _qos_problems(spec, qualities[name])


def _memory_problems(spec: JobSpec, limits: Limits) -> Iterator[Problem]:
    wanted = spec.resources.mem_gb
    bounds = [
        (limits.max_mem_per_node_mb, "allows on a node"),
        (limits.node_mem_mb, "has on its largest node"),
    ]
    known = [(megabytes, what) for megabytes, what in bounds if megabytes]
    if wanted is not None and known:
        megabytes, what = min(known)
        if wanted * _MB_PER_GIB > megabytes:
            rule = f"be at most {megabytes // _MB_PER_GIB}, what partition {limits.partition!r} {what}"
            yield Problem("mem_gb", wanted, rule)


def _qos_problems(spec: JobSpec, qos: Qos) -> Iterator[Problem]:
    resources, here = spec.resources, f"the limit of qos {qos.name!r}"
    for name, wanted, limit, unit in (
        ("nodes", resources.nodes, qos.max_nodes, ""),
        ("cpus_per_task", resources.nodes * spec.cpus_per_task, qos.max_cpus, " CPUs in all"),
        ("gpus_per_node", resources.nodes * resources.gpus_per_node, qos.max_gpus, " GPUs in all"),
        ("time_min", resources.time_min or 0, qos.max_time_min, ""),
    ):
        if limit is not None and wanted > limit:
            yield Problem(name, wanted, f"be at most {limit}{unit}, {here}")
