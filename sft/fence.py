"""One writer for a run directory: a file per holder, numbered, of which the highest says who writes.

The number is the fencing token. It is claimed by linking a finished file to its name, which one process alone can do,
on a network's file system too. A holder that was taken over finds a higher number, or its own gone, and stops.

A holder is taken over when it said that it ended, or when it is dead:
1. it belongs to an earlier start of the same job (the cluster started the job again, so it gave the first one up);
2. it ran on this machine, since its last start, and its process is gone;
3. it belongs to a job of which the launcher knows that it ended (`CLEANSFT_ENDED_JOBS`);
4. it runs elsewhere and its file, which it touches every two seconds, has been still for a minute by the file system's
   own clock.
Whoever is only suspended on this machine is alive.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.errors import FencedError
from sft.storage import storage_errors, sync, write_file

FOLDER = "fence"
"""In the run directory."""
BEAT_S = 2.0
STALE_AFTER_S = 60.0
_NAME = re.compile(r"(\d{8})\.json")


@dataclass(frozen=True)
class Holder:
    """A process that writes, or wants to write, a run directory."""

    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    start_ticks: int
    """When the process started, in the kernel's ticks: with the pid, its name on this machine."""
    job_id: str | None
    restart: int
    """How often the cluster had started the job before."""
    since: str
    """For people."""
    nonce: str
    has_ended: bool = False

    @classmethod
    def this_process(cls, environ: Mapping[str, str]) -> Holder:
        """The calling process, in the job that the environment names."""
        job_id = environ.get("SLURM_JOB_ID") or environ.get("CLEANSFT_JOB_ID")
        return cls(
            host=os.uname().nodename,
            boot_id=_read("/proc/sys/kernel/random/boot_id"),
            pid_namespace=_pid_namespace(),
            pid=os.getpid(),
            start_ticks=_start_ticks(os.getpid()) or 0,
            job_id=job_id,
            restart=int(environ.get("SLURM_RESTART_COUNT") or 0),
            since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
            nonce=os.urandom(8).hex(),
        )

    def __str__(self) -> str:
        """For messages."""
        job = f" (job {self.job_id}, start {self.restart})" if self.job_id is not None else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


@dataclass(frozen=True)
class _Claim:
    """The highest number in a folder, and who has it."""

    token: int
    holder: Holder | None
    """None if its file cannot be read."""
    silent_s: float
    """How long it has not been heard of, by the file system's clock."""


_held: set[str] = set()
"""Nonces of the fences of this process: one that could not say that it ended, on a full disk, is not among them."""


class Fence:
    """A run directory that this process holds, until `release`."""

    def __init__(self, folder: Path, token: int, holder: Holder) -> None:
        """Made by `take`."""
        self.token = token
        self._folder = folder
        self.holder = holder
        _held.add(holder.nonce)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._be_heard, name="fence", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """
        Raises:
            FencedError: another process has taken the directory over: nothing may be written any more.
            StorageError: the directory is gone, or cannot be read.
        """
        with storage_errors(self._folder):
            newest = _newest(self._folder)
            # Opening asks a network's file system anew, where the list of names may be some seconds old.
            holder = _read_holder(_path(self._folder, self.token))
        if newest == self.token and holder is not None and holder.nonce == self.holder.nonce:
            return
        by = _read_holder(_path(self._folder, newest)) if newest is not None else None
        raise FencedError(
            f"the fencing token is {self.token}, and the highest in {self._folder} is {newest}, of {by}; it must be "
            "the highest to write. This process was taken for dead and another goes on: end this one."
        )

    def release(self) -> None:
        """Lets the next one in. The folder of a run that has written nothing else disappears with it."""
        self._ended.set()
        self._thread.join()
        _held.discard(self.holder.nonce)
        with contextlib.suppress(OSError):
            path = _path(self._folder, self.token)
            if (held := _read_holder(path)) is not None and held.nonce == self.holder.nonce:
                temporary = _write(self._folder, dataclasses.replace(self.holder, has_ended=True))
                temporary.replace(path)
                if os.listdir(self._folder.parent) == [FOLDER]:
                    path.unlink()
                    self._folder.rmdir()

    def _be_heard(self) -> None:
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(_path(self._folder, self.token))


def take(
    run_dir: Path, holder: Holder, *, ended_jobs: Collection[str] = (), say: Callable[[str], None] = print
) -> Fence:
    """The right to write a run directory, which one process has at a time; its folder must be there.

    Args:
        run_dir: the run directory.
        holder: this process.
        ended_jobs: jobs that the launcher knows to be over.
        say: told when a dead holder is taken over.

    Raises:
        FencedError: another process holds it and may be alive; it is named.
        StorageError: the folder cannot be written.
    """
    folder = run_dir / FOLDER
    while True:
        with storage_errors(folder):
            folder.mkdir(mode=0o700, exist_ok=True)
            last = _last_claim(folder)
            if last is not None:
                reason = _why_free(last, holder, ended_jobs)
                if reason is None:
                    raise FencedError(_refusal(run_dir, last))
                if reason:
                    say(f"{run_dir} is taken over from {last.holder}: {reason}")
            token = last.token + 1 if last is not None else 1
            if _link(folder, token, holder):
                # With its file gone the old holder is fenced also where it sees an old list of names.
                for path in _numbered(folder):
                    if int(path.stem) < token:
                        path.unlink(missing_ok=True)
                return Fence(folder, token, holder)


def ended_jobs(environ: Mapping[str, str]) -> frozenset[str]:
    """The jobs of which the launcher knows that they are over."""
    return frozenset(environ.get("CLEANSFT_ENDED_JOBS", "").replace(",", " ").split())


def refuse_if_held(run_dir: Path, holder: Holder, *, ended_jobs: Collection[str] = ()) -> None:
    """A first look that changes nothing.

    Raises:
        FencedError: as `take`.
    """
    with contextlib.suppress(OSError):  # `take` finds it again, and says what is wrong
        last = _last_claim(run_dir / FOLDER)
        if last is not None and _why_free(last, holder, ended_jobs) is None:
            raise FencedError(_refusal(run_dir, last))


def _refusal(run_dir: Path, last: _Claim) -> str:
    return (
        f"output_dir is {run_dir}; it must not be written by two processes at a time. It is held by {last.holder}, "
        f"last heard of {last.silent_s:.0f} s ago. Wait for it, end it, or choose another output_dir."
    )


def _why_free(last: _Claim, own: Holder, ended_jobs: Collection[str]) -> str | None:
    """Why a claim may be taken over; "" if its holder gave it up; None if it may not."""
    holder = last.holder
    is_silent = abs(last.silent_s) > STALE_AFTER_S  # a time that is yet to come is no sign of life either
    silence = f"its file has not been touched for {last.silent_s:.0f} s"
    if holder is None:
        return silence if is_silent else None
    if holder.has_ended:
        return ""
    if holder.job_id is not None and holder.job_id == own.job_id and holder.restart < own.restart:
        return f"this is start {own.restart} of the same job"
    if own.boot_id and (holder.boot_id, holder.pid_namespace) == (own.boot_id, own.pid_namespace):
        return _why_free_here(holder, own)
    if holder.job_id in ended_jobs:
        return "its job has ended"
    return silence if is_silent else None


def _why_free_here(holder: Holder, own: Holder) -> str | None:
    """The same for a holder on this machine."""
    if (holder.pid, holder.start_ticks) == (own.pid, own.start_ticks) and holder.nonce not in _held:
        return "this process has given it up, and could not write that"
    return None if _start_ticks(holder.pid) == holder.start_ticks else "its process is gone"


def _last_claim(folder: Path) -> _Claim | None:
    while (token := _newest(folder)) is not None:
        try:
            silent_s = _now(folder) - _path(folder, token).stat().st_mtime
            return _Claim(token, _read_holder(_path(folder, token)), silent_s)
        except FileNotFoundError:  # taken over meanwhile
            continue
    return None


def _now(folder: Path) -> float:
    """The time by the file system's clock, which is the one of the files' times."""
    probe = folder / f".now-{os.urandom(8).hex()}"
    try:
        write_file(probe, [])
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _link(folder: Path, token: int, holder: Holder) -> bool:
    """Whether this process got the number."""
    temporary = _write(folder, holder)
    try:
        os.link(temporary, _path(folder, token))
        sync(folder)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _write(folder: Path, holder: Holder) -> Path:
    temporary = folder / f".{holder.nonce}-{os.urandom(4).hex()}"
    write_file(temporary, [json.dumps(dataclasses.asdict(holder)).encode()])
    return temporary


def _path(folder: Path, token: int) -> Path:
    return folder / f"{token:08d}.json"


def _numbered(folder: Path) -> list[Path]:
    return [folder / name for name in os.listdir(folder) if _NAME.fullmatch(name)]


def _newest(folder: Path) -> int | None:
    return max((int(path.stem) for path in _numbered(folder)), default=None)


def _read_holder(path: Path) -> Holder | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Holder(**found)
    except (OSError, ValueError, TypeError):
        return None


def _start_ticks(pid: int) -> int | None:
    """When a process started; None if there is none of this number, or only its remains."""
    try:
        # The name of the program comes in brackets and may hold anything; the state is the first field after it.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""
