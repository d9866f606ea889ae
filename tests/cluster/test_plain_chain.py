"""slurm/chain.sbatch on a real Slurm, without the launcher: warned of the time limit it saves and goes back into the
queue; put back by `scontrol requeue` it goes on too, to the end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from lab_client import Lab
from lab_runs import SETTINGS, LabRun, wait_for
from tiny import write_conversations

from launch.spec import ROOT

NUM_STEPS = 30


@pytest.fixture
def jobs(lab: Lab) -> Iterator[list[str]]:
    """Ids, of which none is left."""
    found: list[str] = []
    yield found
    for job_id in found:
        lab.exec(["scancel", job_id])


def is_gone(lab: Lab, job_id: str) -> bool:
    return not lab.exec(["squeue", "-h", "-j", job_id]).stdout.strip()


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_it_goes_on_after_a_time_limit_and_a_requeue(lab: Lab, jobs: list[str], tmp_path: Path) -> None:
    write_conversations(tmp_path / "train.jsonl", 32)
    settings = {**SETTINGS, "train_file": str(tmp_path / "train.jsonl"), "max_steps": NUM_STEPS}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    run = LabRun(lab, tmp_path / "run")
    slow = ",".join(f"always:slow@0:{step}" for step in range(6, NUM_STEPS))
    environment = {"PYTHON": sys.executable, "OUTPUT_DIR": str(run.path), "OMP_NUM_THREADS": "1", "SFT_FAULT": slow}
    options = ["--parsable", f"--output={tmp_path}/job.log", "--time=5"]
    words = ["sbatch", *options, "slurm/chain.sbatch", str(tmp_path / "run.yaml")]
    done = lab.exec(words, cwd=ROOT, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    job_id = done.stdout.strip()
    jobs.append(job_id)
    run.wait_for_step(5)
    # What Slurm sends before the time limit, and to whom.
    lab.exec(["scancel", "--batch", "--signal=USR1", job_id])
    codes = run.path / "codes"
    wait_for(lambda: len(list(codes.glob("0.*"))) == 2)
    assert {path.read_text() for path in codes.glob("0.*")} == {"10\n"}
    stopped_at = run.saved_steps()[-1]
    wait_for(lambda: run.saved_steps()[-1] > stopped_at, 120)
    lab.exec(["scontrol", "requeue", job_id])
    wait_for(lambda: is_gone(lab, job_id), 180)
    log = (tmp_path / "job.log").read_text()
    assert f"attempt 0 ended with code 10; it goes on from {run.path}/checkpoints/step-{stopped_at:08d}" in log
    assert "attempt 2 is done" in log, log[-3000:]
    assert len(run.losses) == NUM_STEPS  # each step once
    assert (run.path / "model.safetensors").is_file()
    assert not lab.node_processes(str(run.path))
