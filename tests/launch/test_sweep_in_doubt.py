"""A sweep whose submission is interrupted: its array runs once and is known, or there is none and nothing is left.

sbatch and squeue are stand-ins in front of a file with a line for each array that was taken.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_runs import calls, stand_in

from launch import processes, submit, sweep, sweep_runner
from launch.__main__ import main
from launch.runs import Run
from launch.spec import ROOT

ACCEPT = """
case " $* " in *" --test-only "*) echo 'sbatch: Job 70 to start at 2026-11-21T15:50:00' >&2; exit 0;; esac
for word in "$@"; do case $word in --comment=*) token=${word#--comment=};; esac; done
echo "81_[0-1%1]|$token" >> jobs
"""
SWEEP = ["sweep", "--script", "probe.py", "--executor", "slurm", "seed=1,2", "--name", "s"]
LOST = "echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1"
SILENT = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    stand_in(tmp_path / "bin", "sinfo", "echo 'cpu|cpu*|2|(null)|8|infinite'")
    stand_in(tmp_path / "bin", "scontrol", "echo 'MaxArraySize = 7'")
    stand_in(tmp_path / "bin", "squeue", f"cat {tmp_path}/jobs")
    stand_in(tmp_path / "bin", "sbatch", f"{ACCEPT} echo 81")
    (tmp_path / "jobs").write_text("")
    (tmp_path / "probe.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path


def job_ids(folder: Path) -> list[str]:
    return [Run(folder / "runs" / "s" / str(number)).job_id for number in (0, 1)]


def num_arrays(folder: Path) -> int:
    return len((folder / "jobs").read_text().splitlines())


def submit_in_doubt(folder: Path) -> None:
    """sbatch takes the array and says nothing of use, and nobody can be asked."""
    stand_in(folder / "bin", "sbatch", f"{ACCEPT} {LOST}")
    stand_in(folder / "bin", "squeue", SILENT)
    assert main(SWEEP) == 2


def leave(folder: Path) -> None:
    """The process that submitted is gone."""
    for claim in folder.glob("runs/s/*/claims/0.json"):
        claim.write_text(json.dumps({**json.loads(claim.read_text()), "start_ticks": 1}))


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_between_the_array_and_its_record(
    folder: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    stand_in(folder / "bin", "sbatch", f"{ACCEPT} touch taken; sleep 0.5; echo 81")
    command = [sys.executable, "-m", "launch", *SWEEP]
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while not (folder / "taken").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert job_ids(folder) == ["81_0", "81_1"]
    assert main(SWEEP) == 2
    said = capsys.readouterr().err
    assert ("was submitted already, as job 81" if number == signal.SIGKILL else "it must be new") in said
    assert job_ids(folder) == ["81_0", "81_1"]
    assert num_arrays(folder) == 1


def test_what_is_in_doubt_is_found_later(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submit_in_doubt(folder)
    assert "Whether the job exists is unknown" in (said := capsys.readouterr().err)
    assert "--name s" in said
    leave(folder)
    assert main(SWEEP) == 2  # nobody answers
    assert main(["resume", "runs/s/1"]) == 2
    stand_in(folder / "bin", "squeue", f"cat {folder}/jobs")
    capsys.readouterr()
    assert main(SWEEP) == 2
    assert "was submitted already, as job 81" in capsys.readouterr().err
    assert job_ids(folder) == ["81_0", "81_1"]
    assert num_arrays(folder) == 1


def test_one_of_its_runs_is_found_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submit_in_doubt(folder)
    leave(folder)
    note = f'case "$*" in *"-j 81_1"*) echo "PENDING|Priority|N/A";; *) cat {folder}/jobs;; esac'
    stand_in(folder / "bin", "squeue", note)
    assert main(["resume", "runs/s/1"]) == 16
    assert "is held by job 81_1" in capsys.readouterr().err
    assert Run(folder / "runs" / "s" / "1").job_id == "81_1"


def test_what_never_came_to_be_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in(folder / "bin", "sbatch", LOST)
    stand_in(folder / "bin", "squeue", SILENT)
    assert main(SWEEP) == 2
    leave(folder)
    stand_in(folder / "bin", "squeue", "exit 0")
    capsys.readouterr()
    assert main(SWEEP) == 2
    assert "no job of it is in the queue. Remove the folder, or choose another --name." in capsys.readouterr().err


def test_runs_that_cannot_be_told_their_job_are_kept(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = submit.write_submission

    def full(run: Run, *rest: object) -> None:
        if run.path.name == "1":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(run, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(submit, "write_submission", full)
        assert main(SWEEP) == 2
    assert "job 81 was submitted, and not every run of s could note it" in capsys.readouterr().err
    leave(folder)
    assert main(SWEEP) == 2
    assert job_ids(folder) == ["81_0", "81_1"]
    assert num_arrays(folder) == 1


def test_an_array_that_is_refused_can_be_submitted_again_by_the_same_name(folder: Path) -> None:
    refuse = f"{ACCEPT.splitlines()[1]}\necho 'sbatch: error: Invalid qos' >&2; exit 1"
    stand_in(folder / "bin", "sbatch", refuse)
    assert main(SWEEP) == 2
    assert not (folder / "runs" / "s").exists()
    stand_in(folder / "bin", "sbatch", f"{ACCEPT} echo 81")
    assert main(SWEEP) == 0
    assert job_ids(folder) == ["81_0", "81_1"]
    assert len([words for words in calls(folder / "bin", "sbatch") if "--parsable" in words]) == 2


LOCAL = ["sweep", "--script", "probe.py", "--executor", "local", "seed=1,2", "--name", "s"]
NOTES = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[-1])
record = {"executor": "local", "job_id": "local-1", "host": os.uname().nodename, "pid": os.getpid(), "waits": True}
(folder / "0" / "submission.json").write_text(json.dumps(record | {"start_ticks": 1}))
claim = folder / "0" / "claims" / "0.json"
claim.write_text(json.dumps(json.loads(claim.read_text()) | {"job_id": "local-1"}))
(folder / "noted").touch()
time.sleep(600)
"""


def slow_runner(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, condition: Callable[[], bool]) -> list[int]:
    """A runner that does not get ready; its pid, once it was started."""
    started: list[int] = []
    start = sweep_runner.start_detached

    def noted(*words: Any) -> dict[str, Any]:
        facts = start(*words)
        started.append(facts["pid"])
        deadline = time.monotonic() + 60
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)
        return facts

    monkeypatch.setattr(sweep_runner, "start_detached", noted)
    monkeypatch.setattr(sweep_runner, "START_TIMEOUT_S", 0.1)
    monkeypatch.setattr(sys, "executable", str(stand_in(folder / "bin", "slow", text)))
    return started


def test_a_runner_that_is_too_slow_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = slow_runner(folder, monkeypatch, "exec sleep 600", lambda: True)
    assert main(LOCAL) == 2
    assert [processes.start_ticks(pid) for pid in started] == [None]
    assert not list(folder.glob("runs/s/*/job.json"))


def test_runs_that_a_slow_runner_had_noted_are_cancelled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of a run that knows of its job is kept; nothing is left that says it waits."""
    runner = f"exec {sys.executable} -c '{NOTES}' \"$@\""
    started = slow_runner(folder, monkeypatch, runner, (folder / "runs" / "s" / "noted").exists)
    assert main(LOCAL) == 2
    assert [processes.start_ticks(pid) for pid in started] == [None]
    found = {run.path.name: run.is_cancelled for run, _ in sweep.runs_of(folder / "runs" / "s")}
    assert found == {"0": True}
