"""`launch sweep`: combinations, the array that Slurm gets, runs one after another on this machine, and the results."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest_golden import check_golden
from made_runs import calls, end_run, made_run, stand_in, write
from test_identity import git

from launch import executor, manifest, processes, script, sweep, sweep_runner
from launch.__main__ import main
from launch.claims import make_claim
from launch.errors import LaunchError
from launch.runs import Run, View, note_cancelled, status_of
from launch.spec import ROOT, JobSpec
from launch.sweep import Axis
from launch.sweep_page import sweep_page

AXES = [Axis("learning_rate", ("1e-5", "2e-5")), Axis("seed", ("1", "2", "3"))]


def test_combinations() -> None:
    assert sweep.axes_of(["learning_rate=1e-5,2e-5", "seed=1,2,3"]) == AXES
    points = sweep.points_of(AXES)
    assert [tuple(point.values()) for point in points] == [
        ("1e-5", "1"), ("1e-5", "2"), ("1e-5", "3"), ("2e-5", "1"), ("2e-5", "2"), ("2e-5", "3"),
    ]  # fmt: skip
    assert sweep.axes_of(["betas=[0.9,0.95],[0.9,0.999]", "lora.r=8"]) == [
        Axis("betas", ("[0.9,0.95]", "[0.9,0.999]")),
        Axis("lora.r", ("8",)),
    ]


def test_every_value_is_checked_once_at_least() -> None:
    points = sweep.points_of(AXES)
    chosen = [points[number] for number in sweep.covering(AXES)]
    assert len(chosen) == 3
    for axis in AXES:
        assert {point[axis.name] for point in chosen} == set(axis.values)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no axis is given"),
        (["seed"], "the axis is 'seed'; it must be NAME=VALUE"),
        (["--seed=1"], "the axis is '--seed=1'; it must be NAME=VALUE"),
        (["seed=1,1"], "its values must differ"),
        (["seed=1,,2"], "none be empty"),
        (["seed=1", "seed=2"], "the axis seed is given twice"),
        (
            [f"a={','.join(map(str, range(40)))}", f"b={','.join(map(str, range(40)))}"],
            "1600 runs; it must have at most",
        ),
    ],
)
def test_refused_axes(words: list[str], message: str) -> None:
    with pytest.raises(LaunchError) as error:
        sweep.axes_of(words)
    assert message in str(error.value)


# --- Slurm


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a script, and stand-ins for Slurm's commands."""
    monkeypatch.chdir(tmp_path)
    bin_dir = tmp_path / "bin"
    stand_in(bin_dir, "sinfo", "echo 'cpu|cpu*|2|(null)|8|infinite'")
    stand_in(bin_dir, "scontrol", "echo 'MaxArraySize = 7'; echo 'KillWait = 30 sec'")
    stand_in(bin_dir, "squeue", f"cat {tmp_path}/jobs")
    stand_in(bin_dir, "sbatch", f"env > {tmp_path}/given.env; echo '77;cluster'")
    (tmp_path / "jobs").write_text("")
    (tmp_path / "probe.py").write_text("")
    monkeypatch.setenv("PATH", f"{bin_dir}:/usr/bin:/bin")
    return tmp_path


SWEEP = ["sweep", "--script", "probe.py", "--executor", "slurm", "learning_rate=1e-5,2e-5", "seed=1,2,3", "--name", "s"]


def test_one_array_of_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SWEEP, "--parallel", "2", "--", "--seed", "9", "--x"]) == 0
    assert "sweep    s, 6 runs, at most 2 at a time" in capsys.readouterr().out
    asked, words = calls(folder / "bin", "sbatch")
    assert asked == "--test-only"
    assert words.split()[:2] == ["--parsable", "--array=0-5%2"]
    assert words.endswith("/runs/s/array.sh")
    assert "CLEANSFT_CLAIM=0\n" in (folder / "given.env").read_text()
    for number, point in enumerate(sweep.points_of(AXES)):
        run = Run(folder / "runs" / "s" / str(number))
        assert (run.name, run.job_id) == (f"s-{number}", f"77_{number}")
        wanted = ["--x", *(f"--{name}={value}" for name, value in point.items())]
        assert run.job["script_args"] == wanted  # a value of the sweep takes the place of the one that was given
        text = (run.path / "submit.sh").read_text()
        assert f"-m launch.agent {run.path} &" in text
        assert "submitit" not in text
    array = (folder / "runs" / "s" / "array.sh").read_text()
    subprocess.run(["bash", "-n"], input=array, text=True, check=True)
    check_golden("array.sh", array.replace(str(folder), "/FOLDER"))
    assert main([*SWEEP]) == 2
    assert "it must be new. Choose another --name." in capsys.readouterr().err


def test_the_array_becomes_the_run_s_own_script(folder: Path) -> None:
    """Signals reach the run's script: it takes the place of the array's shell."""
    assert main([*SWEEP]) == 0
    own = folder / "runs" / "s" / "4" / "submit.sh"
    own.write_text('echo "$$ $0"')
    with subprocess.Popen(
        ["bash", str(folder / "runs" / "s" / "array.sh")], env={"SLURM_ARRAY_TASK_ID": "4", "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE, text=True,
    ) as shell:  # fmt: skip
        assert shell.communicate()[0] == f"{shell.pid} {own}\n"


def test_how_the_runs_of_an_array_stand(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the array's name of a task and, once it has begun, by its number; with one call of the scheduler."""
    assert main([*SWEEP]) == 0
    write(
        folder / "runs" / "s" / "1" / "submission.json", Run(folder / "runs" / "s" / "1").submission | {"job_id": "80"}
    )
    (folder / "jobs").write_text(
        "77_0|78|RUNNING|None|N/A\n77_1|80|RUNNING|None|N/A\n77_2|77|PENDING|JobArrayTaskLimit|N/A\n"
    )
    (folder / "bin" / "squeue.calls").unlink(missing_ok=True)
    capsys.readouterr()
    assert main(["list", "--sweep", "s", "--json"]) == 0
    states = {row["run"]: row["state"] for row in json.loads(capsys.readouterr().out)["runs"]}
    assert [states[f"s-{number}"] for number in range(4)] == ["RUNNING", "RUNNING", "PENDING", "LOST"]
    assert calls(folder / "bin", "squeue") == ["-h -t all --me -r -o %i|%A|%T|%r|%S"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--chain", "singleton"], "chain is 'singleton'; it must not be given for a sweep"),
        (["more=1,2"], "the number of runs is 12; it must be at most 7, this cluster's MaxArraySize"),
        (["--nodes", "3"], "nodes is 3; it must be at most 2"),
        (["--parallel", "0"], "--parallel is 0; it must be 1 or more"),
        (["--config", "none.yaml"], "none.yaml"),
        (["--name", "a/b"], "the run's name is 'a/b'"),
    ],
)
def test_refusals_leave_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main([*SWEEP, *words]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "runs").exists()
    assert calls(folder / "bin", "sbatch") == []


def test_an_array_may_be_as_large_as_the_cluster_allows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "--script", "probe.py", "--executor", "slurm", "--dry-run"]
    assert main([*words, "seed=1,2,3,4,5,6,7"]) == 0  # MaxArraySize is 7: indices from 0 to 6
    assert main([*words, "seed=1,2,3,4,5,6,7,8"]) == 2
    assert "the number of runs is 8; it must be at most 7" in capsys.readouterr().err


def test_the_first_run_is_examined_as_a_job_of_its_own_would_be(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = "echo 'allocation failure: Invalid account' >&2; exit 1"
    stand_in(folder / "bin", "sbatch", f'case "$*" in --test-only) {refused};; *) echo 77;; esac')
    assert main([*SWEEP]) == 2
    said = capsys.readouterr().err
    assert "1 check failed: start. Nothing was submitted." in said
    assert "Invalid account" in said
    assert "free space" in said
    assert calls(folder / "bin", "sbatch") == ["--test-only"]
    assert not (folder / "runs" / "s").exists()


def test_each_run_has_a_manifest_and_the_same_sweep_is_not_submitted_twice(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for word in SWEEP if word not in ("--name", "s")]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"run directory", "free space", "start"} <= {row["name"] for row in told["checks"]}
    found = [Run(Path(told["path"]) / str(number)) for number in range(6)]
    manifests = [json.loads((run.path / "manifest.json").read_text()) for run in found]
    assert len({facts["signature"] for facts in manifests}) == 6
    assert all(facts["packages"] and facts["script"]["sha256"] for facts in manifests)
    for run, facts in zip(found, manifests, strict=True):
        text = (run.path / "submit.sh").read_bytes()
        assert facts["submit_sh"] == hashlib.sha256(text).hexdigest()
        assert json.loads((run.path / "checks.json").read_text())["checks"] == told["checks"]
        alone = manifest.gather(JobSpec.from_json(run.job), text.decode())[0]
        assert alone["signature"] == facts["signature"]
    (folder / "jobs").write_text("PENDING|Priority|N/A\n")
    assert main(words) == 2
    assert f"settings, code and data are those of {found[0].name}, which is PENDING" in capsys.readouterr().err
    assert main([*words, "--name", "again"]) == 0


def test_a_copy_of_the_code_for_each_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    git(folder, "init", "-q")
    (folder / ".gitignore").write_text("runs/\nbin/\nstate/\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    assert main([*SWEEP, "--snapshot", "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[2] == f"{folder}/runs/s/0/code/script/probe.py"
    assert main([*SWEEP, "--snapshot", "--dry-run", "--json"]) == 0
    planned = [job["script"] for job in json.loads(capsys.readouterr().out)["jobs"]]
    assert not (folder / "runs").exists()
    assert main([*SWEEP, "--snapshot"]) == 0
    (folder / "probe.py").write_text("changed")
    assert planned == [str(folder / "runs" / "s" / str(number) / "code" / "script" / "probe.py") for number in range(6)]
    for number in range(6):
        run = Run(folder / "runs" / "s" / str(number))
        copy = Path(run.job["script"])
        assert copy.is_relative_to(run.path / "code")
        assert copy.read_text() == ""
        assert str(run.path / "code") in (run.path / "submit.sh").read_text()


def test_an_array_that_sbatch_refuses_leaves_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = "echo 'sbatch: Job 7 to start at 2026-11-21T15:50:00' >&2"
    refused = "echo 'sbatch: error: Invalid qos' >&2; exit 1"
    stand_in(folder / "bin", "sbatch", f'case "$*" in --test-only) {taken};; *) {refused};; esac')
    assert main([*SWEEP]) == 2
    assert "sbatch refused the job: sbatch: error: Invalid qos" in capsys.readouterr().err
    assert not list(folder.glob("runs/s/*/job.json"))


def test_an_array_that_sbatch_has_made_although_it_failed_is_found(folder: Path) -> None:
    note = f'for w; do case $w in --comment=*) echo "81_[0-5%1]|${{w#--comment=}}" > {folder}/jobs;; esac; done'
    stand_in(folder / "bin", "sbatch", f"{note}; echo 'Socket timed out' >&2; exit 1")
    assert main([*SWEEP]) == 0
    assert Run(folder / "runs" / "s" / "3").job_id == "81_3"


def test_dry_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SWEEP, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "# s-5: learning_rate=2e-5 seed=3\n" in text
    assert "exec bash" in text
    assert not (folder / "runs").exists()


def test_a_settings_file_may_stand_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "run.yaml").write_text("launch: {script: probe.py, executor: slurm}\n")
    assert main(["sweep", "run.yaml", "seed=1,2", "--dry-run", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["points"] == [{"seed": "1"}, {"seed": "2"}]
    assert facts["jobs"][1]["config"] == f"{folder}/run.yaml"
    assert main(["sweep", "run.yaml", "seed=1,2", "--config", "run.yaml"]) == 2


# --- results


def test_the_best_run_stands_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SWEEP]) == 0
    for number, (loss, eval_loss) in enumerate([(2.0, 1.5), (1.0, 1.75), (3.0, None), (0.5, 1.25)]):
        run = Run(folder / "runs" / "s" / str(number))
        end_run(run)
        log: list[dict[str, Any]] = [{"type": "train", "step": 10, "loss": loss}]
        if eval_loss is not None:
            log += [{"type": "eval", "step": 5, "eval_loss": eval_loss}, {"type": "eval", "step": 10, "eval_loss": 9.0}]
        write(run.path / "training_log.json", log)
    capsys.readouterr()
    assert main(["list", "--sweep", "s", "--html", "s.html"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["RUN", "STATE", "learning_rate", "seed", "EVAL", "LOSS", "LOSS", "STEP"]
    assert [line[0] for line in lines[1:5]] == ["s-3", "s-0", "s-1", "s-2"]
    assert lines[1] == ["s-3", "COMPLETED", "2e-5", "1", "1.2500", "0.5000", "10"]
    assert (folder / "s.html").stat().st_mode & 0o777 == 0o644
    page = (folder / "s.html").read_text()
    assert page.count("<svg") == 2
    assert page.count("<circle") == 6  # three runs with an evaluation, in both plots
    assert "<script" not in page
    assert "http" not in page
    assert main(["list", "--sweep", "s", "--state", "COMPLETED", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 4
    assert main(["list", "--sweep", "t"]) == 2
    assert main(["list", "--html", "x"]) == 2


def test_a_page_shows_names_as_text() -> None:
    row = {"run": "<b>", "state": "FAILED", "values": {"a": "<i>"}, "eval_loss": None, "loss": 1.0, "step": None}
    page = sweep_page("<script>", {"a": ["<i>", "2"]}, [row])
    assert "<b>" not in page
    assert "<i>" not in page
    assert "<script>" not in page
    assert "loss by setting" in page
    assert "<svg" not in sweep_page("s", {"a": ["<i>"]}, [row | {"loss": None}])


# --- this machine


@pytest.fixture
def scripted(tmp_path: Path, make_spec: Callable[..., JobSpec]) -> Path:
    """A sweep of three runs whose scripts note when they begin and end."""
    folder = tmp_path / "runs" / "s"
    for number in range(3):
        run = made_run(folder / str(number), make_spec, executor="local", sweep="s", name=f"s-{number}")
        (run.path / "submission.json").unlink()
        (run.path / "logs").mkdir()
        note = f"echo {number} $CLEANSFT_JOB_ID $CLEANSFT_CLAIM >> {folder}"
        (run.path / "submit.sh").write_text(f"{note}/began; sleep 0.6; {note}/ended")
        assert make_claim(run.path, 0) is not None
    write(folder / "sweep.json", {"axes": {"seed": ["1", "2", "3"]}, "points": [{"seed": str(n)} for n in (1, 2, 3)]})
    return folder


@pytest.mark.parametrize(("parallel", "at_most"), [(1, 1), (2, 2)])
def test_the_runner_keeps_to_the_number_of_runs_at_a_time(
    scripted: Path, monkeypatch: pytest.MonkeyPatch, parallel: int, at_most: int
) -> None:
    monkeypatch.setenv("CLEANSFT_JOB_ID", "local-1")
    seen: list[int] = []
    runner = sweep_runner.Runner(scripted, parallel)
    began = threading.Event()

    def watch() -> None:
        began.wait()
        while began.is_set():
            lines = [len((scripted / name).read_text().split("\n")) - 1 if (scripted / name).exists() else 0
                     for name in ("ended", "began")]  # fmt: skip
            seen.append(lines[1] - lines[0])
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began.set()
    before = signal.getsignal(signal.SIGTERM)
    runner.run()
    signal.signal(signal.SIGTERM, before)
    began.clear()
    watcher.join()
    assert [line.split()[0] for line in (scripted / "began").read_text().splitlines()] == ["0", "1", "2"]
    assert max(seen) == at_most
    for run, _ in sweep.runs_of(scripted):
        assert run.submission["pid"] != os.getpid()
        assert not run.submission.get("waits")
        assert f"{run.path.name} {run.job_id} 0" in (scripted / "ended").read_text().splitlines()


def test_the_runner_passes_over_what_was_cancelled_or_resumed_meanwhile(
    scripted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEANSFT_JOB_ID", "local-1")
    first, second, third = (run for run, _ in sweep.runs_of(scripted))
    note_cancelled(first.path, "launch cancel")
    assert make_claim(second.path, 1) is not None
    before = signal.getsignal(signal.SIGTERM)
    sweep_runner.Runner(scripted, 1).run()
    signal.signal(signal.SIGTERM, before)
    assert [line.split()[0] for line in (scripted / "began").read_text().splitlines()] == ["2"]
    assert first.submission["waits"]
    assert executor.view(first).presence == "ended"
    assert not third.submission.get("waits")


def test_a_run_that_waits_for_its_turn_is_pending_and_cancelling_it_ends_no_other(scripted: Path) -> None:
    run = Run(scripted / "1")
    ticks = processes.start_ticks(os.getpid())
    submission = {"executor": "local", "job_id": "local-1", "host": os.uname().nodename, "pid": os.getpid()}
    write(run.path / "submission.json", submission | {"start_ticks": ticks, "waits": True})
    assert executor.view(run) == View("waiting", "its turn in the sweep")
    executor.cancel(run)  # a signal would end these tests
    assert executor.view(run) == View("ended")
    assert status_of(run, lambda: executor.view(run)).state == "CANCELLED"


COUNTER = """\
import os, pathlib, sys, time
run = pathlib.Path(os.environ["CLEANSFT_RUN_DIR"])
(run / "began").write_text(str(time.time()))
time.sleep(float(os.environ.get("LAST", "0.5")))
print(sys.argv[1:])
(run / "ended").write_text(str(time.time()))
"""


def launch(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert condition()


@pytest.mark.ranks
def test_runs_of_this_machine_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "count.py").write_text(COUNTER)
    done = launch("sweep", "--executor", "local", "--script", "count.py", "seed=1,2", "--name", "s")
    assert done.returncode == 0, done.stderr
    for number in (0, 1):
        assert "COMPLETED" in launch("wait", f"s-{number}").stdout
    began, ended = ([float((tmp_path / "runs" / "s" / str(i) / name).read_text()) for i in (0, 1)] for name in
                    ("began", "ended"))  # fmt: skip
    assert ended[0] < began[1]
    assert "['--seed=2']" in launch("logs", "s-1").stdout


@pytest.mark.ranks
def test_a_sweep_of_this_machine_is_cancelled_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "count.py").write_text(COUNTER)
    words = ["--executor", "local", "--script", "count.py", "seed=1,2,3", "--parallel", "2", "--name", "s"]
    assert launch("sweep", *words, env=os.environ | {"LAST": "60"}).returncode == 0
    wait_for(lambda: len(list(tmp_path.glob("runs/s/*/began"))) == 2)
    rows = {row["run"]: row for row in json.loads(launch("list", "--sweep", "s", "--json").stdout)["runs"]}
    assert [rows[f"s-{number}"]["state"] for number in range(3)] == ["RUNNING", "RUNNING", "PENDING"]
    assert rows["s-2"]["reason"] == "its turn in the sweep"
    done = launch("cancel", "s")
    assert done.stdout.splitlines() == [f"s-{number}: CANCELLED" for number in range(3)]
    time.sleep(1.0)
    assert not (tmp_path / "runs" / "s" / "2" / "began").exists()


def test_the_array_asks_for_what_its_runs_ask_for(make_spec: Callable[..., JobSpec]) -> None:
    spec = make_spec(sweep="s", name="s-0", run_dir="/shared/runs/s/0", partition="cpu", time_min=30)
    own = [line for line in script.script_text(spec).splitlines() if line.startswith("#SBATCH ")]
    array = [
        line for line in script.array_text(spec, Path("/shared/runs/s")).splitlines() if line.startswith("#SBATCH ")
    ]
    assert set(own) ^ set(array) == {
        "#SBATCH --job-name=s-0", "#SBATCH --job-name=s", "#SBATCH --output=/shared/runs/s/0/logs/slurm.log",
        "#SBATCH --output=/shared/runs/s/%a/logs/slurm.log",
    }  # fmt: skip
