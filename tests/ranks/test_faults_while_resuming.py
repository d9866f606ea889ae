"""Fault 51: death while a checkpoint is loaded."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from faults.recording import Shows
from processes_of_runs import script_of
from test_faults_of_runs import Runs, wait_for

pytestmark = pytest.mark.ranks


@pytest.mark.soak
def test_death_while_a_checkpoint_is_loaded(tmp_path: Path, shows: Shows) -> None:
    """Attempt 0 dies in step 7; attempt 1 before its first step, twice as near to its end as its restarts allow."""
    runs = Runs(tmp_path)
    few = ["--", "--max_steps", "20", "--logging_steps", "1"]
    runs.start("straight", "", *few)
    straight = runs.end("straight")
    # `none` is for the first attempt: the others go on from what this run has saved.
    first = [*few, "--resume_from_checkpoint", "none"]
    runs.start("x", "kill@1:7", *first, launch="nodes: 2, chain: requeue, max_restarts: 2")
    run_dir = runs.run_dir("x")
    wait_for((run_dir / "exit/1/rank-1.json").exists, 240)
    wrapper = json.loads((run_dir / "exit/1/rank-1.json").read_text())["pid"]
    script = script_of(wrapper)
    assert "resuming" not in log_of(run_dir), "it had loaded its checkpoint before it could be killed"
    os.kill(script, signal.SIGKILL)
    ended = runs.end("x")
    codes = [json.loads((run_dir / f"exit/{attempt}/end.json").read_text())["own_code"] for attempt in (0, 1, 2)]
    assert codes == [11, 11, 0]
    assert (
        json.loads((run_dir / "exit/1/attempt.json").read_text())["step"]
        == json.loads((run_dir / "exit/2/attempt.json").read_text())["step"]
    )
    for name in ("model.safetensors",):
        assert (run_dir / name).read_bytes() == (straight.folder / name).read_bytes()
    assert losses(run_dir) == losses(straight.folder)
    decided = [line for line in (run_dir / "logs/local.log").read_text().splitlines() if line.startswith("attempt 1 ")]
    shows(51, code=ended.code, says=decided[0], note=f"attempts ended with {codes}")


def log_of(run_dir: Path) -> str:
    path = run_dir / "logs/1/rank-0.log"
    return path.read_text() if path.exists() else ""


def losses(folder: Path) -> list[float]:
    records = json.loads((folder / "training_log.json").read_text())
    return [record["loss"] for record in records if record["type"] == "train"]
