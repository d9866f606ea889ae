"""Runs that are signalled, requeued, preempted, cancelled, and go on, on a real Slurm.

The script is a stand-in for the trainer that saves, exits 10 and goes on; what Slurm does to it is real. The runs go on
at the same time: what takes long is Slurm's pause before a requeued job.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.recording import Shows
from lab_client import Lab
from launch_probe import TRAINER

from launch.spec import ROOT


class Runs:
    """`python -m launch` on the lab's login node."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state")}
        (folder / "train.py").write_text(TRAINER)

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "launch", *words]
        return self.lab.exec(command, cwd=self.folder, env=self.environment, timeout=180)

    def submit(self, name: str, chain: str, *words: str, **env: object) -> str:
        """Submits a run; its job id."""
        variables = [word for key, value in env.items() for word in ("--env", f"{key}={value}")]
        options = ["--executor", "slurm", "--script", "train.py", "--name", name, "--chain", chain, *words, *variables]
        result = self("submit", *options)
        assert result.returncode == 0, result.stdout + result.stderr
        return self.job_id(name)

    def job_id(self, name: str) -> str:
        return str(json.loads((self.folder / "runs" / name / "submission.json").read_text())["job_id"])

    def trace(self, name: str) -> list[tuple[int, int]]:
        """(step, attempt) of every step that rank 0 has begun."""
        path = self.folder / "runs" / name / "trace-0.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(step), int(attempt)) for step, attempt in map(str.split, lines)]

    def log(self, name: str) -> str:
        return (self.folder / "runs" / name / "logs" / "slurm.log").read_text()

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 90) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert condition()

    def state(self, job_id: str) -> str:
        text = self.lab.exec(["scontrol", "--oneliner", "show", "job", job_id]).stdout
        return next((word.split("=")[1] for word in text.split() if word.startswith("JobState=")), "")

    def ends(self, name: str, code: int, state: str) -> None:
        waited = self("wait", name)
        assert waited.returncode == code, waited.stdout + waited.stderr + self.log(name)
        assert f"{name}: {state}" in waited.stdout, waited.stdout


@pytest.fixture
def runs(lab: Lab, tmp_path: Path) -> Iterator[Runs]:
    made = Runs(lab, tmp_path)
    yield made
    for name in (path.name for path in (tmp_path / "runs").iterdir()):
        made("cancel", name)


def test_modes_14_15_stopped_and_failed_runs_go_on_and_nothing_is_done_twice(runs: Runs, shows: Shows) -> None:
    """A signal to the batch script; `scontrol requeue`; a hang in a singleton chain; a loop without progress."""
    runs.submit("signalled", "requeue", "--nodes", "2", PACE=0.3, SAVE=3)
    runs.submit("requeued", "requeue", PACE=0.3, SAVE=1)
    first = runs.submit("chained", "singleton", PACE=0.3, FAILS="0:12")
    runs.submit("stuck", "singleton", FAIL_AT=2, FAIL_CODE=12, PACE=0)
    runs.wait_for(lambda: len(runs.trace("signalled")) > 2 and len(runs.trace("requeued")) > 2)
    assert runs.lab.exec(["scancel", "--batch", "--signal=USR1", runs.job_id("signalled")]).returncode == 0
    assert runs.lab.exec(["scontrol", "requeue", runs.job_id("requeued")]).returncode == 0
    for name in ("signalled", "requeued", "chained"):
        runs.ends(name, 0, "COMPLETED")
        assert [step for step, _ in runs.trace(name)] == list(range(1, 21)), runs.log(name)
        assert {attempt for _, attempt in runs.trace(name)} == {0, 1}
    assert "attempt 0 ended with code 10: attempt 1 goes on from step" in runs.log("signalled")
    # The trap did not wait for srun, which ended when the save of 3 s was over; no signal went to any but the script.
    folder = runs.folder / "runs" / "signalled" / "exit" / "0"
    assert json.loads((folder / "rank-0.json").read_text())["ended_at"] - (folder / "stop.json").stat().st_mtime > 2.5
    script = (runs.folder / "runs" / "signalled" / "submit.sh").read_text()
    assert re.findall(r"--signal=\S+", script) == ["--signal=B:USR1@120"]
    assert "attempt 0 ended with code 10: Slurm has requeued the job" in runs.log("requeued")
    assert "attempt 0 ended with code 12: attempt 1 goes on from step 3" in runs.log("chained")
    assert runs.job_id("chained") != first
    runs.ends("stuck", 93, "FAILED (3 attempts in a row brought no newer checkpoint than step 0)")
    assert {attempt for _, attempt in runs.trace("stuck")} == {0, 1, 2}
    left = runs.lab.exec(["squeue", "-h", "-o", "%j"]).stdout.split()
    assert not {"signalled", "requeued", "chained", "stuck"} & set(left)
    said = "attempt 0 ended with code 10: Slurm has requeued the job"
    shows(13, code=0, says=said, steps_lost=len(runs.trace("requeued")) - 20)
    shows(50, "Slurm", code=93, says="3 attempts in a row brought no newer checkpoint than step 0")


@pytest.mark.soak
def test_cancelled_runs_save_and_are_over_and_resume_goes_on(runs: Runs, shows: Shows) -> None:
    """`scancel` of the job of a singleton chain: the state is saved within KillWait, and its successor goes as well."""
    job_id = runs.submit("x", "singleton", "--nodes", "2", PACE=0.2, STEPS=50, SAVE=1)
    runs.submit("y", "requeue", PACE=0.2, STEPS=1000, SAVE=1)
    runs.wait_for(lambda: len(runs.trace("x")) > 2 and len(runs.trace("y")) > 2)
    successor = str(json.loads((runs.folder / "runs/x/exit/0/attempt.json").read_text())["successor"])
    assert runs.lab.exec(["scancel", job_id]).returncode == 0
    runs.ends("x", 143, "CANCELLED")
    assert "y: CANCELLED" in runs("cancel", "y").stdout
    runs.ends("y", 143, "CANCELLED")
    assert [runs.state(job) for job in (job_id, successor, runs.job_id("y"))] == ["CANCELLED"] * 3
    (saved,) = (runs.folder / "runs" / "x" / "checkpoints").iterdir()
    resumed = runs("resume", "x", "--time-min", "5")
    assert f"goes on from step {int(saved.name[5:])}" in resumed.stdout, resumed.stderr
    refused = runs("resume", "x")
    assert (refused.returncode, f"held by job {runs.job_id('x')}" in refused.stderr) == (16, True), refused.stderr
    runs.wait_for(lambda: any(attempt == 1 for _, attempt in runs.trace("x")))
    steps = [step for step, _ in runs.trace("x")]
    assert steps == list(range(1, len(steps) + 1))
    shows(12, "scancel", code=143, says="x: CANCELLED", steps_lost=len(steps) - max(steps))


@pytest.mark.soak
def test_the_time_limit_and_a_preemption_lose_nothing(runs: Runs, shows: Shows) -> None:
    """A job of a minute goes on over its limit, with a save of 12 s; a preempted one when its nodes are free."""
    runs.submit("limited", "requeue", "--nodes", "2", "--time-min", "1", PACE=1, STEPS=60, SAVE=12)
    runs.submit("preempted", "requeue", "--nodes", "2", "--cpus-per-task", "4", PACE=1, STEPS=30, SAVE=12)
    runs.wait_for(lambda: len(runs.trace("limited")) > 2 and len(runs.trace("preempted")) > 2)
    urgent = [
        "sbatch",
        "--partition=urgent",
        "--nodes=2",
        "--cpus-per-task=8",
        "--output=/dev/null",
        "--wrap",
        "sleep 2",
    ]
    assert runs.lab.exec(urgent).returncode == 0
    for name, num_steps in (("preempted", 30), ("limited", 60)):
        runs.ends(name, 0, "COMPLETED")
        assert [step for step, _ in runs.trace(name)] == list(range(1, num_steps + 1)), runs.log(name)
        last = max(attempt for _, attempt in runs.trace(name))
        assert last >= 1
        said = re.search(r"attempt 0 ended with code 10: .*", runs.log(name))
        assert said is not None
        case = {"preempted": "preemption", "limited": "time limit"}[name]
        shows(14, case, code=0, says=said[0], steps_lost=0, note=f"{last + 1} attempts")
