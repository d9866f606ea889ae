"""`launch list` and `launch status`: from hand-made records, with a stand-in for squeue."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_runs import calls, end_run, made_run, stand_in, write

from launch import jobs, runs
from launch.__main__ import main
from launch.pending import explanation
from launch.progress import read_log, read_progress
from launch.report import duration, status_facts
from launch.runs import Run, View
from launch.spec import ROOT, JobSpec

MakeSpec = Callable[..., JobSpec]
READING = """
import os, sys
folder, opened = sys.argv.pop(1), []
sys.addaudithook(lambda event, what: opened.append(what[0]) if event == "open" else None)
from launch.__main__ import main
main(sys.argv[1:])
print(sum(str(path).startswith(folder) for path in opened), file=sys.stderr)
"""
"""Runs a command; the last line on standard error is how many files of a folder it opened."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, with a stand-in for squeue that prints `<folder>/jobs`."""
    monkeypatch.chdir(tmp_path)
    stand_in(tmp_path / "bin", "squeue", f"cat {tmp_path}/jobs")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "jobs").write_text("")
    return tmp_path


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, dict[str, Any]]:
    """What `launch list --json` prints, by name of the run."""
    capsys.readouterr()
    assert main(["list", "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["version"], found["verb"]) == (1, "list")
    return {row["run"]: row for row in found["runs"]}


def progress_record(node: int, **changes: Any) -> dict[str, Any]:
    ranks = [
        {"rank": 2 * node + index, "phase": "step", "step": 31, "num_steps": 100, "step_s": 0.5, "slowness": 1.0}
        | changes
        for index in (0, 1)
    ]
    return {"node": node, "host": f"n{node + 1}", "at": 50.0, "ranks": ranks}


def test_every_state_with_one_call_of_the_scheduler(
    folder: Path, make_spec: MakeSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {name: made_run(folder / "runs" / name, make_spec, job_id=str(number)) for number, name in
            enumerate(("done", "failed", "waits", "runs", "gone", "killed"), start=10)}  # fmt: skip
    for number, run in enumerate(made.values(), start=10):
        runs.register(runs.registry_path(os.environ), run.path, run.name, str(number))
    end_run(made["done"])
    end_run(made["failed"], 42)
    (made["runs"].path / "exit" / "0").mkdir(parents=True)
    for node in (0, 1):
        write(made["runs"].path / "exit" / "0" / f"progress-{node}.json", progress_record(node))
    (folder / "jobs").write_text(
        "12|12|PENDING|Resources|2026-11-21T18:00:00\n13|13|RUNNING|None|N/A\n15|15|NODE_FAIL|None|N/A\n"
    )
    found = listed(capsys)
    states = {name: row["state"] for name, row in found.items()}
    assert states == {"done": "COMPLETED", "failed": "FAILED", "waits": "PENDING", "runs": "RUNNING", "gone": "LOST",
                      "killed": "FAILED"}  # fmt: skip
    assert list(found) == list(reversed(made))
    assert (found["failed"]["code"], found["waits"]["reason"]) == (42, "Resources")
    assert (found["runs"]["step"], found["runs"]["num_steps"], found["runs"]["eta_s"]) == (30, 100, 35.0)
    assert len(calls(folder / "bin", "squeue")) == 1


def test_a_scheduler_that_does_not_answer_is_asked_once(
    folder: Path, make_spec: MakeSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(folder / "bin", "squeue", "echo 'squeue: error: no route' >&2; exit 1")
    for number in range(3):
        made_run(folder / "runs" / f"r{number}", make_spec, job_id=str(number))
    states = {row["state"] for row in listed(capsys, "--runs-dir", "runs").values()}
    assert states == {"PENDING"}
    assert len(calls(folder / "bin", "squeue")) == 1


def test_what_is_listed(folder: Path, make_spec: MakeSpec, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert capsys.readouterr().out == "no run\n"
    for number in range(30):
        run = made_run(folder / "here" / f"r{number:02}", make_spec)
        os.utime(run.path / "job.json", (number, number))
        end_run(run, 42 if number == 3 else 0)
    assert list(listed(capsys, "--runs-dir", "here")) == [f"r{number:02}" for number in range(29, 9, -1)]
    assert len(listed(capsys, "--runs-dir", "here", "--last", "0")) == 30
    assert list(listed(capsys, "--runs-dir", "here", "--state", "failed,LOST")) == ["r03"]
    assert calls(folder / "bin", "squeue") == []
    assert main(["list", "--runs-dir", "here", "-n", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["RUN", "STATE", "JOB", "NODES", "ATTEMPT", "SUBMITTED", "DETAILS"]
    assert lines[1].split()[:5] == ["r29", "COMPLETED", "7", "2", "0"]
    assert lines[2] == "the newest 1 of 30; --last 0 shows all"
    with pytest.raises(SystemExit, match="2"):
        main(["list", "-n", "-1"])
    assert "it is '-1'; it must be a whole number, at least 0" in capsys.readouterr().err
    assert main(["list", "--state", "DONE"]) == 2
    assert "--state is 'DONE'; it must be one of PENDING" in capsys.readouterr().err


def test_what_is_kept_of_ended_runs_is_forgotten_when_they_go_on(
    folder: Path, make_spec: MakeSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_run(folder / "runs" / "r", make_spec)
    end_run(run, 42)
    for _ in range(2):
        assert listed(capsys, "--runs-dir", "runs")["r"]["state"] == "FAILED"
    job = (run.path / "job.json").read_bytes()
    (run.path / "job.json").write_text("{}")  # what was kept is used: this would be another row
    assert listed(capsys, "--runs-dir", "runs")["r"]["nodes"] == 2
    (run.path / "job.json").write_bytes(job)
    write(run.path / "claims" / "1.json", {"job_id": "8"})  # as `resume` does
    (folder / "jobs").write_text("7|7|PENDING|Priority|N/A\n")
    assert listed(capsys, "--runs-dir", "runs")["r"]["state"] == "PENDING"


def test_a_thousand_runs(folder: Path, make_spec: MakeSpec) -> None:
    """With one scheduler call, and of a run that has ended, once it was seen, no file is read.

    benchmarks/command_line.py has the time of it.
    """
    template = made_run(folder / "template", make_spec)
    end_run(template)
    files = {path.relative_to(template.path): path.read_bytes() for path in template.path.rglob("*") if path.is_file()}
    for number in range(1000):
        path = folder / "runs" / f"r{number:04}"
        for name, data in files.items():
            if number % 10 or name.parts[0] != "exit":  # every tenth has not begun: the scheduler must be asked
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (path / name).write_bytes(data)
        runs.register(runs.registry_path(os.environ), path, path.name, "7")
    (folder / "jobs").write_text("7|7|PENDING|Priority|N/A\n")
    command = [sys.executable, "-c", READING, str(folder / "runs"), "list", "--last", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for times in (1, 2):
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert calls(folder / "bin", "squeue") == ["-h -t all --me -r -o %i|%A|%T|%r|%S"] * times
        states = [line.split()[1] for line in result.stdout.splitlines()[1:]]
        assert (states.count("COMPLETED"), states.count("PENDING")) == (900, 100)
    assert int(result.stderr) <= 3 * 100  # of those that have not begun


# --- one run


@pytest.fixture
def run(folder: Path, make_spec: MakeSpec) -> Run:
    return made_run(folder / "runs" / "demo", make_spec)


def test_why_a_job_waits_and_when_it_starts(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "jobs").write_text("PENDING|PartitionTimeLimit|2026-11-22T08:00:00\n")
    assert main(["status", "demo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "demo: PENDING (PartitionTimeLimit), job 7"
    assert lines[2].startswith("waits    its time limit is above that of the partition: it will not start as it is")
    assert lines[3] == "starts   2026-11-22T08:00:00"
    assert main(["status", "demo", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["state"], facts["reason"], facts["starts_at"]) == (
        "PENDING",
        "PartitionTimeLimit",
        "2026-11-22T08:00:00",
    )
    assert facts["explanation"] in lines[2]


def test_a_requeued_run_that_waits_is_explained_the_same_everywhere(
    folder: Path, make_spec: MakeSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its reason says first why the attempt before has ended."""
    run = made_run(folder / "runs" / "demo", make_spec, chain="requeue")
    end_run(run, 10)
    end = run.path / "exit" / "0" / "end.json"
    write(end, json.loads(end.read_text()) | {"again": True, "reason": "attempt 1 goes on from step 30"})
    (folder / "jobs").write_text("PENDING|BeginTime|N/A\n")
    assert main(["status", "demo", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["reason"] == "attempt 1 goes on from step 30; BeginTime"
    assert facts["explanation"] == explanation("BeginTime")
    assert main(["status", "demo"]) == 0
    assert f"waits    {facts['explanation']}\n" in capsys.readouterr().out
    assert main(["top", "demo", "--once"]) == 0
    assert facts["explanation"][:40] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Priority", "other jobs stand before it"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "down, drained or reserved"),
        ("QOSMaxJobsPerUserLimit", "a limit of its QoS is reached (QOSMaxJobsPerUserLimit)"),
        ("AssocGrpGRES", "a limit of its account is reached"),
        ("DependencyNeverSatisfied", "it will never start"),
        ("NewWordOfTomorrow", ""),
        ("", ""),
    ],
)
def test_explanations(reason: str, words: str) -> None:
    assert words in explanation(reason)
    assert bool(words) == bool(explanation(reason))


@pytest.mark.parametrize(
    ("text", "view"),
    [
        ("PENDING|Priority|2026-01-01T00:00:00", View("waiting", "Priority", "2026-01-01T00:00:00")),
        ("PENDING|None|N/A", View("waiting")),
        ("RUNNING|None|2026-01-01T00:00:00", View("running")),
        ("COMPLETED|None|N/A", View("ended")),
        ("TIMEOUT|TimeLimit|N/A", View("ended", "TIMEOUT")),
        ("PENDING|Resources", View("waiting", "Resources")),
        ("RESV_DEL_HOLD|ReservationDeleted|N/A", View("waiting", "ReservationDeleted")),
        ("SUSPENDED|None|N/A", View("running")),
        ("NODE_FAIL|NodeDown|N/A", View("ended", "NODE_FAIL")),
        ("", View("ended")),
    ],
)
def test_what_squeue_says(text: str, view: View) -> None:
    assert jobs.parse_view(text) == view


@pytest.mark.parametrize("word", ["REVOKED", "NEW_WORD_OF_TOMORROW"])
def test_a_word_that_tells_no_end_is_none(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    """A run that was taken for FAILED would be resumed, as a second job beside the first."""
    assert jobs.parse_view(f"{word}|None|N/A").presence == "unknown"
    stand_in(tmp_path / "bin", "squeue", f"echo '{word}|None|N/A'")
    stand_in(tmp_path / "bin", "sinfo", "echo 'cpu|cpu*|2|(null)|8|infinite'")
    stand_in(tmp_path / "bin", "sbatch", "echo Submitted batch job 8")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert runs.status_of(run, lambda: jobs.view("7")).has_ended is False
    assert main(["resume", str(run.path)]) == 16
    assert f"whether it has ended is unknown: squeue says {word}" in capsys.readouterr().err
    assert calls(tmp_path / "bin", "sbatch") == []


def test_what_others_write_into_their_jobs_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only own jobs are looked through for a token, and bytes that are no text are read over."""
    own = "printf '5|\\377\\n70|token\\n'"
    stand_in(tmp_path / "bin", "squeue", f'case " $* " in *" --me "*) {own};; *) echo "66|token";; esac')
    stand_in(tmp_path / "bin", "sbatch", f"cat > {tmp_path}/seen; echo 'to start at 2026-11-21T15:50:00' >&2")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    assert jobs.find("token") == "70"
    assert jobs.expected_start("a folder \udcff\n", dict(os.environ)) == ("2026-11-21T15:50:00", "")
    assert (tmp_path / "seen").read_bytes() == b"a folder \xff\n"


def test_progress_is_that_of_the_slowest_rank(run: Run) -> None:
    assert read_progress(run).step is None
    folder = run.path / "exit" / "0"
    write(folder / "progress-0.json", progress_record(0))
    write(folder / "progress-1.json", progress_record(1, step=29, step_s=0.7, phase="checkpoint"))
    records = [
        {"type": "train", "step": 20, "loss": 2.5, "tokens_per_s": 900.0},
        {"type": "eval", "step": 20, "eval_loss": 2.25},
        {"type": "train", "step": 30, "loss": 1.5, "tokens_per_s": 1000.0},
    ]
    write(run.path / "training_log.json", records)
    found = read_progress(run)
    assert (found.step, found.num_steps, found.loss, found.eval_loss, found.tokens_per_s) == (
        29,
        100,
        1.5,
        2.25,
        1000.0,
    )
    assert found.step_s == pytest.approx(0.6)
    assert found.eta_s == pytest.approx(71 * 0.6)
    assert [(rank.rank, rank.host, rank.num_done) for rank in found.ranks] == [
        (0, "n1", 30), (1, "n1", 30), (2, "n2", 29), (3, "n2", 29),
    ]  # fmt: skip


def test_of_a_long_log_only_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "training_log.json"
    records = [{"type": "train", "step": step, "loss": 1.0, "nested": {"a": [1]}} for step in range(5000)]
    write(path, records)
    found = read_log(path)
    assert found == records[-len(found) :]
    assert 100 < len(found) < 5000
    path.write_text(path.read_text()[:-200])  # half written
    cut = read_log(path)
    assert cut == records[cut[0]["step"] : cut[-1]["step"] + 1]
    assert cut[-1]["step"] >= 4990
    assert read_log(tmp_path / "none") == []


def test_status_in_words_and_as_json(run: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "jobs").write_text("RUNNING|None|N/A\n")
    end_run(run, 11, step=20)
    (run.path / "exit" / "1").mkdir()
    write(run.path / "exit" / "1" / "attempt.json", {"attempt": 1, "claim": 0, "began_at": time.time(), "step": 20})
    write(run.path / "exit" / "1" / "progress-0.json", progress_record(0))
    write(run.path / "exit" / "1" / "slow-1.json", {"rank": 1, "host": "n1", "slowness": 1.8, "step": 12})
    write(
        run.path / "exit" / "1" / "slow-2.json",
        {"rank": 2, "host": "n1", "slowness": 2.5, "step": 28, "slow_phase": "data"},
    )
    assert main(["status", "demo"]) == 0
    text = capsys.readouterr().out
    assert "demo: RUNNING, job 7, attempt 1\n" in text
    assert "step     30 of 100, 0.5 s a step, 35 s to go\n" in text
    assert ", 1 min, saved steps 0 to 20, code 11: node 0 (n1), rank 0 at step 20: X\n" in text
    assert "slow     rank 1 (n1) took 1.8 times as long as the others at step 12\n" in text
    assert "slow     rank 2 (n1) took 2.5 times as long as the others at step 28, most of it in data\n" in text
    assert main(["status", "demo", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["progress"] == {
        "step": 30, "num_steps": 100, "loss": None, "eval_loss": None, "tokens_per_s": None, "step_s": 0.5,
        "eta_s": 35.0, "checkpoint_step": None,
    }  # fmt: skip
    assert [attempt["code"] for attempt in facts["attempts"]] == [11, None]
    cause = facts["attempts"][0]["cause"]
    assert (cause["rank"], cause["host"], cause["step"], cause["reason"]) == (0, "n1", 20, "peer_lost")
    assert facts["attempts"][1]["cause"] is None
    assert (facts["cause"], facts["slow"][0]["rank"]) == (None, 1)


def test_a_run_whose_folder_is_gone_is_told_with_how_to_look_for_its_job(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.register(runs.registry_path(os.environ), run.path, "demo", "17")
    shutil.rmtree(run.path)
    assert main(["status", "demo"]) == 2
    told = f"{run.path} is gone with all that was known of demo. `squeue -j 17` shows whether it still runs."
    assert told in capsys.readouterr().err


def test_without_a_working_directory_there_is_one_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = folder / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["status"]) == 2
    assert capsys.readouterr().err == "error: the working directory is gone; it must be there. `cd` into one.\n"


def test_of_a_sweep_one_run_is_meant(folder: Path, make_spec: MakeSpec, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        folder / "runs" / "s" / "sweep.json", {"axes": {"seed": ["1", "2"]}, "points": [{"seed": "1"}, {"seed": "2"}]}
    )
    for number in (0, 1):
        made_run(folder / "runs" / "s" / str(number), make_spec, name=f"s-{number}")
    assert main(["status", "s"]) == 2
    assert "RUN is 's', which is 2 runs; it must be one of them: s-0, s-1." in capsys.readouterr().err


def test_an_attempt_that_begins_shows_the_step_that_it_goes_on_from(run: Run, folder: Path) -> None:
    end_run(run, 11, step=20)
    (run.path / "exit" / "1").mkdir()
    write(run.path / "exit" / "1" / "attempt.json", {"attempt": 1, "claim": 0, "began_at": time.time(), "step": 20})
    record = progress_record(0)
    record["ranks"] = [{**rank, "phase": "start", "step": 0} for rank in record["ranks"]]
    write(run.path / "exit" / "1" / "progress-0.json", record)
    assert read_progress(run).step == 20


def test_the_cause_is_part_of_the_json(run: Run) -> None:
    end_run(run, 42, step=7)
    facts = status_facts(run, runs.status_of(run, lambda: View("ended")))
    cause = facts["cause"]
    assert (facts["state"], facts["code"], cause["rank"], cause["step"], cause["error"]) == ("FAILED", 42, 0, 7, "X")
    assert cause["log"].endswith("runs/demo/logs/0/rank-0.log")
    assert json.loads(json.dumps(facts)) == facts | {"cause": cause | {"tail": []}}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (3700, "1 h 01 min"), (48 * 3600, "2 d 0 h"), (1e6, "11 d 13 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_refusal_is_json_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "none", "--json"]) == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["code"] == 2
    assert said.err == f"error: {json.loads(said.out)['error']}\n"
