"""Ranks that are forked from one process, which has imported for them, train as those that import for themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import QWEN3, TOKENIZER, losses, write_conversations

from launch.spec import ROOT

pytestmark = pytest.mark.ranks


def trained(folder: Path, name: str, settings: dict[str, Any], *words: str) -> tuple[list[float], bytes, str]:
    """(the losses of the steps, the model's file, the log of the node)."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    for command in (["submit", "--executor", "local", "--name", name, "--config", "run.yaml", *words], ["wait", name]):
        done = subprocess.run(
            [sys.executable, "-m", "launch", *command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    run = folder / "runs" / name
    return losses(run), (run / "model.safetensors").read_bytes(), (run / "logs/0/node-0.log").read_text()


@pytest.mark.parametrize(
    "words",
    [[], ["--launcher", "deepspeed", "--zero", "2"], ["--launcher", "direct"]],
    ids=["torchrun", "deepspeed", "direct"],
)
def test_losses_and_weights_are_equal_bit_by_bit(tmp_path: Path, words: list[str]) -> None:
    write_conversations(tmp_path / "train.jsonl", 24)
    settings = {"model_config": QWEN3, "tokenizer_name": TOKENIZER, "train_file": "train.jsonl", "bf16": False}
    settings |= {"max_steps": 4, "per_device_train_batch_size": 2, "save_steps": 2, "logging_steps": 1}
    words = ["--procs-per-node", "2", "--cpus-per-task", "2", *words]
    forked, weights, log = trained(tmp_path, "forked", settings, *words)
    settings["launch"] = {"import_once": False}
    alone, own_weights, own_log = trained(tmp_path, "alone", settings, *words)
    assert "imported once for the ranks of this node" in log
    assert "imports for itself" not in log
    assert "imported once" not in own_log
    assert len(forked) == 4
    assert forked == alone
    assert weights == own_weights
