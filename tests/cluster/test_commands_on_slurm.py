"""Looking at runs on a real Slurm, as a new user would: a profile by `init`, two nodes, status, logs, a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab_client import Lab

from launch.spec import ROOT

SPEAKER = """\
# Two nodes that speak in turn: node 0 on even steps, node 1 on odd ones. No torch.
import os, time
from pathlib import Path

from node_board import NodeBoard

rank, run = int(os.environ["RANK"]), Path(os.environ["CLEANSFT_RUN_DIR"])
board = NodeBoard.attach_from(os.environ, int(os.environ["LOCAL_RANK"]))
board.plan(20)
(run / f"ready-{rank}").touch()
while len(list(run.glob("ready-*"))) < 2:
    time.sleep(0.01)
began = max(path.stat().st_mtime for path in run.glob("ready-*"))
for step in range(20):
    board.beat("step", step + 1)
    time.sleep(max(0.0, began + 0.8 * (step + 1) - time.time()))
    if step % 2 == rank:
        print(f"say {step}", flush=True)
board.beat("end", 20)
"""


class Commands:
    """`python -m launch` on the lab's login node, with a home of its own."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        own = {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state"), "HOME": str(folder / "home")}
        self.environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | own
        (folder / "speaker.py").write_text(SPEAKER)

    def __call__(self, *words: str, code: int = 0) -> str:
        done = self.lab.exec(self.words(*words), cwd=self.folder, env=self.environment, timeout=120)
        assert done.returncode == code, done.stdout + done.stderr
        return str(done.stdout + done.stderr if code else done.stdout)

    def words(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "launch", *words]

    def facts(self, *words: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self(*words, "--json"))
        return found


@pytest.fixture
def launch(lab: Lab, tmp_path: Path) -> Iterator[Commands]:
    yield Commands(lab, tmp_path)
    for submission in tmp_path.glob("runs/*/submission.json"):
        lab.exec(["scancel", str(json.loads(submission.read_text())["job_id"])])


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert condition()


def test_from_a_profile_to_the_end_of_a_run(launch: Commands) -> None:
    """In eight commands: init, show, submit, list, status, attach, logs -f, wait."""
    said = launch("profiles", "init", "lab", "--partition", "debug")
    assert "partition: debug" in said
    assert "gpus_per_node: " in launch("profiles", "show", "lab")
    profile = ["--profile", "lab", "--gpus-per-node", "0", "--cpus-per-task", "1", "--mem-gb", "1"]
    launch("submit", *profile, "--nodes", "2", "--procs-per-node", "1", "--script", "speaker.py", "--name", "demo")
    with launch.lab.popen(
        launch.words("logs", "-f", "demo"), cwd=launch.folder, env=launch.environment, stdout=subprocess.PIPE
    ) as follower:
        assert follower.stdout is not None
        wait_for(lambda: launch.facts("status", "demo")["progress"]["step"] in range(1, 10))
        (row,) = launch.facts("list")["runs"]
        assert (row["run"], row["state"], row["num_steps"]) == ("demo", "RUNNING", 20)
        hosts = [launch("attach", "demo", "--node", str(node), "--", "hostname").split()[-1] for node in (0, 1)]
        assert sorted(hosts) == sorted(launch.lab.nodes[:2])
        variables = launch("attach", "demo", "--node", "1", "--", "env")
        assert f"CLEANSFT_RUN_DIR={launch.folder}/runs/demo\n" in variables
        assert "SLURM_JOB_ID=" in variables
        shown = follower.stdout.read().splitlines()
        assert follower.wait(timeout=60) == 0
    said_lines = [line for line in shown if "] say " in line]
    assert [line.split("] ")[1] for line in said_lines] == [f"say {step}" for step in range(20)]
    assert {line.split()[0][1:] for line in said_lines} == set(hosts)
    assert "demo: COMPLETED" in launch("wait", "demo")
    facts = launch.facts("status", "demo")
    assert (facts["progress"]["step"], facts["progress"]["num_steps"]) == (20, 20)
    assert "demo is COMPLETED; it must be RUNNING" in launch("attach", "demo", code=2)
    launch("clean", "demo", "--yes")
    assert os.listdir(launch.folder / "runs") == []


def test_mode_46_why_a_run_waits(launch: Commands) -> None:
    """More nodes than are free: `status` and `list` say why; `clean` leaves it alone; `cancel` ends it."""
    everything = ["--executor", "slurm", "--nodes", str(len(launch.lab.nodes)), "--cpus-per-task", "8", "--script"]
    launch("submit", *everything, "speaker.py", "--name", "first", "--partition", "urgent")
    launch("submit", *everything, "speaker.py", "--name", "second")
    # It waits for its priority at first, then for nodes: only what Slurm says last stays the same between two commands.
    wait_for(lambda: launch.facts("status", "second")["reason"] == "Resources")
    facts = launch.facts("status", "second")
    assert facts["state"] == "PENDING"
    assert facts["explanation"]
    assert f"waits    {facts['explanation']}" in launch("status", "second")
    states = {row["run"]: row["state"] for row in launch.facts("list")["runs"]}
    assert states["second"] == "PENDING"
    assert "it must have ended to be removed" in launch("clean", "second", "--yes", code=16)
    assert "second: CANCELLED" in launch("cancel", "second")
    launch("cancel", "first")
