"""Runs that are stopped, fail and go on, on this machine: the same rules as on Slurm, in seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.recording import Shows
from launch_probe import TRAINER

from launch import processes
from launch.spec import ROOT

pytestmark = pytest.mark.ranks


class Launcher:
    """`python -m launch` in a folder with a script that saves and goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"PYTHONPATH": str(ROOT)}
        (folder / "train.py").write_text(TRAINER)

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        with self.start(*words) as process:
            out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "launch", *words]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, **pipes)

    def submit(self, *words: str, chain: str = "requeue", **env: object) -> subprocess.CompletedProcess[str]:
        variables = [word for name, value in env.items() for word in ("--env", f"{name}={value}")]
        options = ["--executor", "local", "--script", "train.py", "--name", "x", "--chain", chain]
        return self("submit", *options, *words, *variables)

    @property
    def run_dir(self) -> Path:
        return self.folder / "runs" / "x"

    @property
    def supervisor(self) -> int:
        return int(json.loads((self.run_dir / "submission.json").read_text())["pid"])

    def trace(self, rank: int = 0) -> list[tuple[int, int]]:
        """(step, attempt) of every step that a rank has begun."""
        path = self.run_dir / f"trace-{rank}.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(step), int(attempt)) for step, attempt in map(str.split, lines)]

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert condition()


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path)
    yield launcher
    if (launcher.run_dir / "submission.json").exists():
        launcher("cancel", "x")


def test_a_failure_and_a_stop_are_gone_on_from(launch: Launcher) -> None:
    """Attempt 0 fails with 12, attempt 1 is asked to stop and takes a second to save; each step is done once."""
    assert launch.submit("--nodes", "2", FAILS="0:12", PACE=0.1, SAVE=1).returncode == 0
    launch.wait_for(lambda: (6, 1) in launch.trace())
    os.kill(launch.supervisor, signal.SIGUSR1)
    waited = launch("wait", "x")
    assert waited.returncode == 0, waited.stdout + waited.stderr
    assert [step for step, _ in launch.trace()] == list(range(1, 21))
    assert {attempt for _, attempt in launch.trace()} == {0, 1, 2}
    assert "x: COMPLETED" in waited.stdout
    assert "attempt 2" in waited.stdout
    log = (launch.run_dir / "logs" / "local.log").read_text()
    assert "attempt 0 ended with code 12: attempt 1 goes on from step 3" in log
    assert "attempt 1 ended with code 10: attempt 2 goes on" in log
    assert all((launch.run_dir / f"logs/{attempt}/rank-1.log").exists() for attempt in range(3))


def test_a_stop_before_any_rank_is_there_is_gone_on_from(launch: Launcher) -> None:
    """The request is there before the agents are: nothing is saved, and the next attempt does all of it."""
    stop = """[ -e asked ] || { touch asked; echo '{"reason": "signal"}' > runs/x/exit/0/stop.json; }"""
    (launch.folder / "run.yaml").write_text(json.dumps({"launch": {"notify": ["sh", "-c", stop]}}))
    assert launch.submit("--config", "run.yaml", PACE=0).returncode == 0
    waited = launch("wait", "x")
    assert waited.returncode == 0, waited.stdout + waited.stderr
    assert {attempt for _, attempt in launch.trace()} == {1}
    end = json.loads((launch.run_dir / "exit/0/end.json").read_text())
    assert (end["was_stopped"], end["again"]) == (True, True)


@pytest.mark.soak
def test_no_progress_ends_the_chain(launch: Launcher, shows: Shows) -> None:
    launch.submit(FAIL_AT=2, FAIL_CODE=12, PACE=0)
    waited = launch("wait", "x")
    assert waited.returncode == 93, waited.stdout + waited.stderr
    assert "x: FAILED (3 attempts in a row brought no newer checkpoint than step 0)" in waited.stdout
    assert {attempt for _, attempt in launch.trace()} == {0, 1, 2}
    shows(50, "local", code=waited.returncode, says=waited.stdout)


def test_cancel_saves_and_nothing_follows_but_resume_does(launch: Launcher) -> None:
    """One node takes 3 s longer to save than the grace of a failure is; then `resume` goes on from that step."""
    launch.submit("--nodes", "2", PACE=0.1, STEPS=60, SAVE=5)
    launch.wait_for(lambda: len(launch.trace(0)) > 2 and len(launch.trace(1)) > 2)
    running = launch("resume", "x")
    assert (running.returncode, "held by job local-" in running.stderr) == (16, True), running.stderr
    assert "x: CANCELLED" in launch("cancel", "x").stdout
    (saved,) = (launch.run_dir / "checkpoints").iterdir()
    assert launch("wait", "x").returncode == 143
    resumed = launch("resume", "x", "--override", "learning_rate=0.1", "--accept-data-change")
    assert f"goes on from step {int(saved.name[5:])}" in resumed.stdout, resumed.stdout + resumed.stderr
    launch.wait_for(lambda: any(attempt == 1 for _, attempt in launch.trace()))
    assert launch.trace()[-1][0] > int(saved.name[5:])
    job = json.loads((launch.run_dir / "job.json").read_text())
    assert job["resume_args"] == [
        "--learning_rate", "0.1", "--resume_override", "[learning_rate]", "--accept_data_change", "true",
    ]  # fmt: skip
    assert "x: RUNNING" in launch("status", "x").stdout


@pytest.mark.soak
def test_of_twenty_resumes_one_wins(launch: Launcher, shows: Shows) -> None:
    launch.submit(chain="none", FAIL_AT=2, FAIL_CODE=12, PACE=0)
    assert launch("wait", "x").returncode == 12
    job = json.loads((launch.run_dir / "job.json").read_text())
    (launch.run_dir / "job.json").write_text(json.dumps({**job, "env": {"PACE": "1", "STEPS": "100"}}))
    racers = [launch.start("resume", "x") for _ in range(20)]
    said = [(racer.wait(timeout=120), racer.communicate()[1]) for racer in racers]
    assert sorted(code for code, _ in said) == [0] + [16] * 19, said
    assert all("held by" in error or "being resumed by" in error for code, error in said if code), said
    launch.wait_for(lambda: (1, 1) in launch.trace())
    assert sorted(os.listdir(launch.run_dir / "exit")) == ["0", "1"]
    shows(39, code=16, says=next(error for code, error in said if code), note="19 of 20 refused")


@pytest.mark.soak
def test_of_twenty_submissions_one_wins(launch: Launcher, shows: Shows) -> None:
    words = ["submit", "--executor", "local", "--script", "train.py", "--name", "x", "--env", "PACE=1"]
    began_at = time.monotonic()
    racers = [launch.start(*words) for _ in range(20)]
    said = [(racer.wait(timeout=120), racer.communicate()[1]) for racer in racers]
    assert sorted(code for code, _ in said) == [0] + [2] * 19, said
    assert all("process" in error or "job local-" in error for code, error in said if code), said
    # Twenty processes share the machine; one alone is told in well under a second.
    assert time.monotonic() - began_at < 60
    begun = time.monotonic()
    late = launch(*words)
    assert (late.returncode, "belongs to job local-" in late.stderr) == (2, True), late.stderr
    late_s = time.monotonic() - begun
    assert late_s < 5
    shows(38, code=late.returncode, says=late.stderr, found_s=late_s, note="19 of 20 refused")


def test_an_orphaned_claim_is_taken_over(launch: Launcher) -> None:
    """A submission that was killed in its middle leaves a claim of a process that is gone."""
    code = (
        "import os, signal, sys; from pathlib import Path; from launch.claims import make_claim; "
        "make_claim(Path('runs/x'), 0); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=launch.folder, env=launch.environment, check=False)
    assert launch.submit("--wait", PACE=0, STEPS=2).returncode == 0
    assert sorted(os.listdir(launch.run_dir / "claims")) == ["0.json", "1.json"]


@pytest.mark.soak
def test_a_killed_run_is_resumed(launch: Launcher) -> None:
    """SIGKILL of the supervisor: the agents save, as their parent is gone, and `resume` takes over."""
    launch.submit(PACE=0.1, STEPS=40)
    launch.wait_for(lambda: len(launch.trace()) > 3)
    pids = processes.descendants(launch.supervisor)
    os.kill(launch.supervisor, signal.SIGKILL)
    launch.wait_for(lambda: not any(processes.start_ticks(pid) for pid in pids))
    resumed = launch("resume", "x", "--wait")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    steps = [step for step, _ in launch.trace()]
    assert steps == list(range(1, 41))
    assert "x: COMPLETED" in resumed.stdout
    again = launch("resume", "x")
    assert (again.returncode, "is complete" in again.stderr) == (2, True)
