"""Faults in runs of two nodes on this machine: how soon they are seen, what is saved, and what the records say."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from faults.recording import Shows
from tiny import QWEN3, TOKENIZER, write_conversations

from launch import processes
from launch.spec import ROOT

pytestmark = pytest.mark.ranks
NUM_STEPS = 5000


class Ended(NamedTuple):
    """A run that has ended."""

    folder: Path
    code: int
    output: str
    """What `submit --wait` has said."""
    fault_to_end_s: float
    left: list[int]
    """Processes that are still there."""
    fault_at: float
    """When the fault happened (time.time())."""

    @property
    def last_words(self) -> dict[str, str]:
        """The fields of its last line."""
        (line,) = re.findall(r"^LAUNCH-EXIT (.*)$", self.output, re.MULTILINE)
        return dict(re.findall(r'(\w+)=("[^"]*"|\S+)', line))

    def record(self, rank: int) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.folder / "exit" / "0" / f"rank-{rank}.json").read_text())
        return record

    def found_s(self, rank: int) -> float:
        """From the fault to the record of it."""
        return float(self.record(rank)["ended_at"]) - self.fault_at

    @property
    def steps_lost(self) -> int:
        """Steps that were done and are not in a checkpoint; the one in which the run failed was not done."""
        words = self.last_words
        return int(words["step"]) - (words["reason"] != "stopped") - int(words["resume_from"])

    def log(self, rank: int) -> str:
        return (self.folder / "logs" / "0" / f"rank-{rank}.log").read_text()


class Runs:
    """Runs of the launcher in one folder, several at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_conversations(folder / "train.jsonl", 32)
        settings = {
            "model_config": QWEN3, "tokenizer_name": TOKENIZER, "train_file": str(folder / "train.jsonl"),
            "bf16": False, "per_device_train_batch_size": 1, "max_steps": NUM_STEPS, "report_to": "none",
            "save_steps": 2, "parameter_check_steps": 4, "matmul_tflops": 1.0,
        }  # fmt: skip
        (folder / "run.yaml").write_text(yaml.safe_dump(settings))
        self._environment = os.environ | {
            "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state"), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self._started: dict[str, subprocess.Popen[str]] = {}

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "launch", *words]

    def start(self, name: str, fault: str, *options: str, launch: str = "nodes: 2", group: Path | None = None) -> None:
        config = self.folder / f"{name}.yaml"
        chain = "" if "chain:" in launch else "chain: none, "
        config.write_text(f"{(self.folder / 'run.yaml').read_text()}launch: {{{chain}{launch}}}\n")
        words = ["submit", "--executor", "local", "--config", str(config), "--name", name, "--skip-audit", "--wait"]
        self._started[name] = subprocess.Popen(
            [*_inside(group), *self.command(*words, "--env", f"SFT_FAULT={fault}", *options)],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run_dir(self, name: str) -> Path:
        return self.folder / "runs" / name

    def call(self, *words: str) -> str:
        done = subprocess.run(
            self.command(*words), cwd=self.folder, env=self._environment, capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    def wait_for_step(self, name: str, step: int) -> None:
        path = self.run_dir(name) / "training_log.json"
        wait_for(lambda: path.is_file() and json.loads(path.read_text())[-1]["step"] >= step)

    def agents(self, name: str) -> list[int]:
        """Processes of the agents of a run."""
        found = []
        for pid in processes.descendants(self.supervisor(name)):
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            found += [pid] if b"launch.agent" in line else []
        return found

    def supervisor(self, name: str) -> int:
        return int(json.loads((self.run_dir(name) / "submission.json").read_text())["pid"])

    def fault_at(self, name: str) -> float:
        """When a fault on purpose was noted (time.time())."""
        return min((path.stat().st_mtime for path in (self.run_dir(name) / "faults").glob("*")), default=time.time())

    def end(self, name: str) -> Ended:
        process = self._started.pop(name)
        output = process.communicate(timeout=200)[0]
        node = max(json.loads(path.read_text())["ended_at"] for path in self.run_dir(name).glob("exit/*/node-*.json"))
        time.sleep(0.5)
        supervisor = self.supervisor(name)
        left = [pid for pid in (supervisor, *processes.descendants(supervisor)) if processes.start_ticks(pid)]
        fault_at = self.fault_at(name)
        return Ended(self.run_dir(name), process.returncode, output, node - fault_at, left, fault_at)

    def close(self) -> None:
        for process in self._started.values():
            process.kill()
            process.communicate()


def _inside(group: Path | None) -> list[str]:
    """Words before a command that put it and all that it starts into a cgroup, or end where that cannot be."""
    return [] if group is None else ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]


def wait_for(condition: Any, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert condition()


FAULTS = {"kill": "kill@1:7", "stop": "stop@1:7", "term": "term@1:7", "exit0": "exit0@1:7", "usr2": "slow@0:1"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Runs with one fault each; they run at the same time, as they mostly wait."""
    runs = Runs(tmp_path_factory.mktemp("faults"))
    for name, fault in FAULTS.items():
        runs.start(name, fault)
    yield runs
    runs.close()


def test_killed_rank(runs: Runs, shows: Shows) -> None:
    """Rows 1 and 2."""
    ended = runs.end("kill")
    words = {"code": "11", "reason": "rank_died", "rank": "1", "step": "7"}
    assert ended.code == 11, ended.output
    assert words.items() <= ended.last_words.items()
    assert int(ended.last_words["resume_from"]) in (2, 4, 6)  # it was written meanwhile
    assert ended.last_words["next"] == '"python -m launch resume kill"'
    assert (ended.record(1)["signal"], ended.record(1)["code"]) == (9, 11)
    assert f"rank 1 on {os.uname().nodename} died (SIGKILL)" in ended.output
    assert (ended.record(0)["code"], ended.record(0)["reason"]) == (11, "peer_lost")  # and not 134
    assert ended.left == []
    assert "LAUNCH-EXIT code=11" in (ended.folder / "logs" / "local.log").read_text()
    said = ended.record(1)["error"]
    shows(1, "local", code=ended.code, says=said, found_s=ended.found_s(1), steps_lost=ended.steps_lost)


def test_stopped_rank_hangs(runs: Runs, shows: Shows) -> None:
    """Row 4."""
    ended = runs.end("stop")
    assert ended.code == 12, ended.output
    assert {"reason": "hang", "rank": "1", "step": "7"}.items() <= ended.last_words.items()
    assert "rank 1 hangs: it is stopped" in ended.output
    assert ended.record(1)["code"] == 12
    assert ended.record(0)["code"] in (11, 12)  # 11 where the other node was the first to end rank 1
    nodes = [json.loads(path.read_text())["code"] for path in sorted(ended.folder.glob("exit/0/node-*.json"))]
    assert nodes == [12, 12]
    assert "most recent call first" in ended.log(0)
    assert ended.fault_to_end_s < 40  # the figure of a quiet machine is the lab test's
    assert ended.left == []
    shows(4, "local", code=ended.code, says=ended.record(1)["error"], found_s=ended.found_s(1))


def test_a_rank_that_is_told_to_stop_takes_all_with_it_and_all_is_saved(runs: Runs, shows: Shows) -> None:
    """Row 8."""
    ended = runs.end("term")
    assert ended.code == 10, ended.output
    assert {"reason": "stopped", "step": "7", "resume_from": "7"}.items() <= ended.last_words.items()
    assert (ended.folder / "checkpoints" / "step-00000007").is_dir()
    assert "stopped by SIGTERM, after step 7 of 5000" in ended.log(1)
    assert [ended.record(rank)["code"] for rank in (0, 1)] == [10, 10]
    shows(8, code=ended.code, says=ended.record(1)["error"], steps_lost=ended.steps_lost)


def test_a_rank_that_leaves_early_with_0(runs: Runs, shows: Shows) -> None:
    """Row 7."""
    ended = runs.end("exit0")
    assert ended.code == 11, ended.output
    assert "rank 1 exited 0 at step 7 of 5000" in ended.output
    assert {"reason": "exited_early", "rank": "1"}.items() <= ended.last_words.items()
    assert ended.left == []
    said = ended.record(1)["error"]
    shows(7, code=ended.code, says=said, found_s=ended.found_s(1), steps_lost=ended.steps_lost)


def test_a_signal_to_one_agent_saves_on_all_nodes(runs: Runs, shows: Shows) -> None:
    """Rows 9 and 11: the agent of the second node alone gets it."""
    runs.wait_for_step("usr2", 8)
    os.kill(runs.agents("usr2")[1], signal.SIGUSR2)
    ended = runs.end("usr2")
    assert ended.code == 10, ended.output
    assert ended.last_words["step"] == ended.last_words["resume_from"]
    assert "stopped by SIGUSR2" in ended.log(1)
    shows(11, "local", code=ended.code, says=ended.record(1)["error"], steps_lost=ended.steps_lost)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("row", "case", "fault", "code", "reason", "said"),
    [
        (5, "lock", "lock_gil@1:7", 12, "hang", "match"),
        (5, "sleep", "hang@1:7", 12, "hang", "faults.py"),
        (6, "", "raise@1:7", 1, "error", "InjectedFaultError: a fault on purpose"),
        (3, "SIGSEGV", "segv@1:7", 11, "rank_died", "SIGSEGV"),
        (3, "SIGABRT", "abort@1:7", 11, "rank_died", "SIGABRT"),
        (2, "", "kill@0:7", 11, "rank_died", "rank 0 on"),
        (35, "", "perturb@1:7", 15, "diverged", "rank 1 diverged at step 8 or in the 3 before it"),
        (34, "", "nan@1:7", 15, "non_finite", "It arose on rank 1, from row"),
    ],
)
def test_other_faults(
    tmp_path: Path, shows: Shows, row: int, case: str, fault: str, code: int, reason: str, said: str
) -> None:
    runs = Runs(tmp_path)
    runs.start("x", fault)
    ended = runs.end("x")
    assert (ended.code, ended.last_words["reason"]) == (code, reason), ended.output
    assert said in ended.output
    assert ended.left == []
    if row in (2, 3):
        other = ended.record(1 if row == 2 else 0)
        assert (other["code"], other["signal"]) == (11, None)
        assert row == 2 or "most recent call first" in ended.log(1)
    rank = int(ended.last_words["rank"])
    shows(row, case, code=ended.code, says=ended.record(rank)["error"], found_s=ended.found_s(rank))


@pytest.mark.soak
def test_a_slow_rank_is_named(tmp_path: Path, shows: Shows) -> None:
    """Row 22."""
    runs = Runs(tmp_path)
    slow = ",".join(f"slow@1:{step}:data" for step in range(5, 31))
    runs.start("x", f"{slow},term@1:31")
    ended = runs.end("x")
    assert ended.code == 10, ended.output
    warned = re.search(r"warning: rank 1 takes ([\d.]+) times as long", ended.log(0))
    assert warned is not None
    assert float(warned[1]) > 3
    assert re.search(r"slow +rank 1 .* times as long", ended.output)
    shows(22, code=ended.code, says=warned[0])


@pytest.mark.soak
def test_lack_of_memory(tmp_path: Path, shows: Shows) -> None:
    """Row 23."""
    group = Path("/sys/fs/cgroup/memory/cleansft-test")
    try:
        group.mkdir(exist_ok=True)
    except OSError as error:
        pytest.skip(f"no memory cgroup of version 1 can be made here: {error}")
    # Never without the limit: the fault takes all the memory that there is.
    (group / "memory.limit_in_bytes").write_text(str(3 * 2**30))
    runs = Runs(tmp_path)
    runs.start("x", "oom@1:7", group=group)
    ended = runs.end("x")
    group.rmdir()
    assert ended.code == 18, ended.output
    assert "cgroup oom_kill=1" in ended.output
    rank = int(ended.last_words["rank"])
    shows(23, code=ended.code, says=ended.record(rank)["error"])


@pytest.mark.soak
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "direct"])
def test_cancel_saves(tmp_path: Path, shows: Shows, launcher: str) -> None:
    """Row 12, and a save by the way that DeepSpeed's launcher starts ranks."""
    runs = Runs(tmp_path)
    runs.start("x", "slow@0:1", launch=f"nodes: 2, launcher: {launcher}")
    runs.wait_for_step("x", 8)
    started = time.monotonic()
    assert "x: CANCELLED" in runs.call("cancel", "x")
    assert time.monotonic() - started < 15
    ended = runs.end("x")
    assert (ended.last_words["code"], ended.last_words["step"]) == ("10", ended.last_words["resume_from"])
    assert "stopped by cancelled" in ended.log(0)
    shows(12, "launch cancel", code=10, says=ended.record(0)["error"], steps_lost=ended.steps_lost, note=launcher)


@pytest.mark.soak
def test_a_hung_rank_does_not_make_cancel_slow(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.start("x", "hang@1:7", launch="nodes: 2, watchdog: {enabled: false}")
    runs.wait_for_step("x", 6)
    time.sleep(12)
    started = time.monotonic()
    assert "x: CANCELLED" in runs.call("cancel", "x")
    assert time.monotonic() - started < 15
    assert runs.end("x").left == []


def test_python_m_sft_train_heeds_a_signal(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    words = [sys.executable, "-m", "sft", "train", "run.yaml", "--output_dir", "out"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(words, cwd=tmp_path, stdout=log, stderr=log, env=runs._environment)
        wait_for((tmp_path / "out" / "checkpoints").is_dir)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 10
    assert "stopped by SIGTERM, after step" in (tmp_path / "log").read_text()


@pytest.mark.soak
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 10), (signal.SIGTERM, 10)])
def test_a_run_by_hand(tmp_path: Path, number: int, code: int) -> None:
    """torchrun alone: it passes the signal on, and the ranks save."""
    runs = Runs(tmp_path)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += [str(ROOT / "sft" / "train.py"), "--config", "run.yaml", "--output_dir", "out"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(words, cwd=tmp_path, stdout=log, stderr=log, env=runs._environment)
        wait_for((tmp_path / "out" / "checkpoints").is_dir)
        process.send_signal(number)
        process.wait(timeout=60)
    text = (tmp_path / "log").read_text()
    assert f"stopped by {signal.Signals(number).name}, after step" in text
    assert 'Traceback (most recent call last):\n  File "' + str(ROOT / "sft") not in text
