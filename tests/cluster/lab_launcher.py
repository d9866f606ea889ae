"""`python -m launch` on the lab's login node with a script that needs no torch: for tests of what the launcher does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab_client import Lab
from launch_probe import PROBE
from processes_of_runs import environment_of

from launch.spec import ROOT


class Launcher:
    """`python -m launch` on the lab's login node, in a folder with the probe script."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        own = {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state")}
        self.environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | own
        (folder / "probe.py").write_text(PROBE)

    def __call__(self, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "launch", *words]
        return self.lab.exec(command, cwd=cwd or self.folder, env=self.environment, timeout=120)

    def submit(self, name: str, *words: str) -> None:
        result = self("submit", "--executor", "slurm", "--script", "probe.py", "--name", name, *words)
        assert result.returncode == 0, result.stdout + result.stderr

    def run_dir(self, name: str) -> Path:
        return self.folder / "runs" / name

    def job_id(self, name: str) -> str:
        return str(self.record(name, "submission.json")["job_id"])

    def record(self, name: str, path: str) -> dict[str, Any]:
        """A JSON file of a run's directory."""
        record: dict[str, Any] = json.loads((self.run_dir(name) / path).read_text())
        return record

    def seen(self, name: str, rank: int) -> dict[str, Any]:
        """What the probe of one rank wrote down."""
        return self.record(name, f"seen-{rank}.json")

    def is_up(self, name: str, num_ranks: int) -> Callable[[], bool]:
        """Whether all ranks of a run have begun."""
        return lambda: len(list(self.run_dir(name).glob("seen-*.json"))) == num_ranks

    def slurm_says(self, name: str) -> dict[str, str]:
        """The job as scontrol shows it, once Slurm has ended it."""
        deadline = time.monotonic() + 20
        while True:
            text = self.lab.exec(["scontrol", "show", "job", self.job_id(name)]).stdout
            job = dict(word.split("=", 1) for word in text.split() if "=" in word)
            if job["JobState"] not in ("RUNNING", "COMPLETING") or time.monotonic() > deadline:
                return job
            time.sleep(0.2)

    def left_over(self, name: str) -> list[str]:
        """Command lines of processes on the nodes that belong to the run, after 3 s for srun's own end."""
        deadline = time.monotonic() + 3
        while True:
            folder = str(self.run_dir(name)).encode()
            found = [
                process.command_line
                for process in self.lab.node_processes()
                if folder in environment_of(process.pid) or folder.decode() in process.command_line
            ]
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.2)

    def close(self) -> None:
        """Cancels what still runs."""
        for submission in self.folder.glob("runs/**/submission.json"):
            self.lab.exec(["scancel", str(json.loads(submission.read_text())["job_id"])])
