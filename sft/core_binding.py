"""The cores of a rank: ranks that compute on the CPUs of one machine each keep to their own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

_USERS_OWN = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
"""Whoever has set one of these places the threads in another way, or (`OMP_PROC_BIND=false`) not at all."""
_DEVICES = Path("/sys/devices")


def place_among_ranks(environ: Mapping[str, str]) -> tuple[int, int]:
    """(which of this node's ranks this is, their number), by LOCAL_RANK and LOCAL_WORLD_SIZE (DeepSpeed's launcher:
    LOCAL_SIZE); (0, 1) where that is not told."""
    local_rank = environ.get("LOCAL_RANK", "")
    local_size = environ.get("LOCAL_WORLD_SIZE") or environ.get("LOCAL_SIZE", "")
    is_told = local_rank.isdigit() and local_size.isdigit() and int(local_rank) < int(local_size)
    return (int(local_rank), int(local_size)) if is_told else (0, 1)


@contextlib.contextmanager
def own_cores(environ: Mapping[str, str], num_threads: int) -> Iterator[list[int] | None]:
    """The CPUs that this rank is bound to meanwhile, with all its threads and those that they start.

    The kernel moves a process that nothing binds from core to core; each time what it has in that core's cache is lost,
    and meanwhile two ranks may share a core. The figures are in docs/decisions/2026-11-22-core-binding.md.

    Args:
        environ: that of `place_among_ranks`.
        num_threads: with which each of them computes.

    Yields:
        None where none of them is bound: one rank alone, more threads than the smallest share has CPUs, cores of two
        kinds, a placement of the user's, or a system that knows no binding.
    """
    local_rank, local_size = place_among_ranks(environ)
    is_chosen = any(environ.get(name) for name in _USERS_OWN)
    own = None
    if local_size > 1 and not is_chosen and hasattr(os, "sched_setaffinity"):
        before = os.sched_getaffinity(0)
        own = own_share(before, local_rank, local_size, num_threads)
    if own is None or not _bind(own):
        yield None
        return
    try:
        yield own
    finally:
        _bind(before)


def _bind(cpus: Collection[int]) -> bool:
    """Binds this process's threads, the calling one first; False where a sandbox forbids it."""
    try:
        threads = os.listdir("/proc/self/task")
        os.sched_setaffinity(0, cpus)
    except OSError:
        return False
    for thread in threads:
        with contextlib.suppress(OSError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread), cpus)
    return True


def own_share(
    cpus: Collection[int], local_rank: int, local_size: int, num_threads: int, devices: Path = _DEVICES
) -> list[int] | None:
    """The CPUs of one rank, as many whole cores as any other's; None where some rank would have fewer than threads, or
    slower ones."""
    found = cores(cpus, devices)
    number = len(found) // local_size
    shares = [[*chain(*found[rank * number : (rank + 1) * number])] for rank in range(local_size)]
    are_enough = min(map(len, shares)) >= max(1, num_threads)
    return shares[local_rank] if are_enough and are_alike(cpus, devices) else None


def cores(cpus: Iterable[int], devices: Path = _DEVICES) -> list[list[int]]:
    """The CPUs of each core, those of a socket next to each other.

    Args:
        cpus: that this process may use.
        devices: where Linux describes them.
    """
    found: dict[tuple[int, int], list[int]] = {}
    for cpu in sorted(cpus):
        folder = devices / f"system/cpu/cpu{cpu}/topology"
        place = _first_number(folder / "physical_package_id", 0), _first_number(folder / "thread_siblings_list", cpu)
        found.setdefault(place, []).append(cpu)
    return [found[place] for place in sorted(found)]


def are_alike(cpus: Iterable[int], devices: Path = _DEVICES) -> bool:
    """Whether no core is of a slower kind, which `cpu_atom` tells of Intel's processors and `cpu_capacity` of ARM's."""
    capacities = {_first_number(devices / f"system/cpu/cpu{cpu}/cpu_capacity", 0) for cpu in cpus}
    return len(capacities) == 1 and not (devices / "cpu_atom").exists()


def _first_number(path: Path, default: int) -> int:
    """Of a file such as `0,8` or `0-1`; the default where there is none."""
    try:
        digits = path.read_text(encoding="ascii").replace("-", ",").split(",")[0].strip()
    except OSError:
        return default
    return int(digits) if digits.isdigit() else default
