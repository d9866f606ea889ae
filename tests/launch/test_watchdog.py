"""When a rank hangs, whom to blame, and what the records make of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch import hang, memory_limit
from launch.errors import HANG
from launch.hang import CERTAIN, LIKELY, UNKNOWN, WAITS, judge
from launch.outcome import exit_line, have_ended_early, read_outcome
from launch.spec import JobSpec, Resources, Watchdog
from launch.watch import NodeWatch
from launch.watchdog import Stillness
from node_board import VARIABLE, NodeBoard, Phase, Slot

LIMITS = Watchdog(start_s=100, step_s=10, step_factor=5, checkpoint_s=200, evaluation_s=50)


class Rank:
    """A rank that is looked at every 0.1 s of a clock of the test's own."""

    def __init__(self, limits: Watchdog = LIMITS) -> None:
        self.stillness = Stillness(limits)
        self.now = 0.0
        self.slot = Slot(0, 77, "start", 0, 1, 0.0, None, 0, 0.0)

    def beat(self, phase: Phase, step: int) -> None:
        self.slot = Slot(0, 77, phase, step, self.slot.num_beats + 1, self.now, None, 0, 0.0)

    def hangs_within(self, seconds: float) -> bool:
        for _ in range(round(seconds * 10)):
            self.stillness.look([self.slot], self.now)
            if self.stillness.hanging([self.slot]):
                return True
            self.now += 0.1
        return False

    def train(self, *seconds: float) -> None:
        for number, duration in enumerate(seconds, 1):
            self.beat("step", number)
            assert not self.hangs_within(duration)
        self.beat("step", len(seconds) + 1)


@pytest.mark.parametrize(("phase", "limit_s"), [("start", 100), ("step", 100), ("checkpoint", 200), ("evaluation", 50)])
def test_each_phase_has_its_limit(phase: Phase, limit_s: float) -> None:
    rank = Rank()
    rank.beat(phase, 1)
    assert not rank.hangs_within(limit_s)
    assert rank.hangs_within(0.4)


def test_preparing_data_may_take_any_time() -> None:
    rank = Rank()
    rank.beat("data", 0)
    assert not rank.hangs_within(10_000)


@pytest.mark.parametrize(("steps_s", "limit_s"), [((0.3, 0.3, 0.3), 10), ((60, 4, 3), 20), ((7,), 35)])
def test_the_limit_of_a_step_comes_from_the_runs_own_steps(steps_s: tuple[float, ...], limit_s: float) -> None:
    rank = Rank()
    rank.train(*steps_s)
    assert not rank.hangs_within(limit_s - 0.5)
    assert rank.hangs_within(1.5)


def test_long_steps_that_beat_within_do_not_hang() -> None:
    rank = Rank()
    rank.train(0.2, 0.2)
    for _ in range(20):
        rank.beat("step", 4)
        assert not rank.hangs_within(8)


def test_an_evaluation_between_two_steps_does_not_make_steps_long() -> None:
    rank = Rank()
    rank.train(0.2, 0.2)
    for _ in range(3):
        rank.beat("evaluation", 3)
        assert not rank.hangs_within(40)
    rank.beat("step", 4)
    assert not rank.hangs_within(0.2)
    rank.beat("step", 5)
    assert rank.hangs_within(10.5)


def test_the_time_in_which_the_watchdog_itself_was_stopped_does_not_count() -> None:
    rank = Rank()
    rank.train(0.2, 0.2)
    rank.stillness.look([rank.slot], rank.now)
    rank.now += 3600
    assert not rank.hangs_within(5)


def test_it_can_be_turned_off_and_leaves_foreign_scripts_alone() -> None:
    rank = Rank(Watchdog(enabled=False))
    rank.train(0.2, 0.2)
    assert not rank.hangs_within(10_000)
    stillness = Stillness(LIMITS)
    foreign = Slot(0, 0, "start", 0, 0, 0.0, None, 0, 0.0)
    for now in range(0, 10_000, 1):
        stillness.look([foreign], float(now))
    assert stillness.hanging([foreign]) == []


def test_whether_a_rank_moves_while_it_is_to_stop() -> None:
    rank = Rank()
    rank.train(4, 4)
    assert not rank.hangs_within(11)
    assert rank.stillness.moves_while_stopping(rank.slot)
    assert not rank.hangs_within(2)
    assert not rank.stillness.moves_while_stopping(rank.slot)
    rank.beat("checkpoint", 3)
    assert not rank.hangs_within(100)
    assert rank.stillness.moves_while_stopping(rank.slot)


# --- whom to blame

WAITING = """\
Thread 0x00007f9ee7ff (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 331 in wait
  File "/code/sft/prefetch.py", line 54 in make

Current thread 0x00007f9ef0ae (most recent call first):
  File "/venv/torch/distributed/distributed_c10d.py", line 2971 in all_reduce
  File "/code/sft/world.py", line 130 in add_up
"""
COMPUTING = WAITING.replace("torch/distributed/distributed_c10d.py", "torch/autograd/graph.py").replace(
    "all_re", "run_"
)
SLEEPING = WAITING.replace("/venv/torch/distributed/distributed_c10d.py", "/code/sft/faults.py").replace(
    "world", "loop"
)


@pytest.mark.parametrize(
    ("state", "stacks", "blame", "words"),
    [
        ("T", None, CERTAIN, "stopped"),
        ("D", WAITING, CERTAIN, "kernel"),
        (None, None, CERTAIN, "gone"),
        ("R", None, CERTAIN, "does not answer"),
        ("S", WAITING, WAITS, "waits for another rank in all_reduce"),
        ("S", COMPUTING, UNKNOWN, "computes or waits"),
        ("S", SLEEPING, LIKELY, "faults.py"),
        ("S", "Thread 0x1 (most recent call first):\n  <no Python frame>\n", UNKNOWN, "unknown place"),
    ],
)
def test_blame(state: str | None, stacks: str | None, blame: int, words: str) -> None:
    finding = judge(state, stacks)
    assert finding.blame == blame
    assert words in finding.what


RANK = """
import os, re, sys, time
sys.path.insert(0, sys.argv[1])
from sft.heartbeat import Heartbeat
heartbeat = Heartbeat()
heartbeat.listen()
print("up", flush=True)
{}
"""
WAYS = {
    "sleeps": "time.sleep(60)",
    "locks": "re.match(r'(a?){40}a{40}', 'a' * 40)",
    "stops": "os.kill(os.getpid(), 19)",
}


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """A process for each way to hang, all at once."""
    started = {}
    for name, code in WAYS.items():
        with (tmp_path / f"{name}.log").open("ab") as log:
            words = [sys.executable, "-c", RANK.format(code), str(Path(hang.__file__).parents[1])]
            started[name] = subprocess.Popen(words, stdout=log, stderr=log)
    yield started
    for process in started.values():
        process.kill()
        process.wait()


def test_the_stacks_of_real_processes(ranks: dict[str, subprocess.Popen[bytes]], tmp_path: Path) -> None:
    logs = {number: tmp_path / f"{name}.log" for number, name in enumerate(WAYS)}
    deadline = time.monotonic() + 20
    while not all("up" in log.read_text() for log in logs.values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    findings = hang.examine(
        {number: process.pid for number, process in enumerate(ranks.values())}, logs, sys.executable
    )
    assert [finding.blame for finding in findings.values()] == [LIKELY, LIKELY, CERTAIN]
    assert 'File "<string>"' in logs[0].read_text()
    assert "in match" in logs[1].read_text()  # faulthandler does not need the lock that the others wait for
    assert "SIGSTOP" in logs[2].read_text()


# --- records


def record(folder: Path, name: str, **fields: Any) -> None:
    everything = {"node": 0, "host": "n1", "stopped": False, "signal": None, "tail": [], "ended_at": 1.0, "error": None}
    (folder / f"{name}.json").write_text(json.dumps(everything | fields))


def test_of_ranks_that_hang_together_the_surest_is_the_cause(tmp_path: Path) -> None:
    hangs = {"code": HANG, "reason": "hang", "step": 7}
    record(tmp_path, "rank-0", rank=0, blame=WAITS, **hangs)
    record(tmp_path, "rank-1", rank=1, blame=UNKNOWN, **hangs)
    record(tmp_path, "rank-2", rank=2, blame=CERTAIN, **(hangs | {"ended_at": 9.0, "host": "n2", "last_checkpoint": 5}))
    outcome = read_outcome(tmp_path, 1)
    assert exit_line(outcome, "x") == (
        'LAUNCH-EXIT code=12 reason=hang rank=2 host=n2 step=7 resume_from=5 next="python -m launch resume x"'
    )
    record(tmp_path, "rank-3", rank=3, code=15, ended_at=0.5)
    cause = read_outcome(tmp_path, 1).root_cause
    assert cause is not None
    assert (cause.rank, cause.reason) == (3, "non_finite")  # it had failed before, and the others waited for it


def test_a_lost_peer_is_a_victim_and_a_dead_rank_is_not(tmp_path: Path) -> None:
    record(tmp_path, "rank-0", rank=0, code=11, reason="peer_lost", ended_at=1.0)
    record(tmp_path, "rank-1", rank=1, code=11, reason="rank_died", signal=9, ended_at=2.0)
    cause = read_outcome(tmp_path, 1).root_cause
    assert cause is not None
    assert (cause.rank, cause.reason) == (1, "rank_died")
    assert exit_line(read_outcome(tmp_path / "none", 1), "x") == "LAUNCH-EXIT code=0 reason=done"


@pytest.mark.parametrize("version", [1, 2])
def test_memory_limits_of_both_kinds_of_cgroups(tmp_path: Path, version: int) -> None:
    files = {
        1: ("5:cpu:/x\n9:memory:/job/7\n0::/\n", "memory/job/7", "memory.oom_control", "memory.limit_in_bytes"),
        2: ("0::/job/7\n", "job/7", "memory.events", "memory.max"),
    }
    lines, place, events, limit = files[version]
    (tmp_path / "proc/5").mkdir(parents=True)
    (tmp_path / "proc/5/cgroup").write_text(lines)
    folder = tmp_path / "sys/fs/cgroup" / place
    folder.mkdir(parents=True)
    assert memory_limit.memory_limit(5, tmp_path) is None
    (folder / events).write_text("under_oom 0\noom_kill 3\n")
    for text, limit_bytes in (("157286400\n", 157286400), ("max\n", None), ("9223372036854771712\n", None)):
        (folder / limit).write_text(text)
        found = memory_limit.memory_limit(5, tmp_path)
        assert found is not None
        assert (found.num_kills, found.limit_bytes) == (3, limit_bytes)
    assert memory_limit.memory_limit(6, tmp_path) is None


def test_an_empty_board_is_no_reason_to_end_anything() -> None:
    board = NodeBoard.create(2)
    stillness = Stillness(LIMITS)
    stillness.look(board.slots(), 0.0)
    assert stillness.hanging(board.slots()) == []
    board.close()


@pytest.mark.parametrize(
    ("codes", "is_early"),
    [
        ([11, 11], True),
        ([0, 3], True),
        ([11, None], False),  # the other one has not said yet how it ended
        ([11], False),
        ([0, 0], False),  # the launcher waits for the other nodes
        ([10, 10], True),  # one was told to stop; torchrun takes that for a failure
    ],
)
def test_a_launcher_whose_ranks_have_ended_early_is_not_waited_for(codes: list[int | None], is_early: bool) -> None:
    assert have_ended_early([{"code": code} for code in codes], 2) == is_early


def test_ranks_are_gone_when_all_that_came_have_ended(tmp_path: Path) -> None:
    spec = JobSpec("x", str(tmp_path), "local", "torchrun", Resources(procs_per_node=2), "s", (), "/", "python")
    watch = NodeWatch(spec, 0, tmp_path, tmp_path)
    environment = {VARIABLE: str(watch.board.path), "PYTHONPATH": str(Path(hang.__file__).parents[1])}
    words = "import os, sys; from node_board import NodeBoard; NodeBoard.attach_from(os.environ, int(sys.argv[1]))"
    assert not watch.ranks_are_gone
    for local_rank in ("0", "1"):
        assert not watch.ranks_are_gone
        subprocess.run([sys.executable, "-c", words, local_rank], env=environment, check=True)
    assert watch.ranks_are_gone
    watch.board.close()
