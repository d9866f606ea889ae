"""A job that ends before it has begun an attempt: in a line of `launch.setup`, most of all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from made_runs import end_run, made_run, stand_in, write

from launch import attempts, runs, script
from launch.__main__ import main
from launch.claims import make_claim
from launch.local import Supervisor
from launch.report import status_text
from launch.runs import Run, View, status_of
from launch.spec import ROOT, JobSpec

MakeSpec = Callable[..., JobSpec]
RECORD = f"exit/{attempts.NOT_BEGUN}"


@pytest.mark.parametrize(
    ("line", "code"), [("false", 1), ("module load cuda", 127), ("exit 9", 9), ("exit 0", 1)], ids=str
)
@pytest.mark.parametrize("executor", ["slurm", "local"])
def test_a_line_that_fails_is_told(tmp_path: Path, make_spec: MakeSpec, executor: str, line: str, code: int) -> None:
    run = made_run(tmp_path / "it's a run", make_spec, executor=executor, setup=(line,), working_dir=str(tmp_path))
    (run.path / "exit").mkdir()
    text = script.script_text(JobSpec.from_json(run.job))
    environment = {"PATH": "/usr/bin:/bin", "CLEANSFT_CLAIM": "0", "CLEANSFT_ATTEMPT": "7"}
    assert make_claim(run.path, 0) is not None
    subprocess.run(["bash", "-s"], input=text, env=environment, text=True, check=False, capture_output=True)
    status = status_of(run, lambda: View("ended"))
    assert (status.state, status.code, status.outcome.root_cause) == ("FAILED", code, None)
    assert run.is_settled
    write(run.path / "cancelled.json", {})
    assert status_of(run, lambda: View("ended")).state == "CANCELLED"


def test_an_attempt_that_cannot_be_opened_is_told(tmp_path: Path, make_spec: MakeSpec) -> None:
    """The batch script's own command fails: the code is that of the command."""
    stand_in(tmp_path / "bin", "python", "exit 16")
    run = made_run(tmp_path / "demo", make_spec, working_dir=str(tmp_path), python=str(tmp_path / "bin" / "python"))
    (run.path / "exit").mkdir()
    text = script.script_text(JobSpec.from_json(run.job))
    subprocess.run(["bash", "-s"], input=text, env={"PATH": "/usr/bin:/bin"}, text=True, check=False)
    assert json.loads((run.path / RECORD).read_text()) == {"code": 16, "claim": 0}


def test_the_log_says_why_and_a_later_attempt_counts(tmp_path: Path, make_spec: MakeSpec) -> None:
    run = made_run(tmp_path / "demo", make_spec)
    run.path.chmod(0o700)
    (run.path / "logs").mkdir()
    (run.path / "logs" / "slurm.log").write_text("submit.sh: line 31: module: command not found\n")
    assert make_claim(run.path, 0) is not None
    write(run.path / RECORD, {"code": 127, "claim": 0})
    said = status_text(run, status_of(run, lambda: View("ended")))
    assert said.startswith("demo: FAILED (its job ended with code 127 before it began an attempt), job 7\n")
    assert "  | submit.sh: line 31: module: command not found\n" in said
    assert make_claim(run.path, 1) is not None  # it was resumed
    assert status_of(run, lambda: View("waiting", "Priority")).state == "PENDING"
    attempts.begin(run.path, "8", {"CLEANSFT_CLAIM": "1"})
    assert not (run.path / RECORD).exists()


def test_a_requeued_run_whose_next_start_fails_has_failed(tmp_path: Path, make_spec: MakeSpec) -> None:
    run = made_run(tmp_path / "demo", make_spec, chain="requeue")
    end_run(run, 10)
    end = run.path / "exit" / "0" / "end.json"
    write(end, json.loads(end.read_text()) | {"again": True})
    assert status_of(run, lambda: View("waiting")).state == "PENDING"
    write(run.path / RECORD, {"code": 3, "claim": 0})
    status = status_of(run, lambda: View("ended"))
    assert (status.state, status.code, run.is_settled) == ("FAILED", 3, True)


def test_a_lost_run_shows_the_executors_log(tmp_path: Path, make_spec: MakeSpec) -> None:
    run = made_run(tmp_path / "demo", make_spec)
    (run.path / "logs").mkdir()
    (run.path / "logs" / "slurm.log").write_text("slurmstepd: error: *** JOB 7 KILLED ***\n")
    said = status_text(run, status_of(run, lambda: View("ended")))
    assert said.startswith("demo: LOST")
    assert "  | slurmstepd: error: *** JOB 7 KILLED ***\n" in said


def test_list_and_status_say_the_same_when_slurm_has_forgotten(
    tmp_path: Path, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What Slurm alone says of a failure it says for some minutes."""
    monkeypatch.setattr("launch.verbs.common.SQUEUE_INTERVAL_S", 0.0)
    monkeypatch.chdir(tmp_path)
    stand_in(tmp_path / "bin", "squeue", f"cat {tmp_path}/jobs")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    made_run(tmp_path / "runs" / "demo", make_spec)
    states = []
    for line in ("7|7|NODE_FAIL|None|N/A\n", ""):
        (tmp_path / "jobs").write_text(line)
        assert main(["list", "--runs-dir", "runs", "--json"]) == 0
        states.append(json.loads(capsys.readouterr().out)["runs"][0]["state"])
    assert main(["status", "demo", "--json"]) == 0
    assert states == ["FAILED", json.loads(capsys.readouterr().out)["state"]]


def test_who_follows_a_lost_run_gives_up(
    tmp_path: Path, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the second look: records may still be on their way."""
    monkeypatch.setattr("launch.local.FOLLOW_POLL_S", 0.01)
    looks: list[Run] = []
    monkeypatch.setattr("launch.executor.view", lambda run: looks.append(run) or View("ended"))
    before = made_run(tmp_path / "before", make_spec, executor="local")
    own = made_run(tmp_path / "own", make_spec, executor="local", after=(str(before.path),))
    assert not Supervisor(own.path, {})._may_begin()
    assert len(looks) == 2
    assert "before is LOST: this run, which was to follow it, does not begin." in capsys.readouterr().out
    assert status_of(own, lambda: View("ended")).state == "CANCELLED"


@pytest.mark.ranks
def test_on_this_machine(tmp_path: Path) -> None:
    """A failing line of `setup`: the command waits no longer than the job, and so does a run that follows."""
    (tmp_path / "probe.py").write_text("")
    lines = [f"until [ -e '{tmp_path}/go' ]; do sleep 0.1; done", "echo no such licence", "exit 9"]
    (tmp_path / "site.yaml").write_text(f"setup: {json.dumps(lines)}\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def launch(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "launch", *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    local = ["submit", "--executor", "local", "--script", "probe.py"]
    assert launch(*local, "--name", "bad", "--profile", "site.yaml").returncode == 0
    next_one = launch(*local, "--name", "next", "--after", "bad")
    assert next_one.returncode == 0, next_one.stderr
    (tmp_path / "go").touch()
    assert launch("wait", "bad").returncode == 9
    said = launch("status", "bad").stdout
    assert said.startswith("bad: FAILED (its job ended with code 9")
    assert "  | no such licence\n" in said
    assert launch("wait", "next").returncode == 143
    assert Run(tmp_path / "runs" / "next").is_cancelled
    assert runs.all_runs(runs.registry_path(os.environ), None) == [
        tmp_path / "runs" / "bad",
        tmp_path / "runs" / "next",
    ]
