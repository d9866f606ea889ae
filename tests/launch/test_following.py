"""`submit --after RUN`, and `launch.notify`: what follows a run, and who is told of it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import calls, end_run, made_run, stand_in

from launch import script
from launch.__main__ import main
from launch.errors import LaunchError
from launch.following import dependency_of, following
from launch.local import Supervisor
from launch.notify import notify
from launch.outcome import Outcome
from launch.runs import CANCELLED, COMPLETED, PENDING, RUNNING, Run, Status, View, status_of
from launch.spec import ROOT, JobSpec

MakeSpec = Callable[..., JobSpec]
NOTHING = Outcome(2, 0, 0, None, 0)


@pytest.fixture
def before(tmp_path: Path, make_spec: MakeSpec) -> Run:
    return made_run(tmp_path / "runs" / "before", make_spec, chain="requeue")


@pytest.mark.parametrize("state", [PENDING, RUNNING])
def test_a_job_begins_when_another_is_complete(before: Run, make_spec: MakeSpec, state: str) -> None:
    """It is noted in the job too: whoever submits it again, or asks why it never began, must know."""
    spec = make_spec()
    noted = replace(spec, after=(str(before.path),))
    assert following(spec, before, Status(state, NOTHING)) == (noted, "afterok:7")
    assert following(noted, before, Status(state, NOTHING)) == (noted, "afterok:7")
    assert following(spec, before, Status(COMPLETED, NOTHING)) == (spec, None)


def test_a_job_on_slurm_that_is_submitted_again_still_follows(before: Run, make_spec: MakeSpec) -> None:
    spec, _ = following(make_spec(), before, Status(RUNNING, NOTHING))
    assert dependency_of(spec, lambda _: Status(PENDING, NOTHING)) == "afterok:7"
    with pytest.raises(LaunchError, match="--after is before, which is CANCELLED"):
        dependency_of(spec, lambda _: Status(CANCELLED, NOTHING))


def test_a_job_on_slurm_that_never_began_tells_which_run_failed(
    before: Run, tmp_path: Path, make_spec: MakeSpec
) -> None:
    spec, _ = following(make_spec(), before, Status(RUNNING, NOTHING))
    own = made_run(tmp_path / "runs" / "own", make_spec, after=spec.after)
    end_run(before, 42)
    status = status_of(own, lambda: View("ended"))
    assert (status.state, status.reason) == ("CANCELLED", "before, which it was to follow, is not complete")


def test_what_can_not_be_followed(before: Run, tmp_path: Path, make_spec: MakeSpec) -> None:
    with pytest.raises(LaunchError, match="--after is before, which is CANCELLED; it must be complete, waiting or run"):
        following(make_spec(), before, Status(CANCELLED, NOTHING))
    with pytest.raises(LaunchError, match="which runs on slurm, this one on local; both must be the same"):
        following(make_spec(executor="local"), before, Status(RUNNING, NOTHING))
    chain = made_run(tmp_path / "runs" / "chain", make_spec, chain="singleton")
    with pytest.raises(LaunchError, match="with chain singleton; it must be one job"):
        following(make_spec(), chain, Status(RUNNING, NOTHING))


def test_sbatch_is_told(before: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stand_in(tmp_path / "bin", "sinfo", "echo 'cpu|cpu*|2|(null)|8|infinite'")
    stand_in(tmp_path / "bin", "squeue", "echo 'RUNNING|None|N/A'")
    stand_in(tmp_path / "bin", "sbatch", "echo Submitted batch job 78")
    stand_in(tmp_path / "bin", "srun", "exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "probe.py").write_text("")
    words = ["submit", "--executor", "slurm", "--script", "probe.py", "--after", "before", "--name", "next"]
    assert main(words) == 0
    call = calls(tmp_path / "bin", "sbatch")[-1]  # after one with --test-only
    assert "--dependency=afterok:7 --kill-on-invalid-dep=yes" in call
    assert Run(tmp_path / "runs" / "next").follows == [before]
    end_run(before, 42)
    assert main([*words[:-1], "other"]) == 2


@pytest.mark.parametrize(
    ("code", "begins", "state"), [(0, True, "RUNNING"), (42, False, "CANCELLED"), (None, False, "RUNNING")]
)
def test_a_supervisor_waits_for_the_run_before(
    tmp_path: Path,
    before: Run,
    make_spec: MakeSpec,
    monkeypatch: pytest.MonkeyPatch,
    code: int | None,
    begins: bool,
    state: str,
) -> None:
    """It begins when that is complete, is cancelled when that fails, and ends when it is told to."""
    monkeypatch.setattr("launch.local.FOLLOW_POLL_S", 0.05)
    monkeypatch.setattr("launch.executor.view", lambda _: View("running"))
    own = made_run(tmp_path / "runs" / "own", make_spec, executor="local", after=(str(before.path),))
    supervisor = Supervisor(own.path, {})
    later = threading.Timer(0.2, lambda: supervisor._on_stop(15, None) if code is None else end_run(before, code))
    later.start()
    assert supervisor._may_begin() == begins
    later.join()
    assert status_of(own, lambda: View("ended" if own.is_cancelled else "running")).state == state


def launch(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.ranks
def test_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for a run that is complete, and one that waits for a run that fails; each told to a command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "wait.py").write_text(
        "import os, pathlib, sys, time\n"
        "while not pathlib.Path('go').exists(): time.sleep(0.1)\n"
        "sys.exit(int(sys.argv[1]))\n"
    )
    (tmp_path / "quick.py").write_text("import time; print(time.time())")
    (tmp_path / "told.py").write_text("import sys; open('told', 'a').write(sys.stdin.read() + '\\n')")
    tell = json.dumps([sys.executable, str(tmp_path / "told.py")])
    (tmp_path / "site.yaml").write_text(f"notify: {tell}\n")
    local = ["submit", "--executor", "local", "--script"]
    for name, code in (("good", "0"), ("bad", "42")):
        assert launch(*local, "wait.py", "--name", name, "--profile", "site.yaml", "--", code).returncode == 0
        done = launch(*local, "quick.py", "--name", f"after-{name}", "--after", name)
        assert done.returncode == 0, done.stderr
    rows = {row["run"]: row for row in json.loads(launch("list", "--json").stdout)["runs"]}
    assert (rows["after-good"]["state"], rows["after-good"]["reason"]) == ("PENDING", "it follows good")
    (tmp_path / "go").touch()
    assert launch("wait", "after-good").returncode == 0
    assert launch("wait", "after-bad").returncode == 143
    assert "after-bad: CANCELLED" in launch("status", "after-bad").stdout
    assert not list((tmp_path / "runs" / "after-bad" / "exit").iterdir())
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert sorted((record["run"], record["event"], record.get("code")) for record in told) == [
        ("bad", "began", None), ("bad", "ended", 42), ("good", "began", None), ("good", "ended", 0),
    ]  # fmt: skip


# --- notify


def test_a_command_that_fails_or_does_not_end_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("launch.notify.TIMEOUT_S", 0.2)
    began = time.monotonic()
    for command in (["false"], ["sleep", "60"], ["/none"], []):
        notify(tmp_path, {"name": "demo", "notify": command}, "began", attempt=0)
    assert time.monotonic() - began < 5
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 3
    assert all(line.startswith("warning: launch.notify was not told that the run began: ") for line in warnings)


def test_mail(make_spec: MakeSpec) -> None:
    text = script.script_text(make_spec(mail_user="ada@example.org", mail_type="END,FAIL"))
    assert "#SBATCH --mail-user=ada@example.org\n#SBATCH --mail-type=END,FAIL\n" in text
    assert "mail" not in script.script_text(make_spec())
    problems = [problem.field for problem in make_spec(mail_user="a b; rm").problems()]
    assert problems == ["mail_user"]
