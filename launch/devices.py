"""The GPUs of this machine, without importing torch, and the part of them that each node of a local run gets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from launch.spec import JobSpec
from strict_settings import Problem

VISIBLE = "CUDA_VISIBLE_DEVICES"


def has_gpu(environ: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Whether this node has an NVIDIA or AMD GPU that is not hidden."""
    return num_gpus(environ, root) != 0


def num_gpus(environ: Mapping[str, str], root: Path = Path("/")) -> int | None:
    """Number of GPUs that a process started here sees; None where there are some and their number can't be told.

    Args:
        environ: CUDA_VISIBLE_DEVICES hides GPUs.
        root: `/`, but for tests.
    """
    visible = environ.get(VISIBLE)
    if visible == "":
        return 0
    nvidia = [path for path in root.glob("dev/nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()]
    found = len(nvidia) or len(list(root.glob("proc/driver/nvidia/gpus/*"))) or _num_amd(root)
    if not found:
        return None if any((root / name).exists() for name in ("dev/kfd", "dev/dxg")) else 0
    return found if visible is None else min(found, len(visible.split(",")))


def _num_amd(root: Path) -> int:
    """From the kernel's topology, in which CPUs are nodes too, with the id 0."""
    ids = [path.read_text(encoding="ascii").strip() for path in root.glob("sys/class/kfd/kfd/topology/nodes/*/gpu_id")]
    return sum(number != "0" for number in ids)


def request_problems(spec: JobSpec, num_gpus: int | None) -> Iterator[Problem]:
    """What the job asks for and this machine can't give.

    Args:
        spec: the job.
        num_gpus: GPUs of this machine; None where their number can't be told.
    """
    wanted, nodes = spec.resources.gpus_per_node, spec.resources.nodes
    if spec.hosts:
        return  # theirs are counted before the job starts (launch.host_checks)
    if num_gpus is not None and wanted * nodes > num_gpus:
        most = num_gpus // nodes
        of_several = f"as {nodes} nodes share the {num_gpus} of this machine"
        shared = "the GPUs that this machine shows" if nodes == 1 else of_several
        remedy = f"Give --gpus-per-node {most}, and --procs-per-node for the ranks; or --executor slurm."
        yield Problem("gpus_per_node", wanted, f"be at most {most}, {shared}", remedy)
    if wanted and nodes > 1 and (given := spec.env.get(VISIBLE)) is not None:
        remedy = "Set it in front of the command: each node then gets its part of it."
        yield Problem(f"env.{VISIBLE}", given, f"not be given where {nodes} nodes share this machine's GPUs", remedy)


def node_devices(spec: JobSpec, node: int, visible: str | None) -> dict[str, str]:
    """CUDA_VISIBLE_DEVICES of a node, where several share this machine: GPUs of its own, as Slurm would give it. Pure.

    Args:
        spec: the job.
        node: its number.
        visible: CUDA_VISIBLE_DEVICES of this process, numbers or UUIDs; None where it is not set.
    """
    wanted, nodes = spec.resources.gpus_per_node, spec.resources.nodes
    if not wanted or nodes == 1 or spec.hosts:
        return {}
    shown = visible.split(",") if visible is not None else [str(number) for number in range(nodes * wanted)]
    return {VISIBLE: ",".join(shown[node * wanted : (node + 1) * wanted])}
