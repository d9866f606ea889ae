"""Profiles: launch settings of one cluster in a file. Where they lie, and a first one by what Slurm says of itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.errors import LaunchError
from launch.site import num_gpus
from launch.spec import ROOT
from strict_settings import Problem, SettingsError, Source
from strict_settings import with_suggestion as suggestion

VARIABLE = "CLEANSFT_PROFILE"
"""Environment variable that names the profile where --profile does not."""
EXAMPLES = "example-"
MAX_DEFAULT_TIME_MIN = 24 * 60
_MEMORY_SHARE = 0.95
"""Of what Slurm says that a node has: some sites keep a part, and refuse a request for all of it."""


def folders(working_dir: Path, home: Path) -> list[Path]:
    """Where profiles are looked for, the nearest first: the project's, the user's."""
    return [working_dir / "slurm" / "profiles", home / ".config" / "cleansft" / "profiles"]


def path_of(name: str, working_dir: Path, home: Path) -> Path:
    """The file that is meant by a path or a profile's name.

    Raises:
        SettingsError: there is none.
    """
    places = [working_dir / name, *(folder / f"{name}.yaml" for folder in folders(working_dir, home))]
    for path in places:
        if path.is_file():
            return path
    known = [path.stem for path in all_profiles(working_dir, home)]
    looked = f"Looked for {', '.join(str(path) for path in places)}. `python -m launch profiles init` makes one."
    remedy = suggestion(name, known) if known else looked
    raise SettingsError(Problem("profile", name, "be a file or the name of a profile", remedy, "--profile"))


def all_profiles(working_dir: Path, home: Path) -> Iterator[Path]:
    """All profiles, each name once: the nearest hides others of its name."""
    seen = set()
    for folder in folders(working_dir, home):
        for path in sorted(folder.glob("*.yaml")):
            if path.stem not in seen:
                seen.add(path.stem)
                yield path


def examples() -> list[Path]:
    """The examples that come with the launcher."""
    for folder in (ROOT / "slurm" / "profiles", ROOT / "launch" / "slurm" / "profiles"):
        if folder.is_dir():
            return sorted(folder.glob("*.yaml"))
    return []


# --- a user's own defaults

SBATCH_DEFAULTS = {
    "account": "SBATCH_ACCOUNT",
    "partition": "SBATCH_PARTITION",
    "qos": "SBATCH_QOS",
    "constraint": "SBATCH_CONSTRAINT",
    "time_min": "SBATCH_TIMELIMIT",
}
"""Setting → the variable in which sbatch takes it. To sbatch they would win over what the batch script says."""


def sbatch_defaults(environ: Mapping[str, str]) -> Source:
    """A user's own defaults of sbatch, as settings: they count where neither run nor profile says anything. Pure."""
    given = {field: environ.get(name, "").strip() for field, name in SBATCH_DEFAULTS.items()}
    values: dict[str, str | int | None] = {**given, "time_min": _time_min(given["time_min"])}
    known = {field: value for field, value in values.items() if value}
    return Source(known, places={(field,): SBATCH_DEFAULTS[field] for field in known})


def _time_min(text: str) -> int | None:
    """A time limit as sbatch takes it (`90`, `1-12`, `1-12:30`, `1:30:00`) in minutes; None where it is none."""
    if text.isdigit():
        return int(text)
    days = re.fullmatch(r"(\d+-\d+)(:\d+)?", text)
    return minutes(f"{days[1]}{days[2] or ':0'}:0" if days else text)


# --- a first profile


@dataclass(frozen=True)
class NodeKind:
    """A partition's nodes of one kind."""

    partition: str
    is_default: bool
    num_nodes: int
    gres: str
    num_cpus: int
    mem_gib: int
    max_time_min: int | None
    features: str
    state: str

    @property
    def gpus(self) -> int:
        """GPUs of a node."""
        return num_gpus(self.gres)


SINFO = ("sinfo", "-h", "-o", "%R|%P|%D|%G|%c|%m|%l|%f|%a")
ACCOUNTS = ("sacctmgr", "-nP", "show", "assoc", "user={user}", "format=account,qos")


def parse_nodes(text: str) -> list[NodeKind]:
    """Kinds of nodes from sinfo's output in the form SINFO."""
    kinds = []
    for line in text.splitlines():
        words = line.strip().split("|")
        if len(words) != 9:
            continue
        name, title, nodes, gres, cpus, memory, limit, features, state = words
        kinds.append(
            NodeKind(
                name,
                title.endswith("*"),
                int(nodes),
                "" if gres == "(null)" else gres,
                int(cpus.rstrip("+")),
                int(memory.rstrip("+")) // 1024,
                minutes(limit),
                "" if features == "(null)" else features,
                state,
            )
        )
    return kinds


def minutes(limit: str) -> int | None:
    """`1-02:30:00` → 1590; None for no limit."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if match is None:
        return None
    days, hours, mins, seconds = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + mins + (seconds > 0)


def cluster_name(config: str) -> str:
    """From `scontrol show config`; `cluster` where it does not say."""
    found = re.search(r"^ClusterName\s*=\s*(\S+)", config, re.MULTILINE)
    return re.sub(r"[^A-Za-z0-9_-]+", "-", found[1]) if found else "cluster"


def chosen_kind(kinds: list[NodeKind], partition: str | None) -> NodeKind:
    """The nodes that a profile is for: of the partition that is asked for, or those with the most GPUs.

    Raises:
        LaunchError: there is no such partition, or none at all.
    """
    wanted = [kind for kind in kinds if partition in (None, kind.partition)]
    if not wanted:
        known = sorted({kind.partition for kind in kinds})
        if partition is None:
            raise LaunchError("sinfo names no partition; a profile is made where `sinfo` shows some.")
        rule = f"be a partition of this cluster: {', '.join(known)}"
        raise LaunchError(f"--partition is {partition!r}; it must {rule}.")
    most = max(kind.gpus for kind in wanted)
    with_most = [kind for kind in wanted if kind.gpus == most and kind.state == "up"] or wanted
    return max(with_most, key=lambda kind: (kind.is_default, kind.num_nodes))


def proposal(kinds: list[NodeKind], kind: NodeKind, name: str, user: str, accounts: Mapping[str, str]) -> str:
    """A commented profile for `kind`. Pure.

    Args:
        kinds: all of the cluster, for the comments.
        kind: the one that the profile is for.
        name: of the profile.
        user: whose it is.
        accounts: this user's accounts, each with its QoS names; empty where Slurm does not say.
    """
    time_min = min(kind.max_time_min or MAX_DEFAULT_TIME_MIN, MAX_DEFAULT_TIME_MIN)
    per = max(kind.gpus, 1)
    mem_gib = int(kind.mem_gib * _MEMORY_SHARE) // per
    others = sorted({other.partition for other in kinds} - {kind.partition})
    limit = "no limit" if kind.max_time_min is None else f"limit {kind.max_time_min}"
    account, qos = _account_lines(accounts)
    has_gpus = kind.gpus > 0
    lines = [
        f"# {name}: partition {kind.partition}, {kind.num_nodes} nodes of {kind.gpus} GPUs, {kind.num_cpus} CPUs, "
        f"{kind.mem_gib} GiB.",
        f"# Written by `python -m launch profiles init` from what Slurm says; `--profile {name}` uses it.",
        "# Settings of a run (`launch:` in its file) and options of `submit` come before these.",
        "",
        f"partition: {kind.partition}" + (f"    # others: {', '.join(others)}" if others else ""),
        account,
        qos,
        "# exclude: n7,n12              # nodes to avoid",
        *_feature_lines(kind),
        f"time_min: {time_min}           # of this partition: {limit}",
        "",
        "# All that a node has, in equal shares: a job that takes fewer GPUs takes fewer CPUs and less memory.",
        f"gpus_per_node: {kind.gpus}" + (f"        # {kind.gres}" if kind.gres else ""),
        *(
            [f"cpus_per_gpu: {max(1, kind.num_cpus // per)}", f"mem_gb_per_gpu: {max(1, mem_gib)}"]
            if has_gpus
            else [f"cpus_per_task: {kind.num_cpus}", f"mem_gb: {max(1, mem_gib)}"]
        ),
        *([f"# gres: {_plain_gres(kind.gres)}    # where the site does not take --gpus-per-node"] if has_gpus else []),
        "",
        "# What every job needs before Python starts.",
        "# modules: [cuda/12.6]",
        "# setup: [source /etc/profile.d/proxy.sh]",
        "# container: {kind: pyxis, image: /shared/images/train.sqsh, mounts: [/data]}",
        "",
        "# Code that is compiled on the way (Triton, inductor, extensions) stays on the node: on a shared disk its",
        "# locks outlive killed jobs, and the next one waits for them.",
        f"cache_dir: /tmp/cleansft-{user}",
        "",
        "# gloo and NCCL take the interface that leads to node 0. Name another where nodes have several networks.",
        "# interface: ib0",
        "",
        "# OMP_NUM_THREADS is set to CPUs / ranks of a node; torchrun alone would set 1.",
        "env:",
        *_env_lines(has_gpus=has_gpus),
    ]
    return "\n".join(lines) + "\n"


def _account_lines(accounts: Mapping[str, str]) -> tuple[str, str]:
    if not accounts:
        return "# account: project-1           # whom to charge", "# qos: normal"
    first = next(iter(accounts))
    others = ", ".join(list(accounts)[1:])
    known = accounts[first].replace(",", ", ")
    return f"account: {first}" + (f"    # others: {others}" if others else ""), f"# qos: {known or 'normal'}"


def _feature_lines(kind: NodeKind) -> list[str]:
    return [f"# constraint: {kind.features.replace(',', '&')}    # features of the nodes"] if kind.features else []


def _plain_gres(gres: str) -> str:
    return re.sub(r"\([^)]*\)", "", gres)


def _env_lines(*, has_gpus: bool) -> list[str]:
    if not has_gpus:
        return [
            "  TOKENIZERS_PARALLELISM: 'false'   # ranks share the CPUs: threads of the tokenizer would slow each other"
        ]
    return [
        "  NCCL_DEBUG: WARN                  # says which link failed, and nothing while all is well",
        "  TOKENIZERS_PARALLELISM: 'false'   # ranks share the CPUs: threads of the tokenizer would slow each other",
        "  # NCCL_IB_HCA: mlx5               # InfiniBand adapters, where not all lead to the other nodes",
        "  # NCCL_IB_TIMEOUT: '22'           # on large fabrics: a switch that reroutes takes longer than the default",
    ]
