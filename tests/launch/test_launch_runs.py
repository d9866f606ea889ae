"""Status and causes from hand-made records, and how a run is found."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch import report, runs
from launch.errors import LaunchError, reason_of
from launch.logs import error_in, read_tail
from launch.runs import Run, View
from launch.spec import JobSpec


@pytest.fixture
def run(tmp_path: Path, make_spec: Callable[..., JobSpec]) -> Run:
    path = tmp_path / "runs" / "demo"
    (path / "exit" / "0").mkdir(parents=True)
    (path / "job.json").write_text(json.dumps(make_spec(run_dir=str(path)).to_json()))
    (path / "submission.json").write_text(json.dumps({"executor": "slurm", "job_id": "7", "host": "ctl"}))
    return Run(path)


def record(run: Run, name: str, **fields: Any) -> None:
    base = {"host": "n1", "signal": None, "stopped": False, "error": None, "tail": [], "ended_at": 10.0, "own_code": 0}
    if name.startswith("rank"):
        del base["own_code"]
    (run.path / "exit" / "0" / f"{name}.json").write_text(json.dumps(base | fields))


def nodes_ended(run: Run, code: int, stopped: bool = False) -> None:
    for node in (0, 1):
        record(run, f"node-{node}", node=node, code=code, stopped=stopped)


def never() -> View:
    raise AssertionError("the records say it all")


def test_completed(run: Run) -> None:
    for rank in range(4):
        record(run, f"rank-{rank}", rank=rank, node=rank // 2, code=0)
    nodes_ended(run, 0)
    status = runs.status_of(run, never)
    assert (status.state, status.code) == ("COMPLETED", 0)


def test_root_cause_is_the_first_that_is_no_victim(run: Run) -> None:
    record(
        run, "rank-0", rank=0, node=0, code=1, ended_at=8.0, tail=["RuntimeError: Connection closed by peer [::1]:1"]
    )
    record(run, "rank-1", rank=1, node=0, code=143, ended_at=7.0, stopped=True)
    record(run, "rank-2", rank=2, node=1, code=42, ended_at=9.0, host="n2", error="ValueError: X", tail=["a", "b"])
    record(run, "rank-3", rank=3, node=1, code=1, ended_at=9.5, error="KeyError: later")
    nodes_ended(run, 42)
    status = runs.status_of(run, never)
    assert (status.state, status.code) == ("FAILED", 42)
    text = report.status_text(run, status)
    assert "node 1 (n2), rank 2 ended with code 42" in text
    assert "ValueError: X" in text
    assert "logs/0/rank-2.log" in text
    assert "3 more ended after it" in text


def test_who_failed_by_itself_is_the_cause_though_it_was_told_to_stop_while_it_ended(run: Run) -> None:
    """Its peer, which leaves faster, is seen first by torchrun, which then tells the one that raised to stop."""
    record(run, "rank-0", rank=0, node=0, code=1, reason="error", stopped=True, error="ValueError: x", ended_at=9.0)
    record(
        run, "rank-1", rank=1, node=0, code=11, reason=reason_of(11), tail=["Connection closed by peer"], ended_at=8.0
    )
    nodes_ended(run, 0)
    cause = run.outcome().root_cause
    assert cause is not None
    assert (cause.rank, cause.code) == (0, 1)


def test_death_by_signal(run: Run) -> None:
    record(run, "rank-3", rank=3, node=1, code=137, signal=9, error="killed by SIGKILL")
    nodes_ended(run, 137)
    assert "code 137 (SIGKILL)" in report.status_text(run, runs.status_of(run, never))


def test_node_that_failed_before_its_ranks(run: Run) -> None:
    record(run, "node-0", node=0, code=17, own_code=17, error="no port")
    record(run, "node-1", node=1, code=17, own_code=17, error="node 0 said nothing", ended_at=20.0)
    status = runs.status_of(run, never)
    assert (status.code, status.outcome.root_cause.error) == (17, "no port")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("view", "cancelled", "state", "code"),
    [
        (View("waiting", "Resources"), False, "PENDING", 1),
        (View("running"), False, "RUNNING", 1),
        (View("running"), True, "RUNNING", 1),
        (View("unknown", "squeue is away"), False, "RUNNING", 1),
        (View("ended"), False, "LOST", 1),
        (View("ended", "NODE_FAIL"), False, "FAILED", 1),
        (View("ended", "CANCELLED"), False, "CANCELLED", 143),
        (View("ended"), True, "CANCELLED", 143),
    ],
)
def test_without_records_the_executor_is_asked(run: Run, view: View, cancelled: bool, state: str, code: int) -> None:
    if cancelled:
        (run.path / "cancelled.json").write_text("{}")
    status = runs.status_of(run, lambda: view)
    assert (status.state, status.code) == (state, code)


def test_a_job_cancelled_before_it_began_is_cancelled_also_where_squeue_can_not_be_asked(run: Run) -> None:
    away = View("unknown", "squeue did not answer within 15 s")
    (run.path / "exit" / "0").rmdir()
    assert runs.status_of(run, lambda: away).state == "PENDING"
    (run.path / "cancelled.json").write_text(json.dumps({"cancelled_at": time.time()}))
    status = runs.status_of(run, lambda: away)
    assert (status.state, status.code, status.has_ended) == ("CANCELLED", 143, True)


def test_a_cancelled_job_is_gone_with_its_last_record_or_after_slurms_grace(run: Run) -> None:
    away = View("unknown", "squeue is not on PATH")
    (run.path / "cancelled.json").write_text(json.dumps({"cancelled_at": time.time()}))
    assert runs.status_of(run, lambda: away).state == "RUNNING"
    (run.path / "cancelled.json").write_text(json.dumps({"cancelled_at": time.time() - runs.CANCEL_GRACE_S - 1}))
    assert runs.status_of(run, lambda: away).state == "CANCELLED"
    (run.path / "cancelled.json").write_text(json.dumps({"cancelled_at": time.time()}))
    record(run, "rank-0", rank=0, node=0, code=143, stopped=True)
    nodes_ended(run, 143, stopped=True)
    assert runs.status_of(run, never).state == "CANCELLED"


def test_it_is_told_once_that_only_the_records_are_known(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from launch import executor
    from launch.verbs.common import Watch

    monkeypatch.setattr("launch.verbs.common.SQUEUE_INTERVAL_S", 0.0)
    monkeypatch.setattr(executor, "view", lambda _: View("unknown", "squeue is not on PATH"))
    watch = Watch(run)
    assert (watch.has_ended(), watch.has_ended()) == (False, False)
    assert capsys.readouterr().err == "squeue is not on PATH: only the run's own records tell how it stands.\n"


def test_a_job_that_scancel_did_not_take_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from launch import executor

    monkeypatch.setenv("PATH", "")
    submission = {"executor": "slurm", "job_id": "7", "host": "ctl"}
    (run.path / "submission.json").write_text(json.dumps(submission))
    with pytest.raises(LaunchError, match="scancel is not on PATH"):
        executor.cancel(run)
    assert not run.is_cancelled


def test_requeued_job_is_pending_although_its_first_attempt_was_stopped(run: Run) -> None:
    for rank in range(4):
        record(run, f"rank-{rank}", rank=rank, node=rank // 2, code=143, stopped=True)
    nodes_ended(run, 143, stopped=True)
    assert runs.status_of(run, lambda: View("waiting", "BeginTime")).state == "PENDING"
    assert runs.status_of(run, lambda: View("ended", "TIMEOUT")).state == "FAILED"
    (run.path / "exit" / "1").mkdir()
    assert runs.status_of(run, lambda: View("running")).state == "RUNNING"


def test_half_written_record_is_no_record(run: Run) -> None:
    (run.path / "exit" / "0" / "node-0.json").write_text('{"node": 0, "co')
    assert runs.status_of(run, lambda: View("running")).state == "RUNNING"


def test_find(run: Run, tmp_path: Path) -> None:
    registry = tmp_path / "state" / "runs.jsonl"
    with pytest.raises(LaunchError, match="there is no run yet"):
        runs.find(None, registry, tmp_path)
    runs.register(registry, run.path, "demo", "7")
    registry.write_text(registry.read_text() + '{"name": "cut off\n')
    other = tmp_path / "elsewhere"
    other.mkdir()
    for wanted in (None, "demo", "7", str(run.path)):
        assert runs.find(wanted, registry, other).path == run.path
    assert runs.find("demo", tmp_path / "none", tmp_path).path == run.path
    assert oct(registry.stat().st_mode)[-3:] == "600"
    with pytest.raises(LaunchError, match="Latest: demo") as error:
        runs.find("dem", registry, other)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", None),
        ("a\nb\n\n", "b"),
        ("Traceback (most recent call last):\n  File x\nValueError: X\n", "ValueError: X"),
        ("Traceback (most recent call last):\n  File x\nKeyError: 1\n\nDuring handling of the above exception, another "
         "exception occurred:\n\nTraceback (most recent call last):\n  File y\ntorch.cuda.OutOfMemoryError: CUDA\n",
         "torch.cuda.OutOfMemoryError: CUDA"),
        ("Traceback (most recent call last):\n  File x\nKeyboardInterrupt\n", "KeyboardInterrupt"),
    ],
)  # fmt: skip
def test_error_in(text: str, error: str | None) -> None:
    assert error_in(text) == error


def test_tail_of_a_progress_bar(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 100_000 + b"\n 1%\r 50%\r100%\n\xff caf\xc3\xa9\r\nend")
    assert read_tail(log).splitlines()[-3:] == ["100%", "� café", "end"]
    assert read_tail(tmp_path / "none") == ""
