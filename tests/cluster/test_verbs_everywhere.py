"""Every command of the launcher in three places: Slurm with accounting, Slurm without, and a machine without Slurm. The
words are the same everywhere; what runs the job is found by the launcher itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab_client import Lab, run_lab
from lab_runs import wait_for
from launch_probe import TRAINER

from launch.spec import ROOT

WITH, WITHOUT, HERE = "slurm with slurmdbd", "slurm without slurmdbd", "this machine"
EXPORTER = "import pathlib, sys; print('found', sorted(pathlib.Path(sys.argv[1], 'checkpoints').iterdir())[-1].name)"


class Place:
    """Where `python -m launch` is typed."""

    def __init__(self, kind: str, lab: Lab, folder: Path) -> None:
        self.kind = kind
        self.lab = lab
        self.folder = folder
        own = {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state"), "HOME": str(folder / "home")}
        self.environment = os.environ | own
        (folder / "train.py").write_text(TRAINER)
        (folder / "export.py").write_text(EXPORTER)

    @property
    def executor(self) -> str:
        return "local" if self.kind == HERE else "slurm"

    def popen(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "launch", *words]
        options: dict[str, Any] = {"cwd": self.folder, "env": self.environment, "stdout": subprocess.PIPE}
        if self.kind == HERE:
            return subprocess.Popen(command, text=True, stderr=subprocess.PIPE, **options)
        return self.lab.popen(command, stderr=subprocess.PIPE, **options)

    def __call__(self, *words: str, code: int = 0) -> str:
        with self.popen(*words) as process:
            said, complained = process.communicate(timeout=180)
        assert process.returncode == code, said + complained
        return said

    def facts(self, *words: str, code: int = 0) -> dict[str, Any]:
        """The last line of what a command says with --json."""
        found: dict[str, Any] = json.loads(self(*words, "--json", code=code).splitlines()[-1])
        return found

    def submit(self, name: str, *words: str, **env: object) -> None:
        variables = [word for key, value in env.items() for word in ("--env", f"{key}={value}")]
        said = self("submit", "--nodes", "2", "--script", "train.py", "--name", name, *words, *variables)
        assert re.search(rf"^job +\S+ \({self.executor}\)$", said, re.MULTILINE), said

    def steps(self, name: str) -> list[int]:
        """The steps that rank 0 has begun."""
        path = self.folder / "runs" / name / "trace-0.txt"
        return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module", params=[WITH, WITHOUT, HERE])
def kind(request: pytest.FixtureRequest, lab: Lab) -> Iterator[str]:
    if request.param == WITH and lab.exec(["sacct", "--noheader"]).returncode != 0:
        pytest.skip("the lab has no accounting: slurmdbd and MariaDB are not installed")
    if request.param != WITHOUT:
        yield request.param
        return
    size = ["--dir", str(lab.directory), "--nodes", str(len(lab.nodes))]
    assert run_lab("down", *size[:2]).returncode == 0
    started = run_lab("up", *size, "--no-accounting")
    assert started.returncode == 0, started.stdout + started.stderr
    try:
        assert lab.exec(["sacct"]).returncode != 0, "there is accounting; nothing would be shown"
        yield request.param
    finally:
        assert run_lab("down", *size[:2]).returncode == 0
        assert run_lab("up", *size).returncode == 0


@pytest.fixture
def place(kind: str, lab: Lab, tmp_path: Path) -> Iterator[Place]:
    made = Place(kind, lab, tmp_path)
    yield made
    for path in sorted((tmp_path / "runs").glob("*")):
        made.popen("cancel", path.name).communicate(timeout=60)


def test_a_run_is_planned_watched_followed_repeated_stopped_resumed_and_removed(place: Place) -> None:
    assert "# ===== submit.sh =====" in place("print", "--nodes", "2", "--script", "train.py", "--name", "a")
    assert not (place.folder / "runs").exists()
    place.submit("a", PACE=0.5, STEPS=16)
    with place.popen("logs", "-f", "a") as follower:
        wait_for(lambda: len(place.steps("a")) > 1)
        (row,) = place.facts("list")["runs"]
        assert (row["run"], row["state"]) == ("a", "RUNNING")
        facts = place.facts("status", "a")
        assert (facts["state"], facts["attempt"]) == ("RUNNING", 0)
        assert 0 < facts["progress"]["step"] < 16
        assert place.facts("top", "a")["state"] == "RUNNING"
        assert "RUNNING" in place("top", "a", "--once")
        variables = place("attach", "a", "--node", "1", "--", "env")
        assert f"CLEANSFT_RUN_DIR={place.folder}/runs/a\n" in variables
        said, _ = follower.communicate(timeout=90)
        assert follower.returncode == 0
    assert (
        sorted(line.split("] ")[1] for line in said.splitlines() if "rank " in line.split("]")[0])
        == ["attempt 0 begins at step 0"] * 2
    )
    assert "a: COMPLETED" in place("wait", "a")
    assert place.facts("status", "a")["code"] == 0
    assert "attempt 0 begins" in place("logs", "a", "--rank", "1")

    place("resubmit", "a", "--name", "b", "--", "--unused")
    wait_for(lambda: len(place.steps("b")) > 2)
    assert "b: CANCELLED" in place("cancel", "b")
    place("wait", "b", code=143)
    done = len(place.steps("b"))
    place("resume", "b")
    place("wait", "b")
    assert place.steps("b") == list(range(1, 17))
    assert [end["attempt"] for end in place.facts("status", "b")["attempts"]] == [0, 1]
    assert done < 16
    place("clean", "a", "b", "--yes")
    assert os.listdir(place.folder / "runs") == []


def test_a_failure_ends_a_run_and_goes_on_where_it_may(place: Place) -> None:
    """Code 12 is followed by another attempt, 42 by none; both are told."""
    place.submit("hung", "--chain", "requeue", PACE=0.1, FAILS="0:12")
    place.submit("wrong", "--chain", "requeue", PACE=0.1, FAILS="0:42")
    place("wait", "wrong", code=42)
    facts = place.facts("status", "wrong")
    assert (facts["state"], facts["code"], len(facts["attempts"])) == ("FAILED", 42, 1)
    place("wait", "hung")
    assert place.steps("hung") == list(range(1, 21))
    assert len(place.facts("status", "hung")["attempts"]) == 2
    states = {row["run"]: row["state"] for row in place.facts("list")["runs"]}
    assert states == {"hung": "COMPLETED", "wrong": "FAILED"}


def test_a_sweep_and_stages(place: Place) -> None:
    place("sweep", "--script", "train.py", "--name", "s", "--env", "PACE=0.05", "--parallel", "2", "learning_rate=1,2")
    stages = {
        "train": {"script": "train.py"},
        "export": {"script": "export.py", "args": ["{train.output_dir}"]},
    }
    shared = {"env": {"FAILS": "0:10", "PACE": "0.1"}, "chain": "requeue"}
    (place.folder / "stages.yaml").write_text(yaml.safe_dump({"launch": shared, "stages": stages}, sort_keys=False))
    place("stages", "stages.yaml", "--name", "t", "--wait")
    assert "found step-" in place("logs", "t-export")
    for number in (0, 1):
        place("wait", f"s-{number}")
        assert place.steps(f"s/{number}") == list(range(1, 21))
    rows = place.facts("list", "--sweep", "s")["runs"]
    assert sorted(row["run"] for row in rows) == ["s-0", "s-1"]
    assert {row["state"] for row in rows} == {"COMPLETED"}


def test_nodes_are_examined_and_profiles_listed(place: Place) -> None:
    with place.popen("doctor", "--nodes", "2", "--cpus-per-task", "1", "--json") as doctor:
        report = json.loads(doctor.communicate(timeout=180)[0].splitlines()[-1])
    assert len(report["nodes"]) == 2
    # That a node is slow may well be true of a machine that does other things too.
    wrong = [found for found in report["findings"] if found["verdict"] == "error" and "slow" not in found["what"]]
    assert wrong == []
    assert doctor.returncode == (1 if report["wrong_nodes"] else 0)
    assert "profiles" in place.facts("profiles", "list")
    assert "launch" in place("completion", "bash")


def test_curves_in_a_browser(place: Place) -> None:
    place.submit("a", PACE=0.05)
    place("wait", "a")
    (place.folder / "runs" / "a" / "tensorboard").mkdir()  # the trainer's, with its curves
    server = place.popen("tensorboard", "a")
    try:
        assert server.stdout is not None
        address = next(
            found[0] for line in server.stdout if (found := re.search(r"http://(localhost|127\S+?):\d+", line))
        )
        if place.kind == HERE:
            wait_for(lambda: _answers(address))
    finally:
        server.terminate()
        server.communicate(timeout=30)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_a_run_in_the_foreground(place: Place) -> None:
    """Always on this machine, whether there is Slurm or not."""
    said = place("run", "--nodes", "2", "--script", "train.py", "--name", "a", "--env", "PACE=0.05")
    assert "begins at step 0" in said
    assert place.facts("status", "a")["state"] == "COMPLETED"
