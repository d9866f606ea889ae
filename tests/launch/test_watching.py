"""What a node's agent says of ranks that stand still, and of agents that could not say anything any more."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from launch import attempts
from launch.hang import CERTAIN, UNKNOWN, Finding
from launch.outcome import read_outcome
from launch.records import make_directory, write_json
from launch.spec import JobSpec
from launch.watch import NodeWatch
from node_board import VARIABLE, NodeBoard


@pytest.fixture
def watch(make_spec: Callable[..., JobSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeWatch]:
    """The watch over the second of two nodes with one rank each; there is no agent of the first."""
    monkeypatch.setattr("launch.watch._OTHER_STACKS_S", 0.2)
    for name in ("records", "logs"):
        make_directory(tmp_path / name)
    watch = NodeWatch(make_spec(procs_per_node=1), 1, tmp_path / "records", tmp_path / "logs")
    yield watch
    watch.board.close()


def test_a_rank_that_stands_still_is_told_of_once_before_it_is_ended(
    watch: NodeWatch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("launch.watch.time.monotonic", lambda: now[0])
    rank = NodeBoard.attach_from({VARIABLE: str(watch.board.path)}, 0)
    assert rank is not None

    def steps(*numbers: int, still_s: int = 0) -> str:
        for number in numbers:
            rank.beat("step", number)
            watch.look()
        for _ in range(2 * still_s):
            now[0] += 0.5
            watch.look()
        return capsys.readouterr().out

    assert steps(1, 2, 3, still_s=4) == ""
    assert "rank 1 on " in (said := steps(still_s=2))
    assert "has not moved for 4.5 s (step 3, step); the job ends if it does not within 9 s" in said
    assert said.count("warning") == 1
    assert steps(4, still_s=2) == ""
    assert steps(still_s=3).count("warning") == 1
    assert not watch.hangs


def test_a_host_that_does_not_answer_is_the_cause_and_named(
    watch: NodeWatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "records" / "here-0.json", {"host": "n1", "addresses": ["10.77.0.11"]})
    rank = NodeBoard.attach_from({VARIABLE: str(watch.board.path)}, 0)
    assert rank is not None
    rank.beat("step", 7)
    found = Finding(CERTAIN, "it waits for another rank in all_reduce", {"10.77.0.11": 6})
    monkeypatch.setattr("launch.watch.examine", lambda *_: {1: found})
    monkeypatch.setattr("launch.watch.processes.kill_descendants", lambda: None)
    watch.end_hanging_ranks(lambda: False)
    record = json.loads((tmp_path / "records" / "rank-1.json").read_text())
    assert (record["code"], record["reason"], record["step"]) == (11, "host_silent", 7)
    assert "waits, and n1 (10.77.0.11) does not answer: the same was sent 6 times." in record["error"]


def test_ranks_that_hang_are_kept_until_the_other_nodes_have_asked_for_stacks(
    watch: NodeWatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for them would die with them, and leave none."""
    records = tmp_path / "records"
    files_at_end: list[list[str]] = []

    def end() -> None:
        files_at_end.append(sorted(os.listdir(records)) if records.is_dir() else [])

    monkeypatch.setattr("launch.watch.examine", lambda *_: {})
    monkeypatch.setattr("launch.watch.processes.kill_descendants", end)
    monkeypatch.setattr("launch.watch._OTHER_STACKS_S", 60.0)
    answer = threading.Timer(0.3, write_json, [records / "stacks-0.json", {}])
    answer.start()
    began = time.monotonic()
    watch.end_hanging_ranks(lambda: False)
    answer.join()
    assert files_at_end == [["hang.json", "stacks-0.json", "stacks-1.json"]]
    (records / "stacks-0.json").rename(records / "node-0.json")  # it has ended: none will come
    watch.end_hanging_ranks(lambda: False)
    (records / "node-0.json").unlink()
    watch.end_hanging_ranks(lambda: True)
    assert time.monotonic() - began < 20
    assert len(files_at_end) == 3
    monkeypatch.setattr("launch.watch._OTHER_STACKS_S", 0.3)
    records.rename(tmp_path / "away")  # a disk that does not answer, too
    watch.end_hanging_ranks(lambda: False)
    assert len(files_at_end) == 4


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("launch.watch.write_json", refuse)


@pytest.mark.usefixtures("full_disk")
def test_a_warning_that_cannot_be_written_ends_no_run(watch: NodeWatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a slow rank, on a full disk: the agent goes on watching."""
    slot = watch.board.slots()[0]
    watch._tell_slow(replace(slot, slowness=2.5))
    told = capsys.readouterr()
    assert "computes 2.5 times as long as the others" in told.out
    assert "error: a record cannot be written: [Errno 28]" in told.err


@pytest.mark.usefixtures("full_disk")
def test_a_hang_that_cannot_be_written_down_still_ends_its_ranks(
    watch: NodeWatch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[bool] = []
    rank = NodeBoard.attach_from({VARIABLE: str(watch.board.path)}, 0)
    assert rank is not None
    rank.beat("step", 7)
    monkeypatch.setattr("launch.watch.examine", lambda *_: {1: Finding(CERTAIN, "it stands", {})})
    monkeypatch.setattr("launch.watch.processes.kill_descendants", lambda: ended.append(True))
    watch.end_hanging_ranks(lambda: False)
    assert ended == [True]
    assert "error: rank 1 hangs: it stands; step 7" in capsys.readouterr().out


@pytest.mark.parametrize("told", ["", "stop.json"])
def test_an_agent_that_was_killed_is_the_cause_unless_the_job_was_told_to_end(
    tmp_path: Path, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "exit" / "0"
    make_directory(folder)
    for node in (0, 1):
        write_json(folder / f"here-{node}.json", {"host": f"n{node + 1}"})
    victim = {"rank": 0, "node": 0, "host": "n1", "code": 11, "reason": "peer_lost", "ended_at": 1.0, "step": 9}
    write_json(folder / "rank-0.json", victim)
    write_json(folder / "node-0.json", {"node": 0, "host": "n1", "own_code": 0, "code": 11})
    if told:
        write_json(folder / told, {"reason": "signal"})
    job = {"resources": {"nodes": 2}, "chain": "requeue", "max_restarts": 10, "name": "x"}
    decision = attempts.end(tmp_path, 0, job, 137)
    assert (decision.again, decision.code) == (True, 11)
    said = capsys.readouterr().out
    assert ("error: the agent of node 1 (n2) died, and its ranks with it" in said) == (not told)
    assert ("LAUNCH-EXIT code=11 reason=agent_died host=n2 " in said) == (not told)
    assert (folder / "node-1.json").exists() == (not told)


def test_a_host_that_does_not_answer_is_blamed_before_a_rank_that_may_only_wait(tmp_path: Path) -> None:
    """As each end of a link that is cut sees it: one has something to send again, the other waits in its step."""
    for rank, code, blame, reason in ((0, 11, CERTAIN, "host_silent"), (1, 12, UNKNOWN, "hang")):
        found = {"rank": rank, "node": rank, "host": f"n{rank + 1}", "code": code, "blame": blame, "reason": reason}
        write_json(tmp_path / f"rank-{rank}.json", {**found, "step": 22, "ended_at": 10.0 - rank})
    cause = read_outcome(tmp_path, 2).root_cause
    assert cause is not None
    assert (cause.rank, cause.code, cause.reason) == (0, 11, "host_silent")
