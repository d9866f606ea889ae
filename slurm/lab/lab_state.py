"""What a running lab consists of, written down: its processes and namespaces, each told apart from a later namesake."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab_config import LabError, LabOptions, LabPaths

DEFAULT_DIR = "/run/cleansft-lab"
DIR_VARIABLE = "CLEANSFT_LAB_DIR"
NETNS_DIR = Path("/run/netns")


@dataclasses.dataclass(frozen=True)
class ProcessId:
    """One process for good: a pid alone may belong to another process later, a pid and its start time may not."""

    pid: int
    start_ticks: int

    def is_alive(self) -> bool:
        return _start_ticks(self.pid) == self.start_ticks

    def send(self, signum: signal.Signals) -> None:
        """Signal exactly this process, or nothing when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(self.pid)
            try:
                # The handle pins the process: had the pid passed on before, the start time would differ.
                if self.is_alive():
                    signal.pidfd_send_signal(handle, signum)
            finally:
                os.close(handle)


def identify(pid: int) -> ProcessId | None:
    """The running process with that pid; none if it has ended."""
    ticks = _start_ticks(pid)
    return None if ticks is None else ProcessId(pid, ticks)


def _start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (proc_pid_stat(5), field 22); none if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before it may hold blanks
    return None if fields[0] in "ZX" else int(fields[19])


@dataclasses.dataclass
class LabState:
    """All that `down` has to undo. Saved after each step, so that a lab that failed half way can be taken down."""

    options: LabOptions
    boot_id: str
    made_netns_dir: bool = False
    namespaces: dict[str, int] = dataclasses.field(default_factory=dict)  # name → inode of the network namespace
    processes: dict[str, ProcessId] = dataclasses.field(default_factory=dict)

    def is_process_alive(self, name: str) -> bool:
        return name in self.processes and self.processes[name].is_alive()

    def owns_namespace(self, name: str) -> bool:
        return name in self.namespaces and namespace_inode(name) == self.namespaces[name]


def namespace_inode(name: str) -> int | None:
    """The inode of a named network namespace; none if there is no such name."""
    try:
        return (NETNS_DIR / name).stat().st_ino
    except FileNotFoundError:
        return None


def processes_in(inodes: set[int]) -> list[ProcessId]:
    """The processes whose network namespace is one of these."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile
            process = identify(int(entry.name))
            if process is not None and (entry / "ns" / "net").stat().st_ino in inodes:
                found.append(process)
    return found


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def lab_paths(chosen: str | None) -> LabPaths:
    return LabPaths(Path(chosen or os.environ.get(DIR_VARIABLE) or DEFAULT_DIR).absolute())


def load_state(paths: LabPaths) -> LabState | None:
    """The lab in that directory; none if there is none, or none since the machine was started."""
    try:
        raw: dict[str, Any] = json.loads(paths.state.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    state = LabState(
        options=LabOptions(**raw["options"]),
        boot_id=raw["boot_id"],
        made_netns_dir=raw["made_netns_dir"],
        namespaces=raw["namespaces"],
        processes={name: ProcessId(**process) for name, process in raw["processes"].items()},
    )
    if state.boot_id != boot_id():
        state.namespaces, state.processes = {}, {}  # they ended with that boot; only files are left
    return state


def save_state(state: LabState, paths: LabPaths) -> None:
    temporary = paths.state.with_suffix(".tmp")
    temporary.write_text(json.dumps(dataclasses.asdict(state), indent=1), encoding="utf-8")
    temporary.replace(paths.state)


@contextlib.contextmanager
def locked(paths: LabPaths) -> Iterator[None]:
    """Hold the lab's directory alone, making it first. The lock is on the directory: no lock file stays behind."""
    while True:
        paths.root.mkdir(parents=True, exist_ok=True)
        handle = os.open(paths.root, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if _is_current(handle, paths.root):
            break
        os.close(handle)  # `down` removed the directory while we waited for it
    try:
        yield
    finally:
        os.close(handle)


def _is_current(handle: int, path: Path) -> bool:
    try:
        return path.stat().st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False


def refuse_foreign_dir(paths: LabPaths) -> None:
    """`down` removes the whole directory, so that it must hold nothing but a lab."""
    foreign = [entry.name for entry in paths.root.iterdir()]
    if foreign and not paths.state.exists():
        raise LabError(f"dir is {paths.root}; it must be empty or hold a lab, but holds {sorted(foreign)[0]!r}.")


def refuse_private_dir(paths: LabPaths) -> None:
    """munged and MariaDB run as users of their own and must be able to go there."""
    for folder in (paths.root, *paths.root.resolve().parents):
        mode = folder.stat().st_mode & 0o777
        if not mode & 0o001:
            raise LabError(f"dir is {paths.root}; every user must be able to enter it, but {folder} has mode {mode:o}.")


def remove_dir(paths: LabPaths) -> None:
    refuse_foreign_dir(paths)
    shutil.rmtree(paths.root)
