"""What a node is, told by itself: addresses, names, versions, GPUs, ports, the shared disk. Standard library only."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from launch import network
from launch.errors import RendezvousError
from launch.rendezvous import candidate_ports

PACKAGES = ("torch", "deepspeed", "transformers", "peft", "datasets", "submitit", "safetensors", "nvidia-nccl-cu12")
_GPU_COLUMNS = {
    "name": "name",
    "driver": "driver_version",
    "memory_mib": "memory.total",
    "used_mib": "memory.used",
    "ecc_errors": "ecc.errors.uncorrected.volatile.total",
    "slowdown": "clocks_event_reasons.hw_slowdown",
    "remap_failed": "remapped_rows.failure",
    "temperature_c": "temperature.gpu",
}
NVIDIA_SMI_TIMEOUT_S = 30.0


def facts(
    hosts: Sequence[str],
    node: int,
    nonce: str,
    rendezvous_id: str,
    ports: Sequence[int],
    reached_at: str | None = None,
) -> dict[str, Any]:
    """All that can be seen on this node without torch.

    Args:
        hosts: the names of all nodes, in order; empty where they are agents on one machine.
        node: which of them this is.
        nonce: a file that the others see too, if the disk is shared.
        rendezvous_id: whose ports are tried.
        ports: others to be tried.
        reached_at: the address of this node by which ssh came to it.
    """
    address = own_address(hosts, node, reached_at)
    ephemeral = network.ephemeral_ports()
    candidates = candidate_ports(rendezvous_id, ephemeral)
    return {
        "host": socket.gethostname(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": versions(),
        "address": address,
        "interfaces": network.interface_addresses(),
        "mtu": _mtu(address),
        "resolved": {host: network.resolve(host) for host in hosts},
        "nonce": _read(Path(nonce)),
        "taken": taken([*candidates, *ports]),
        "candidates": list(candidates),
        "spare": spare_ports(f"{rendezvous_id}.spare.{node}", ephemeral),
        "gpus": gpus(),
        "cpus": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "free_memory_gib": _available_gib(),
        "locked_memory_limited": _is_memlock_limited(),
    }


def own_address(hosts: Sequence[str], node: int, reached_at: str | None = None) -> str:
    """The address at which the others reach this node, chosen as the launcher does; empty where there is none."""
    if not hosts:
        return "127.0.0.1"
    try:
        others = (host for host in hosts if host != hosts[node])
        return network.published_address((hosts[node], *others), reached_at)
    except RendezvousError:
        return ""


def versions() -> dict[str, str]:
    """Package → version, of those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def taken(ports: Iterable[int]) -> dict[str, str]:
    """Port → who listens there, as far as this user may see it; of those that are not free."""
    busy = [port for port in ports if not network.is_free(port)]
    holders = _holders(busy) if busy else {}
    return {str(port): holders.get(port, "a process of another user") for port in busy}


def _holders(ports: Sequence[int]) -> dict[int, str]:
    """Port → `pid 123 (python)`, from /proc (proc(5))."""
    inodes: dict[str, int] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in _read(Path(table)).splitlines()[1:]:
            words = line.split()
            port = int(words[1].rpartition(":")[2], 16)
            if port in ports:
                inodes[f"socket:[{words[9]}]"] = port
    found: dict[int, str] = {}
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            port_held = inodes.get(os.readlink(descriptor))
        except OSError:
            continue
        if port_held is not None:
            pid = descriptor.parts[2]
            found[port_held] = f"pid {pid} ({_read(Path('/proc', pid, 'comm')).strip()})"
    return found


def spare_ports(seed: str, ephemeral: tuple[int, int], wanted: int = 16) -> list[int]:
    """Ports that are free now, for groups that meet on this node."""
    return [port for port in candidate_ports(seed, ephemeral) if network.is_free(port)][:wanted]


def gpus() -> list[dict[str, str]]:
    """What nvidia-smi says of each GPU; empty without it, a row with `error` where it fails."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", f"--query-gpu={','.join(_GPU_COLUMNS.values())}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return [{"error": f"nvidia-smi did not answer within {NVIDIA_SMI_TIMEOUT_S:.0f} s"}]
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines() or ["nothing"]
        return [{"error": f"nvidia-smi says: {said[-1]}"}]
    return parse_gpus(done.stdout)


def parse_gpus(text: str) -> list[dict[str, str]]:
    """A row per GPU from nvidia-smi's CSV; what a GPU does not have is left out. Pure."""
    rows = [[word.strip() for word in line.split(",")] for line in text.splitlines() if line.strip()]
    return [
        {name: word for name, word in zip(_GPU_COLUMNS, row, strict=False) if "N/A" not in word and "Not S" not in word}
        for row in rows
    ]


def _mtu(address: str) -> int | None:
    """The largest packet of the interface with this address, in bytes."""
    import fcntl

    for name, own in network.interface_addresses().items():
        if own == address:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                found = fcntl.ioctl(probe.fileno(), 0x8921, struct.pack("16s16x", name.encode()[:15]))  # SIOCGIFMTU
            return int(struct.unpack_from("i", found, 16)[0])
    return None


def _available_gib() -> float:
    words = dict(line.split(":", 1) for line in _read(Path("/proc/meminfo")).splitlines() if ":" in line)
    return int(words.get("MemAvailable", "0 kB").split()[0]) / 2**20


def _is_memlock_limited() -> bool:
    """Whether memory that may be locked is limited: InfiniBand needs it to register buffers."""
    import resource

    has_infiniband = Path("/sys/class/infiniband").is_dir()
    return has_infiniband and resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
