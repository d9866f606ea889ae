"""`launch stages` on this machine: a model is trained, asked, and handed on; and a stage that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny import QWEN3, TOKENIZER, losses, write_conversations

pytestmark = pytest.mark.ranks
ROOT = Path(__file__).resolve().parents[2]


def launch(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state")}
    command = [sys.executable, "-m", "launch", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_train_evaluate_and_export(tmp_path: Path) -> None:
    """The first attempt of the training fails: the others are cancelled. Resumed, all end well, in their order."""
    write_conversations(tmp_path / "train.jsonl", 8)
    write_conversations(tmp_path / "held_out.jsonl", 3, seed=1)
    settings = {
        "model_config": QWEN3, "tokenizer_name": TOKENIZER, "train_file": "train.jsonl", "bf16": False,
        "per_device_train_batch_size": 2, "max_steps": 2, "save_steps": 1, "report_to": "none",
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    stages = {
        "launch": {"executor": "local", "cpus_per_task": 1, "chain": "none"},
        "stages": {
            "train": {"config": "run.yaml", "launch": {"env": {"SFT_FAULT": "kill@0:2"}}},
            "evaluate": {"command": "evaluate", "args": ["{train.output_dir}", "held_out.jsonl", "--no-generation"]},
            "export": {"command": "export", "args": ["{train.output_dir}", "--output", "{export.output_dir}/model"]},
        },
    }
    (tmp_path / "stages.yaml").write_text(yaml.safe_dump(stages, sort_keys=False))
    done = launch(tmp_path, "stages", "stages.yaml", "--name", "s", "--skip-audit", "--wait", "--json")
    first, *ends = (json.loads(line) for line in done.stdout.splitlines())
    assert [run["stage"] for run in first["runs"]] == ["train", "evaluate", "export"], done.stderr
    assert [(end["state"], end["code"]) for end in ends] == [("FAILED", 11), ("CANCELLED", 143), ("CANCELLED", 143)]
    assert done.returncode == 11
    assert ends[1]["reason"] == "s-train, which it was to follow, is not complete"
    done = launch(tmp_path, "resume", "s", "--wait")
    assert done.returncode == 0, done.stdout + done.stderr
    train, evaluate, export = (tmp_path / "runs" / "s" / name for name in ("train", "evaluate", "export"))
    assert len(losses(train)) == 2
    assert json.loads((train / "evaluation" / "held_out.json").read_text())["num_rows"] == 3
    assert (export / "model" / "model.safetensors").is_file()
    # A run is complete once its last node has said so.
    nodes = [json.loads((path / "node-0.json").read_text()) for path in (train / "exit" / "1", evaluate / "exit" / "0")]
    began = [json.loads((path / "exit" / "0" / "attempt.json").read_text())["began_at"] for path in (evaluate, export)]
    assert nodes[0]["ended_at"] <= began[0] <= nodes[1]["ended_at"] <= began[1]
