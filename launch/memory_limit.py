"""The memory limit that a process stands under, and whether the kernel has killed for it (cgroups, version 1 and 2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_UNLIMITED_BYTES = 1 << 60
"""Version 1 writes a number near 2**63 for no limit."""


@dataclass(frozen=True)
class MemoryLimit:
    """What a cgroup says of its memory."""

    path: Path
    """The file that counts."""
    limit_path: Path
    num_kills: int
    """Processes that were killed as it was used up."""
    limit_bytes: int | None

    def again(self) -> MemoryLimit | None:
        """What it says now; None where it is gone."""
        return _read(self.path, self.limit_path)


def memory_limit(pid: int, root: Path = Path("/")) -> MemoryLimit | None:
    """That of a living process; None where it is not in a cgroup that counts memory.

    Args:
        pid: the process.
        root: `/`, but for tests.
    """
    try:
        lines = (root / f"proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    groups = dict(line.split(":", 2)[1:] for line in lines if line.count(":") >= 2)
    for controllers, path in groups.items():
        if "memory" in controllers.split(","):
            folder = root / "sys/fs/cgroup/memory" / path.lstrip("/")
            return _read(folder / "memory.oom_control", folder / "memory.limit_in_bytes")
    if "" in groups:
        folder = root / "sys/fs/cgroup" / groups[""].lstrip("/")
        return _read(folder / "memory.events", folder / "memory.max")
    return None


def _read(events: Path, limit: Path) -> MemoryLimit | None:
    try:
        fields = dict(line.split() for line in events.read_text(encoding="ascii").splitlines())
        text = limit.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    limit_bytes = int(text) if text.isdigit() and int(text) < _UNLIMITED_BYTES else None
    return MemoryLimit(events, limit, int(fields.get("oom_kill", 0)), limit_bytes)
