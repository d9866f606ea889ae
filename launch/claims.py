"""Who may submit a run: numbered claims in its directory, of which the highest counts.

A claim is made by a hard link, of which exactly one succeeds; a stale one is never removed but followed by the next
number. So no two processes ever hold the same one, and an older job knows by its number that it was overtaken.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.processes import start_ticks
from launch.records import make_directory, read_json, write_json

CLAIM = "CLEANSFT_CLAIM"
"""Number of the claim under which a job was submitted; it comes with the environment of sbatch."""


@dataclass(frozen=True)
class Claim:
    """The right to submit a run, and who has it."""

    path: Path
    number: int
    record: dict[str, Any]

    @property
    def token(self) -> str:
        """Marks the job in Slurm (its comment): a submission that ended in doubt is found again by it."""
        return str(self.record.get("token", ""))

    @property
    def job_id(self) -> str | None:
        """The job that was submitted under it; None while that is being done."""
        return self.record.get("job_id")

    @property
    def holder(self) -> str:
        """Who holds it, for people."""
        if self.job_id is not None:
            return f"job {self.job_id}, submitted on {self.record.get('host')}"
        return f"process {self.record.get('pid')} on {self.record.get('host')}, which is submitting it"

    def submitter_lives(self) -> bool | None:
        """Whether the process that made it still runs; None where that can't be seen from here."""
        if self.record.get("host") != socket.gethostname():
            return None
        if self.record.get("boot_id") != boot_id():
            return False
        ticks = start_ticks(int(self.record["pid"]))
        return ticks is not None and ticks == self.record.get("start_ticks")

    def with_job(self, job_id: str) -> Claim:
        """Notes the job that now holds the run."""
        record = {**self.record, "job_id": job_id}
        write_json(self.path, record)
        return Claim(self.path, self.number, record)


def boot_id() -> str:
    """Changes with every start of the machine: a pid of before means nothing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def latest_claim(run_dir: Path) -> Claim | None:
    """The claim that counts; None where the run was never claimed."""
    folder = run_dir / "claims"
    names = os.listdir(folder) if folder.is_dir() else []
    taken = sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())
    if not taken:
        return None
    path = folder / f"{taken[-1]}.json"
    return Claim(path, taken[-1], read_json(path) or {})


def make_claim(run_dir: Path, number: int) -> Claim | None:
    """Claims the run under `number`; None where somebody was faster."""
    folder = run_dir / "claims"
    make_directory(folder)
    path = folder / f"{number}.json"
    record = {
        "host": socket.gethostname(),
        "boot_id": boot_id(),
        "pid": os.getpid(),
        "start_ticks": start_ticks(os.getpid()),
        "token": f"cleansft-{os.urandom(8).hex()}",
        "claimed_at": time.time(),
    }
    temporary = folder / f".{number}.{os.getpid()}.{record['token']}"
    write_json(temporary, record)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return None
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    return Claim(path, number, record)
