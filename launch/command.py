"""What a node runs: argv and environment. Pure: a spec and a rendezvous in, words out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from launch.rendezvous import Rendezvous
from launch.site import cache_environment
from launch.spec import ROOT, JobSpec

RANK_WRAPPER = ROOT / "launch" / "rank.py"
DIRECT = ROOT / "launch" / "direct.py"
VISIBLE_DEVICES = "CLEANSFT_CUDA_VISIBLE_DEVICES"
"""Carries CUDA_VISIBLE_DEVICES past DeepSpeed's launcher, which numbers it anew from 0: `=4,5`, or empty for unset."""


@dataclass(frozen=True)
class NodeFacts:
    """What only the node itself knows."""

    inherited: Collection[str]
    """Names of the variables that are set already and stay as they are."""
    interface: str | None
    """The network interface towards the other nodes; None leaves the choice to gloo and NCCL."""
    accelerator: str | None
    """`cpu` where the node has no GPU; None leaves the choice to DeepSpeed."""
    visible_devices: str | None = None
    """CUDA_VISIBLE_DEVICES as the node has it."""


def rank_argv(spec: JobSpec) -> list[str]:
    """What every rank runs, in the end."""
    return [spec.python, "-u", spec.script, *spec.script_args, *spec.resume_args]


def launcher_argv(spec: JobSpec, rendezvous: Rendezvous, logs: str) -> list[str]:
    """The one launcher of a node. It starts our rank wrapper, which starts the script.

    The script's own arguments are not among these words: torchrun rewrites `$$` and `${local_rank}` in them and
    DeepSpeed's parsers take prefixes of their own options out of them. The wrapper reads them from job.json.

    Args:
        spec: the job.
        rendezvous: where its nodes meet.
        logs: the folder `logs/<attempt>`, where the launchers keep what they would else leave in /tmp.
    """
    if spec.launcher == "deepspeed":
        hostfile = hostfile_path(logs, rendezvous.node_rank)
        return [*deepspeed_words(spec.python, hostfile, rendezvous), str(RANK_WRAPPER)]
    if spec.launcher == "direct":
        return [*direct_words(spec, rendezvous), str(RANK_WRAPPER)]
    words = torchrun_words(spec.python, spec.resources.nodes, spec.procs_per_node, rendezvous)
    return [*words, f"--log-dir={logs}/torchrun", str(RANK_WRAPPER)]


def torchrun_words(python: str, nodes: int | str, procs_per_node: int | str, rendezvous: Rendezvous) -> list[str]:
    """torchrun on one node, up to its script. Texts stand as they are: for a shell they may hold variables."""
    return [
        python, "-u", "-m", "torch.distributed.run",
        f"--nnodes={nodes}",
        f"--node-rank={rendezvous.node_rank}",
        f"--nproc-per-node={procs_per_node}",
        "--rdzv-backend=static",
        f"--rdzv-id={rendezvous.id}",
        f"--master-addr={rendezvous.address}",
        f"--master-port={rendezvous.port}",
        "--max-restarts=0",
    ]  # fmt: skip


def direct_words(spec: JobSpec, rendezvous: Rendezvous) -> list[str]:
    """Our own start of a node's ranks (`launch.direct`), up to their script."""
    return [
        spec.python, "-u", str(DIRECT),
        f"--nnodes={spec.resources.nodes}",
        f"--node-rank={rendezvous.node_rank}",
        f"--nproc-per-node={spec.procs_per_node}",
        f"--master-addr={rendezvous.address}",
        f"--master-port={rendezvous.port}",
    ]  # fmt: skip


def deepspeed_words(python: str, hostfile: str, rendezvous: Rendezvous) -> list[str]:
    """DeepSpeed's launcher on one node, without ssh, up to its script; texts as in `torchrun_words`."""
    return [
        python, "-u", "-m", "deepspeed.launcher.runner",
        f"--hostfile={hostfile}",
        "--no_ssh",
        "--no_ssh_check",
        f"--node_rank={rendezvous.node_rank}",
        f"--master_addr={rendezvous.address}",
        f"--master_port={rendezvous.port}",
        "--no_local_rank",
    ]  # fmt: skip


def hostfile_path(logs: str, node_rank: int | str) -> str:
    """Where a node keeps its own copy of the hostfile."""
    return f"{logs}/hostfile-{node_rank}"


def hostfile_text(spec: JobSpec, rendezvous: Rendezvous) -> str:
    """DeepSpeed's list of nodes and ranks on each; without it every node would train alone."""
    return "".join(f"{host} slots={spec.procs_per_node}\n" for host in rendezvous.hosts)


def node_environment(spec: JobSpec, rendezvous: Rendezvous, attempt: str, facts: NodeFacts) -> dict[str, str]:
    """The variables that the agent sets for its launcher; all others stay as they are."""
    chosen = {"OMP_NUM_THREADS": str(max(1, spec.cpus_per_task // spec.procs_per_node))}
    if facts.interface is not None:
        chosen |= {"GLOO_SOCKET_IFNAME": facts.interface, "NCCL_SOCKET_IFNAME": facts.interface}
    if facts.accelerator is not None:
        chosen["DS_ACCELERATOR"] = facts.accelerator
    chosen |= cache_environment(spec.cache_dir)
    environment = {name: value for name, value in chosen.items() if name not in facts.inherited}
    environment |= spec.env
    if spec.launcher == "deepspeed":
        devices = spec.env.get("CUDA_VISIBLE_DEVICES", facts.visible_devices)
        environment[VISIBLE_DEVICES] = "" if devices is None else f"={devices}"
    elif spec.launcher == "torchrun":
        # Where Slurm tells torchrun too to stop, it would end ranks that still save after 30 s; the agent is sooner.
        environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = f"{spec.stop_grace_s + 10:.0f}"
    environment |= {
        "CLEANSFT_RUN_DIR": spec.run_dir,
        "CLEANSFT_ATTEMPT": attempt,
        "CLEANSFT_NODE_RANK": str(rendezvous.node_rank),
    }
    if spec.config is not None:
        environment["CLEANSFT_CONFIG"] = spec.config
    return environment
