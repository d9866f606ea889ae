"""The cores of a rank: ranks that compute on the CPUs of one machine each keep to their own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

_USERS_OWN = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
"""Whoever has set one of these places the threads in another way, or (`OMP_PROC_BIND=false`) not at all."""
_CPUS = Path("/sys/devices/system/cpu")
_SLOWER_CORES = Path("/sys/devices/cpu_atom")
"""There on processors whose cores are of two kinds, as Linux names the performance counters of the lesser."""


def keep_to_own_cores(environ: Mapping[str, str], num_threads: int) -> list[int] | None:
    """Binds all threads of this process, and those to come, to its share of the machine's cores; its CPUs.

    The kernel moves a process that nothing binds from core to core; each time what it has in that core's cache is lost,
    and meanwhile two ranks may share a core. The figures are in docs/decisions/2026-11-22-core-binding.md.

    Args:
        environ: with LOCAL_RANK and LOCAL_WORLD_SIZE (DeepSpeed's launcher: LOCAL_SIZE).
        num_threads: with which the rank computes.

    Returns:
        None where nothing is bound: one rank alone, more threads than CPUs for each rank, cores of two kinds, a
        placement of somebody else, or a system that knows no binding.
    """
    local_size = int(environ.get("LOCAL_WORLD_SIZE") or environ.get("LOCAL_SIZE") or 1)
    is_chosen = any(environ.get(name) for name in _USERS_OWN)
    if local_size == 1 or is_chosen or _SLOWER_CORES.exists() or not hasattr(os, "sched_setaffinity"):
        return None
    own = share(cores(os.sched_getaffinity(0)), int(environ.get("LOCAL_RANK", 0)), local_size)
    if len(own) < num_threads:
        return None
    try:
        os.sched_setaffinity(0, own)
    except OSError:  # a sandbox that forbids it
        return None
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread), own)
    return own


def cores(cpus: Iterable[int], folder: Path = _CPUS) -> list[list[int]]:
    """The CPUs of each core, neighbours in one socket next to each other.

    Args:
        cpus: that this process may use.
        folder: where Linux describes them.
    """
    found: dict[tuple[int, int], list[int]] = {}
    for cpu in sorted(cpus):
        package = _first_number(folder / f"cpu{cpu}/topology/physical_package_id", 0)
        core = _first_number(folder / f"cpu{cpu}/topology/thread_siblings_list", cpu)
        found.setdefault((package, core), []).append(cpu)
    return [found[place] for place in sorted(found)]


def share(cores: Sequence[Sequence[int]], local_rank: int, local_size: int) -> list[int]:
    """The CPUs of one rank: as many whole cores as any other's; none where there are fewer cores than ranks. Pure."""
    number = len(cores) // local_size
    return [cpu for core in cores[local_rank * number : (local_rank + 1) * number] for cpu in core]


def _first_number(path: Path, default: int) -> int:
    """Of a file such as `0,8` or `0-1`; the default where there is none."""
    try:
        digits = path.read_text(encoding="ascii").replace("-", ",").split(",")[0].strip()
    except OSError:
        return default
    return int(digits) if digits.isdigit() else default
