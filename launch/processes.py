"""Linux process facts: who is alive, who descends from us, and that nobody outlives us."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(signal_number: int, parent_pid: int | None = None) -> None:
    """From now on the kernel sends us the signal when our parent dies (prctl(2), PR_SET_PDEATHSIG)."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
    if parent_pid is not None and os.getppid() != parent_pid:
        os.kill(os.getpid(), signal_number)  # it died before the call above


def before_exec(signal_number: int, ignored: Iterable[int] = ()) -> Callable[[], None]:
    """For Popen's preexec_fn: the child receives `signal_number` when this process dies, and ignores the others, until
    it sets handlers of its own."""
    parent_pid = os.getpid()

    def prepare() -> None:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        die_with_parent(signal_number, parent_pid)

    return prepare


def adopt_orphans() -> None:
    """Descendants whose parent dies become our children, so that `descendants` still finds them."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start_ticks(pid: int) -> int | None:
    """The process's start time in clock ticks since boot; None where it has ended (a zombie has).

    Together with the pid this names a process for good, as pids are used again.
    """
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def state(pid: int) -> str | None:
    """What the process does, by the kernel's letter (proc(5)): R runs, S waits, D waits in the kernel, T is stopped.
    None where it has ended."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else fields[0]


def descendants(pid: int) -> list[int]:
    """All living processes below `pid`, parents before children."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))) is not None and fields[0] not in "ZX":
            children.setdefault(int(fields[1]), []).append(int(entry))
    found: list[int] = []
    queue = [pid]
    while queue:
        below = children.get(queue.pop(0), [])
        found += below
        queue += below
    return found


def send(pids: Iterable[int], signal_number: int) -> None:
    """Sends the signal to those that still exist."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal_number)


def as_shell(code: int) -> int:
    """The exit code as a shell has it: 128 + N for death by signal N, which Python tells as -N."""
    return 128 - code if code < 0 else code


def kill_descendants(timeout_s: float = 5.0) -> None:
    """Ends everything below this process by SIGKILL and reaps what has become our child."""
    deadline = time.monotonic() + timeout_s
    while (left := descendants(os.getpid())) and time.monotonic() < deadline:
        send(left, signal.SIGKILL)
        _reap()
        time.sleep(0.02)
    _reap()


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat after the name, which may hold spaces: state, ppid, …"""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
