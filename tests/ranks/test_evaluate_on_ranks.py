"""Ranks share the rows of an evaluation: the same answers and loss as one process, by torchrun and by the launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_args, write_conversations

from sft.config import ROOT
from sft.train import train_with

pytestmark = pytest.mark.ranks
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("shared")
    write_conversations(found / "train.jsonl", 12)
    write_conversations(found / "held_out.jsonl", 13, seed=4)
    train_with(tiny_args(found / "train.jsonl", found / "model", max_steps=6))
    return found


def evaluated(folder: Path, command: list[str], output: str, *words: str) -> dict[str, Any]:
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "XDG_STATE_HOME": str(folder / "state"),
    }  # fmt: skip
    own = ["model", "held_out.jsonl", "--max-new-tokens", "10", "--output", output, *words]
    done = subprocess.run(
        [*command, *own], cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    rows = [json.loads(line) for line in (folder / output / "held_out.jsonl").read_text().splitlines()]
    return {**json.loads((folder / output / "held_out.json").read_text()), "rows": rows, "said": done.stdout}


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    return evaluated(folder, [sys.executable, "-m", "sft", "evaluate"], "alone")


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.soak), 3, pytest.param(8, marks=pytest.mark.soak)])
def test_ranks_find_what_one_process_finds(folder: Path, alone: dict[str, Any], size: int) -> None:
    command = ["torchrun", "--nproc-per-node", "2", str(ROOT / "sft" / "evaluate.py")]
    words = (f"--per_device_eval_batch_size={size}", "--against", "alone/held_out.jsonl")
    shared = evaluated(folder, command, f"shared-{size}", *words)
    assert abs(shared["figures"]["loss"]["value"] - alone["figures"]["loss"]["value"]) < 1e-6
    assert [row["generation"] for row in shared["rows"]] == [row["generation"] for row in alone["rows"]]
    assert [row["row"] for row in shared["rows"]] == list(range(13))
    assert "model less alone/held_out.jsonl, on the same rows" in shared["said"]


def test_the_launcher_runs_it_on_two_nodes(folder: Path) -> None:
    launch = [sys.executable, "-m", "launch", "submit", "--nodes", "2", "--wait", "--name", "evaluation"]
    launch += ["--script", str(ROOT / "sft" / "evaluate.py"), "--cpus-per-task", "1", "--"]
    found = evaluated(folder, launch, "launched", "--no-loss")
    assert len(found["rows"]) == 13


def test_an_error_of_one_rank_ends_all(folder: Path) -> None:
    (folder / "bad.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a"}\n')
    words = [str(BIN / "torchrun"), "--nproc-per-node", "2", str(ROOT / "sft" / "evaluate.py"), "model", "bad.jsonl"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode != 0
    assert "bad.jsonl:2" in done.stderr
