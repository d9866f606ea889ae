"""Local runs through the real launchers: N agents on this machine, with Slurm's variables, logs and exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launch_probe import HOSTILE, PROBE

from launch import processes
from launch.spec import ROOT

pytestmark = pytest.mark.ranks


class Launcher:
    """`python -m launch` in a folder with the probe script."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"PYTHONPATH": str(ROOT)}
        (folder / "probe.py").write_text(PROBE)

    def __call__(self, *words: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "launch", *words]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def submit(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        return self("submit", "--executor", "local", "--script", "probe.py", "--name", name, *words)

    def seen(self, name: str, rank: int) -> dict[str, Any]:
        """What the probe of one rank wrote down."""
        seen: dict[str, Any] = json.loads((self.folder / "runs" / name / f"seen-{rank}.json").read_text())
        return seen

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert condition()

    def pids(self, name: str) -> list[int]:
        """Supervisor and ranks, with all that they have started."""
        folder = self.folder / "runs" / name
        supervisor = json.loads((folder / "submission.json").read_text())["pid"]
        return [supervisor, *processes.descendants(supervisor)]


@pytest.fixture
def launch(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path)


def living(pids: list[int]) -> list[int]:
    return [pid for pid in pids if processes.start_ticks(pid) is not None]


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "direct"])
def test_hostile_words_arrive_unchanged(launch: Launcher, launcher: str) -> None:
    env = [word for index, value in enumerate(HOSTILE) for word in ("--env", f"X_{index}={value}")]
    result = launch.submit("x", "--nodes", "2", "--launcher", launcher, "--wait", *env, "--", *HOSTILE)
    assert result.returncode == 0, result.stdout + result.stderr
    for rank in (0, 1):
        seen = launch.seen("x", rank)
        assert seen["argv"] == list(HOSTILE)
        assert [seen["env"][f"X_{index}"] for index in range(len(HOSTILE))] == list(HOSTILE)
        assert (seen["env"]["WORLD_SIZE"], seen["env"]["RANK"]) == ("2", str(rank))
        assert seen["env"]["CLEANSFT_NODE_RANK"] == str(rank)
        assert seen["env"]["GLOO_SOCKET_IFNAME"] == "lo"


def test_several_ranks_on_each_node(launch: Launcher) -> None:
    result = launch.submit("x", "--nodes", "2", "--procs-per-node", "2", "--wait")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "x: COMPLETED" in result.stdout
    seen = [launch.seen("x", rank)["env"] for rank in range(4)]
    assert [(env["LOCAL_RANK"], env["CLEANSFT_NODE_RANK"]) for env in seen] == [
        ("0", "0"), ("1", "0"), ("0", "1"), ("1", "1"),
    ]  # fmt: skip
    printed = launch("logs").stdout
    assert all(f"rank {rank}] rank {rank} of 4" in printed for rank in range(4))
    assert launch("logs", "--rank", "3").stdout.count("\n") == 1
    again = launch.submit("x")
    assert (again.returncode, "not hold a submission already" in again.stderr) == (2, True)


@pytest.mark.parametrize(("mode", "code"), [("exit 42", 42), ("kill", 11)])
def test_failure_of_one_rank_ends_all(launch: Launcher, mode: str, code: int, tmp_path: Path) -> None:
    result = launch.submit("x", "--nodes", "2", "--env", f"FAIL={mode}", "--wait")
    assert result.returncode == code, result.stdout + result.stderr
    assert f"node 1 ({os.uname().nodename}), rank 1 ended with code {code}" in result.stdout
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    launch.folder = elsewhere
    assert launch("wait").returncode == code


def test_a_run_that_no_list_can_name_is_told_all_the_same(launch: Launcher) -> None:
    launch.environment |= {"XDG_STATE_HOME": "/proc/nowhere"}
    done = launch.submit("x", "--launcher", "direct", "--wait")
    assert (done.returncode, "\njob      local-" in done.stdout) == (0, True)
    folder = launch.folder / "runs" / "x"
    told = f"`list` will not show this run; name it by its folder, {folder}."
    assert told in done.stderr
    assert "COMPLETED" in launch("status", str(folder)).stdout


def test_the_codes_of_other_scripts_are_their_own(launch: Launcher) -> None:
    (launch.folder / "probe.py").write_text("import sys\nsys.exit(3)\n")
    done = launch.submit("x", "--launcher", "direct", "--wait")
    assert done.returncode == 3
    assert "LAUNCH-EXIT code=3 reason=error" in done.stdout


def test_cancel_leaves_nothing(launch: Launcher) -> None:
    assert launch.submit("x", "--nodes", "2", "--env", "FAIL=hang").returncode == 0
    launch.wait_for(lambda: len(list((launch.folder / "runs/x").glob("seen-*.json"))) == 2)
    pids = launch.pids("x")
    assert len(pids) >= 9  # supervisor, and for each node agent, torchrun, wrapper, script
    assert "RUNNING" in launch("status", "x").stdout
    assert "x: CANCELLED" in launch("cancel", "x").stdout
    assert not living(pids)
    assert launch("wait", "x").returncode == 143


@pytest.mark.parametrize(
    ("nodes", "fails", "code", "why"), [(2, "exit 42", 11, "another node has failed"), (1, "hang", 137, "time is over")]
)
def test_a_rank_that_does_not_stop_is_ended_and_its_record_says_why(
    launch: Launcher, nodes: int, fails: str, code: int, why: str
) -> None:
    (launch.folder / "run.yaml").write_text(f"launch: {{nodes: {nodes}, launcher: direct, stop_grace_s: 1}}\n")
    words = ["--config", "run.yaml", "--env", f"FAIL={fails}", "--env", "WAIT_FOR=go"]
    assert launch.submit("x", *words).returncode == 0
    run = launch.folder / "runs/x"
    launch.wait_for(lambda: len(list(run.glob("seen-*.json"))) == nodes)
    record = run / "exit/0/rank-0.json"
    os.kill(json.loads(record.read_text())["pid"], signal.SIGSTOP)
    (launch.folder / "go").touch()
    if nodes == 1:
        launch("cancel", "x")
    assert launch("wait", "x").returncode == (42 if nodes == 2 else 143)
    ended = json.loads(record.read_text())
    assert (ended["code"], ended["signal"], ended["stopped"]) == (code, 9, True)
    assert re.fullmatch(rf"ended by its node \d\.\d s after it was told to stop: {why}", ended["error"])


@pytest.mark.parametrize("victim", ["torch.distributed.run", "launch.agent", "launch.local"])
def test_nothing_outlives_a_killed_part(launch: Launcher, victim: str) -> None:
    assert launch.submit("x", "--nodes", "2", "--env", "FAIL=hang").returncode == 0
    launch.wait_for(lambda: len(list((launch.folder / "runs/x").glob("seen-*.json"))) == 2)
    pids = launch.pids("x")
    command_lines = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in pids}
    os.kill(next(pid for pid, line in command_lines.items() if victim in line), signal.SIGKILL)
    launch.wait_for(lambda: not living(pids), timeout_s=15)
    code = launch("wait", "x").returncode
    assert code in {"torch.distributed.run": (137,), "launch.agent": (11,), "launch.local": (143,)}[victim]


@pytest.fixture
def heeded_interrupts() -> Iterator[None]:
    """Processes started meanwhile heed SIGINT, also where these tests were started to ignore it, as by `&`."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded_interrupts")
def test_ctrl_c_while_waiting_leaves_the_job(launch: Launcher) -> None:
    command = [sys.executable, "-m", "launch", "submit", "--executor", "local", "--script", "probe.py", "--name", "x"]
    with subprocess.Popen(
        [*command, "--wait", "--env", "FAIL=hang"], cwd=launch.folder, env=launch.environment, stderr=subprocess.PIPE
    ) as process:
        launch.wait_for((launch.folder / "runs/x/seen-0.json").exists)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20)[1].decode()
    assert process.returncode == 130
    assert "x goes on" in said
    assert "RUNNING" in launch("status").stdout
    launch("cancel")
