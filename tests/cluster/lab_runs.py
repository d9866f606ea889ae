"""Runs of our trainer on the lab, and what can be done to them: for tests of what must come of faults."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from lab_client import Lab, NodeProcess
from processes_of_runs import environment_of, script_of
from tiny import QWEN3, TOKENIZER, write_conversations

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 400
SAVE_STEPS = 5
SETTINGS: dict[str, Any] = {
    "model_config": QWEN3,
    "tokenizer_name": TOKENIZER,
    "bf16": False,
    "per_device_train_batch_size": 1,
    "max_steps": NUM_STEPS,
    "save_steps": SAVE_STEPS,
    "save_total_limit": 1000,
    "logging_steps": 1,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "report_to": "none",
    "matmul_tflops": 1.0,
}


def wait_for(condition: Callable[[], Any], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert condition()


class LabRun:
    """A run, by its directory."""

    def __init__(self, lab: Lab, path: Path) -> None:
        self.lab = lab
        self.path = path

    def json(self, name: str) -> dict[str, Any]:
        """A file of the run directory, as JSON; empty where there is none."""
        try:
            found: dict[str, Any] = json.loads((self.path / name).read_text())
        except (OSError, ValueError):
            return {}
        return found

    @property
    def job_id(self) -> str:
        return str(self.json("submission.json")["job_id"])

    def record(self, rank: int, attempt: int = 0) -> dict[str, Any]:
        return self.json(f"exit/{attempt}/rank-{rank}.json")

    def end(self, attempt: int = 0) -> dict[str, Any]:
        """What was decided when an attempt had ended; empty before."""
        return self.json(f"exit/{attempt}/end.json")

    def log(self, name: str = "slurm.log") -> str:
        return (self.path / "logs" / name).read_text()

    @property
    def last_words(self) -> list[str]:
        """The last line of each attempt."""
        return re.findall(r"^LAUNCH-EXIT .*$", self.log(), re.MULTILINE)

    def word(self, name: str, attempt: int = 0) -> str:
        """A field of the last line of an attempt."""
        (found,) = re.findall(rf'\b{name}=("[^"]*"|\S+)', self.last_words[attempt])
        return str(found)

    def steps_lost(self, attempt: int = 0) -> int:
        """Steps that were done and had to be done again; the one in which the attempt ended is none of them."""
        done = int(self.word("step", attempt)) - (self.word("reason", attempt) != "stopped")
        return done - int(self.end(attempt)["step"])

    def saved_steps(self) -> list[int]:
        return sorted(int(path.name[5:]) for path in self.path.glob("checkpoints/step-????????"))

    def wait_for_step(self, step: int, timeout_s: float = 120) -> None:
        """Waits for a checkpoint of this step or a later one."""
        wait_for(lambda: any(found >= step for found in self.saved_steps()), timeout_s)

    def saved_at(self, after_step: int, after: float) -> float:
        """When the first checkpoint of a later step was complete that is younger than `after` (time.time())."""
        steps = [step for step in self.saved_steps() if step > after_step]
        times = [(self.path / f"checkpoints/step-{step:08d}/MANIFEST.json").stat().st_mtime for step in steps]
        return min(at for at in times if at > after)

    def script(self, rank: int) -> int:
        """The pid of a rank's training script."""
        return script_of(int(self.record(rank)["pid"]))

    def agent(self, node: str) -> int:
        """The pid of a node's agent."""
        return self.lab.node_processes(f"submitit.core._submit {self.path}/submitit", node=node)[0].pid

    def processes(self, node: str | None = None) -> list[NodeProcess]:
        """Everything of the run that lives on the nodes."""
        folder = str(self.path).encode()
        return [
            process
            for process in self.lab.node_processes(node=node)
            if folder.decode() in process.command_line or folder in environment_of(process.pid)
        ]

    def gone_after(self, found: list[NodeProcess], since: float, timeout_s: float = 60) -> float:
        """Seconds from `since` (time.time()) until none of these processes is left."""
        pids = {process.pid for process in found}
        wait_for(lambda: not any(alive(pid) for pid in pids), timeout_s)
        return time.time() - since

    @property
    def losses(self) -> list[str]:
        """Of each step, exact; each once."""
        records = json.loads((self.path / "training_log.json").read_text())
        steps = [record for record in records if record["type"] == "train"]
        assert [record["step"] for record in steps] == list(range(1, len(steps) + 1))
        return [float(record["loss"]).hex() for record in steps]

    @property
    def weights(self) -> str:
        return hashlib.sha256((self.path / "model.safetensors").read_bytes()).hexdigest()

    def is_as(self, other: LabRun) -> bool:
        """Whether it has the losses and the weights of another one."""
        return (self.losses, self.weights) == (other.losses, other.weights)


class LabRuns:
    """`python -m launch` on the lab's login node, in a folder with data."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state")}
        write_conversations(folder / "train.jsonl", 32)

    def __call__(self, *words: str, timeout_s: float = 400) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "launch", *words]
        return self.lab.exec(command, cwd=self.folder, env=self.environment, timeout=timeout_s)

    def submit(
        self,
        name: str,
        *words: str,
        nodes: int = 2,
        chain: str = "none",
        fault: str = "",
        settings: dict[str, Any] | None = None,
        launch: dict[str, Any] | None = None,
    ) -> LabRun:
        own = {"train_file": str(self.folder / "train.jsonl"), "launch": {"chain": chain, **(launch or {})}}
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump({**SETTINGS, **own, **(settings or {})}))
        options = ["--executor", "slurm", "--nodes", str(nodes), "--config", f"{name}.yaml", "--name", name]
        options += ["--skip-audit", "--env", "OMP_NUM_THREADS=1", "--env", f"SFT_FAULT={fault}"]
        done = self("submit", *options, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return LabRun(self.lab, self.folder / "runs" / name)

    def ended(self, run: LabRun, code: int = 0) -> LabRun:
        """Waits for the end of a run, which must have this code."""
        done = self("wait", run.path.name)
        assert done.returncode == code, done.stdout + done.stderr + run.log()
        wait_for(lambda: all(run.end(int(path.name)) for path in run.path.glob("exit/*")), 20)
        return run

    def close(self) -> None:
        """Cancels what still runs."""
        for submission in self.folder.glob("runs/*/submission.json"):
            job = str(json.loads(submission.read_text())["job_id"])
            begun = [json.loads(path.read_text()) for path in submission.parent.glob("exit/*/attempt.json")]
            successors = [str(record["successor"]) for record in begun if record.get("successor")]
            self.lab.exec(["scancel", job, *successors])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
