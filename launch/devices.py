"""The GPUs of this machine, without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def has_gpu(environ: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Whether this node has an NVIDIA or AMD GPU that is not hidden."""
    return num_gpus(environ, root) != 0


def num_gpus(environ: Mapping[str, str], root: Path = Path("/")) -> int | None:
    """Number of GPUs that a process started here sees; None where there are some and their number can't be told.

    Args:
        environ: CUDA_VISIBLE_DEVICES hides GPUs.
        root: `/`, but for tests.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
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
