"""Processes that race for a run directory: `python racing.py ROLE FOLDER SEED` says in a line how it ended."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def race(*roles: object) -> list[str]:
    """Runs processes of each role (`race("save", folders, "succeed", folders)`), the same folder's at a time; returns
    what each said, in order."""
    pairs = list(zip(roles[::2], roles[1::2], strict=True))
    jobs = [(str(role), folder) for role, folders in pairs for folder in folders]  # type: ignore[attr-defined]
    num_at_once = 20
    said: dict[int, str] = {}
    by_folder = sorted(range(len(jobs)), key=lambda number: (str(jobs[number][1]), number))
    for start in range(0, len(jobs), num_at_once):
        batch = by_folder[start : start + num_at_once]
        started = [
            (number, subprocess.Popen(
                [sys.executable, __file__, jobs[number][0], str(jobs[number][1]), str(number)],
                stdout=subprocess.PIPE, text=True,
            ))
            for number in batch
        ]  # fmt: skip
        for number, process in started:
            said[number] = process.communicate(timeout=120)[0].strip()
    return [said[number] for number in range(len(jobs))]


def contend(folder: Path, seed: int) -> str:
    """Wants to hold the folder; whoever gets it stays until all others were refused."""
    from sft.errors import FencedError
    from sft.fence import Holder, take

    try:
        take(folder, Holder.this_process({}), say=lambda _: None)
    except FencedError:
        (folder / f"refused-{seed}").touch()
        return "refused"
    while len(list(folder.glob("refused-*"))) < 19:
        time.sleep(0.01)
    return "held"


def save(folder: Path, seed: int) -> str:
    """Commits one checkpoint after the other until it is fenced, with a pause somewhere between check and rename."""
    from sft.commit import commit, temporary_path
    from sft.errors import FencedError
    from sft.fence import Holder, take
    from sft.manifest import Manifest
    from sft.storage import write_file

    numbers = random.Random(seed)
    fence = take(folder, Holder.this_process({"SLURM_JOB_ID": "1"}))
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir()

    def check_and_dawdle() -> None:
        fence.check()
        time.sleep(numbers.uniform(0, 0.05))

    for step in range(10_000):
        temporary = temporary_path(checkpoints, step, f"1-{step}")
        temporary.mkdir()
        files = {"part": write_file(temporary / "part", [b"x" * 100])}
        try:
            commit(temporary, Manifest(step, 0, 0, 1, fence.token, "", {}, {}, files), check_and_dawdle)
        except FencedError:
            return "fenced"
        except FileNotFoundError:  # its folder was renamed away; the next check says why
            with contextlib.suppress(FencedError):
                fence.check()
                return "lost its folder without being fenced"
            return "fenced"
    return "never fenced"


def succeed(folder: Path, seed: int) -> str:
    """Takes over as the next start of the same job, clears, looks what there is, and commits a checkpoint."""
    from sft.commit import checkpoints_in, commit, remove_leftovers, step_of, temporary_path
    from sft.fence import Holder, take
    from sft.manifest import Manifest
    from sft.storage import write_file

    checkpoints = folder / "checkpoints"
    while not checkpoints.is_dir():
        time.sleep(0.005)
    time.sleep(random.Random(seed).uniform(0, 0.3))
    fence = take(folder, Holder.this_process({"SLURM_JOB_ID": "1", "SLURM_RESTART_COUNT": "1"}), say=lambda _: None)
    remove_leftovers(checkpoints)
    seen = max((step_of(path) for path in checkpoints_in(checkpoints)), default=-1)
    time.sleep(0.2)
    step = 20_000 + seen
    temporary = temporary_path(checkpoints, step, "2-1")
    temporary.mkdir()
    files = {"part": write_file(temporary / "part", [b"y" * 100])}
    commit(temporary, Manifest(step, 0, 0, 1, fence.token, "", {}, {}, files), fence.check)
    fence.release()
    return f"saw {seen}"


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    print({"contend": contend, "save": save, "succeed": succeed}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3])))
