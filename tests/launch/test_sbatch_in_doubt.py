"""sbatch that fails, hangs, babbles, or takes the job and dies: the run is submitted once, or not at all.

The controller is a file: a line per job that it has taken. sbatch and squeue are stand-ins in front of it, as a real
Slurm does none of this on request.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults.recording import Shows

from launch import cluster
from launch.__main__ import main

ACCEPT = """
for word in "$@"; do case $word in --comment=*) token=${word#--comment=};; esac; done
id=$(( 70 + $(wc -l < jobs) )); echo "$id|$token" >> jobs
"""
SBATCH = {
    "good": f"{ACCEPT} echo Submitted batch job $id",
    "refuses": "echo 'sbatch: error: Batch job submission failed: Invalid qos' >&2; exit 1",
    "times out, not taken": "echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1",
    "times out, taken": f"{ACCEPT} echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1",
    "babbles, taken": f"{ACCEPT} echo '?? ok'",
    "hangs, taken": f"{ACCEPT} sleep 60",
    "hangs, not taken": "sleep 60",
    "dies, taken": f"{ACCEPT} kill -9 $$",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    (tmp_path / "probe.py").write_text("")
    (tmp_path / "jobs").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{bin_dir}:/usr/bin:/bin")
    monkeypatch.setattr(cluster, "_TIMEOUT", ("timeout", "--kill-after=1", "1"))
    install(tmp_path, "sinfo", "echo 'cpu|cpu*|2|(null)|8|infinite'")
    install(tmp_path, "srun", "exit 0")
    install(tmp_path, "squeue", "cat jobs")
    return tmp_path


TEST_ONLY = """
case " $* " in *" --test-only "*)
  echo 'sbatch: Job 70 to start at 2026-11-21T15:50:00 using 2 processors on nodes n1 in partition cpu' >&2; exit 0;;
esac
"""


def install(folder: Path, name: str, text: str) -> None:
    text = f"{TEST_ONLY}{text}" if name == "sbatch" else text
    (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / "bin" / name).chmod(0o755)


def submit() -> int:
    return main(["submit", "--script", "probe.py", "--executor", "slurm", "--name", "x"])


def num_jobs(folder: Path) -> int:
    return len((folder / "jobs").read_text().splitlines())


@pytest.mark.parametrize("kind", [kind for kind in SBATCH if kind == "good" or kind.endswith(", taken")])
def test_a_job_that_was_taken_is_found(folder: Path, shows: Shows, kind: str) -> None:
    install(folder, "sbatch", SBATCH[kind])
    assert submit() == 0
    submission = json.loads((folder / "runs/x/submission.json").read_text())
    assert (submission["job_id"], num_jobs(folder)) == ("70", 1)
    assert (folder / "runs/x/submitit/70_submitted.pkl").exists()
    assert submit() == 2
    assert num_jobs(folder) == 1
    shows(54, "taken", code=0, note="sbatch " + kind)


@pytest.mark.parametrize("kind", [kind for kind in SBATCH if kind == "refuses" or kind.endswith(", not taken")])
def test_a_job_that_was_not_taken_leaves_nothing_and_is_tried_again(folder: Path, shows: Shows, kind: str) -> None:
    install(folder, "sbatch", SBATCH[kind])
    assert submit() == 2
    assert os.listdir(folder / "runs") == []
    install(folder, "sbatch", SBATCH["good"])
    assert submit() == 0
    assert num_jobs(folder) == 1
    shows(54, "not taken", code=2, note="sbatch " + kind)


def test_where_nobody_answers_it_is_left_in_doubt_and_found_later(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(folder, "sbatch", SBATCH["times out, taken"])
    install(folder, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert submit() == 2
    assert "Whether the job exists is unknown" in capsys.readouterr().err
    assert num_jobs(folder) == 1
    assert not (folder / "runs/x/submission.json").exists()
    claim = folder / "runs/x/claims/0.json"
    claim.write_text(json.dumps({**json.loads(claim.read_text()), "start_ticks": 1}))  # as from a process that is gone
    install(folder, "squeue", "cat jobs")
    assert submit() == 2
    assert "was submitted already, as job 70" in capsys.readouterr().err
    assert json.loads((folder / "runs/x/submission.json").read_text())["job_id"] == "70"
    assert num_jobs(folder) == 1


def start(folder: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "launch", "submit", "--script", "probe.py", "--executor", "slurm", "--name", "x"]
    root = str(Path(cluster.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root}
    return subprocess.Popen(words, env=environment, cwd=folder, text=True, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    ("number", "has_record"), [(signal.SIGHUP, True), (signal.SIGINT, True), (signal.SIGKILL, False)]
)
def test_the_terminal_is_closed_between_the_job_and_its_record(
    folder: Path, shows: Shows, number: int, has_record: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    install(folder, "sbatch", f"{ACCEPT} touch taken; sleep 0.5; echo Submitted batch job $id")
    with start(folder) as process:
        deadline = time.monotonic() + 20
        while not (folder / "taken").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate(timeout=20)
    assert (folder / "runs/x/submission.json").exists() == has_record
    assert num_jobs(folder) == 1
    assert submit() == 2
    assert "job 70" in capsys.readouterr().err
    assert num_jobs(folder) == 1
    assert json.loads((folder / "runs/x/submission.json").read_text())["job_id"] == "70"
    if number != signal.SIGINT:
        shows(53, signal.Signals(number).name, note="one job")
