"""`launch stages` on a real Slurm: one stage is requeued and those behind it wait for that; one fails, and Slurm takes
out of the queue what follows it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab_client import Lab

from launch.spec import ROOT

FLAKY = """\
import os, pathlib, signal
first = pathlib.Path(os.environ["CLEANSFT_RUN_DIR"], "first")
if not first.exists():
    first.touch()
    os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path(os.environ["CLEANSFT_RUN_DIR"], "model").write_text("a model")
"""
READER = "import pathlib, sys; print(pathlib.Path(sys.argv[1], 'model').read_text())"


@pytest.fixture
def launch(lab: Lab, tmp_path: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(tmp_path / "state")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return lab.exec([sys.executable, "-m", "launch", *words], cwd=tmp_path, env=environment, timeout=200)

    yield run
    run("cancel", "s")


def test_stages_wait_for_a_requeue_and_go_with_a_failure(
    launch: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    for name, text in (("flaky", FLAKY), ("reader", READER), ("broken", "raise SystemExit(42)")):
        (tmp_path / f"{name}.py").write_text(text)
    stages: dict[str, Any] = {
        "train": {"script": "flaky.py", "launch": {"chain": "requeue"}},
        "look": {"script": "reader.py", "args": ["{train.output_dir}"]},
        "broken": {"script": "broken.py", "after": []},
        "behind": {"script": "reader.py", "args": ["{broken.output_dir}"]},
    }
    text = yaml.safe_dump({"launch": {"executor": "slurm"}, "stages": stages}, sort_keys=False)
    (tmp_path / "stages.yaml").write_text(text)
    done = launch("stages", "stages.yaml", "--name", "s", "--wait", "--json")
    first, *ends = (json.loads(line) for line in done.stdout.splitlines())
    assert done.returncode == 42, done.stdout + done.stderr
    assert [run["after"] for run in first["runs"]] == [[], ["train"], [], ["broken"]]
    assert [end["state"] for end in ends] == ["COMPLETED", "COMPLETED", "FAILED", "CANCELLED"]
    assert [len(end["attempts"]) for end in ends] == [2, 1, 1, 0]
    assert ends[3]["reason"] == "s-broken, which it was to follow, is not complete"
    assert "a model" in launch("logs", "s-look").stdout
    trained = tmp_path / "runs" / "s" / "train" / "model"
    assert trained.stat().st_mtime <= ends[1]["attempts"][0]["began_at"]
