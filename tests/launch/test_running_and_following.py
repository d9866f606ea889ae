"""`launch run` in the foreground and `launch logs -f` over nodes, ranks and attempts, with the real torchrun."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch_probe import TRAINER

from launch.spec import ROOT

pytestmark = pytest.mark.ranks

SPEAKER = """\
# Ranks that speak in turn, by the clock: a line each 2.4 s, rank r 0.6 r later. Two attempts.
import os, sys, time
from pathlib import Path

from node_board import NodeBoard

rank, attempt, run = int(os.environ["RANK"]), int(os.environ["CLEANSFT_ATTEMPT"]), Path(os.environ["CLEANSFT_RUN_DIR"])
board = NodeBoard.attach_from(os.environ, int(os.environ["LOCAL_RANK"]))
board.plan(6)
(run / f"ready-{attempt}-{rank}").touch()
while len(list(run.glob(f"ready-{attempt}-*"))) < 4:
    time.sleep(0.01)
began = max(path.stat().st_mtime for path in run.glob(f"ready-{attempt}-*"))
for number in range(3):
    board.beat("step", 3 * attempt + number + 1)
    time.sleep(max(0.0, began + 0.5 + 2.4 * number + 0.6 * rank - time.time()))
    print(f"say {attempt} {number} {rank}", flush=True)
for percent in range(3):
    print(f"\\r{percent}%", end="", flush=True)
print(flush=True)
(run / "checkpoints").mkdir(exist_ok=True, mode=0o700)
(run / "checkpoints" / f"step-{3 * attempt + 3}").mkdir(exist_ok=True, mode=0o700)
board.beat("checkpoint" if attempt == 0 else "end", 3 * attempt + 3)
(run / f"said-{attempt}-{rank}").touch()
while len(list(run.glob(f"said-{attempt}-*"))) < 4:  # whoever leaves first has the others ended
    time.sleep(0.01)
time.sleep(0.5)
sys.exit(10 if attempt == 0 else 0)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def launch(*words: str) -> list[str]:
    return [sys.executable, "-m", "launch", *words]


def test_logs_of_two_nodes_two_ranks_and_two_attempts(folder: Path) -> None:
    """Every line once, in the order in which it was said, shown while the run goes on, and an end when it ends."""
    (folder / "speaker.py").write_text(SPEAKER)
    words = [
        "--executor",
        "local",
        "--nodes",
        "2",
        "--procs-per-node",
        "2",
        "--script",
        "speaker.py",
        "--chain",
        "requeue",
    ]
    subprocess.run(launch("submit", *words, "--name", "demo"), check=True, capture_output=True, timeout=60)
    with subprocess.Popen(launch("logs", "-f", "demo"), stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        shown = [(time.monotonic(), line) for line in follower.stdout]
        assert follower.wait(timeout=120) == 0
    said = [found.groups() for _, line in shown if (found := re.search(r"rank (\d).*\] say (\d) (\d) (\d)$", line))]
    assert [words[1:] for words in said] == [
        (str(attempt), str(number), str(rank)) for attempt in (0, 1) for number in range(3) for rank in range(4)
    ]
    assert all(prefix == rank for prefix, _, _, rank in said)
    last_of_first = max(at for at, line in shown if "say 0 2 3" in line)
    assert last_of_first < min(at for at, line in shown if "say 1 0 0" in line) - 1.0
    again = subprocess.run(launch("logs", "demo"), check=True, capture_output=True, text=True, timeout=60).stdout
    followed = [line for _, line in shown if " rank " in line]
    assert sorted(again.splitlines(keepends=True)) == sorted(followed)
    assert re.findall(r"\] (say .*)$", again, re.MULTILINE) == [" ".join(("say", *words[1:])) for words in said]
    assert len([line for line in followed if line.endswith("2%\n")]) == 8
    facts = json.loads(subprocess.run(launch("status", "demo", "--json"), check=True, capture_output=True).stdout)
    assert [attempt["code"] for attempt in facts["attempts"]] == [10, 0]
    assert (facts["progress"]["step"], facts["progress"]["num_steps"]) == (6, 6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_in_the_foreground_saves_and_stops_when_it_is_told_to(folder: Path, number: signal.Signals) -> None:
    (folder / "train.py").write_text(TRAINER)
    environment = os.environ | {"STEPS": "400", "PACE": "0.1"}
    command = launch("run", "--script", "train.py", "--name", "demo", "--chain", "requeue")
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "attempt 0 begins at step 0\n"
        time.sleep(1.0)
        run.send_signal(number)
        out, err = run.communicate(timeout=60)
    assert run.returncode == 10
    assert "saved step" in out
    assert "demo: STOPPED" in out
    assert "it saves and stops" in err
    assert list((folder / "runs" / "demo" / "checkpoints").glob("step-*"))
    assert [path.name for path in (folder / "runs" / "demo" / "exit").iterdir()] == ["0"]


def test_a_script_that_ends_when_it_is_told_to_was_cancelled(folder: Path) -> None:
    (folder / "probe.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(600)\n")
    command = launch("run", "--script", "probe.py", "--name", "demo", "--launcher", "direct")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "begun\n"
        run.send_signal(signal.SIGINT)
        out, _ = run.communicate(timeout=60)
    assert run.returncode == 143
    assert "demo: CANCELLED" in out


def test_a_run_in_the_foreground_ends_with_the_code_of_the_script(folder: Path) -> None:
    (folder / "train.py").write_text("import sys; print('bye'); sys.exit(42)")
    done = subprocess.run(
        launch("run", "--script", "train.py", "--name", "demo", "--json"), capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 42
    assert "bye" in done.stderr
    facts = json.loads(done.stdout)
    assert (facts["verb"], facts["state"], facts["code"]) == ("run", "FAILED", 42)
    refused = subprocess.run(
        launch("run", "--executor", "slurm", "--script", "train.py"), capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "executor is 'slurm'; `run` must run here." in refused.stderr
