"""What is refused before anything is submitted: one message with file, line, key, value, rule and remedy; code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import TOKENIZER, write_conversations

ROOT = Path(__file__).resolve().parents[2]
GOOD = f"""\
model_config: {{model_type: qwen3}}
tokenizer_name: {TOKENIZER}
train_file: train.jsonl
"""

BAD = [
    # what is wrong, lines after the good ones, options, what the message holds
    ("unknown key", "learing_rate: 1e-5", [], ["run.yaml:4: ", "'learing_rate'", "Did you mean 'learning_rate'?"]),
    ("unknown nested key", "lora: {rank: 8}", [], ["run.yaml:4: ", "'lora.rank'", "Known: alpha"]),
    ("unknown nested key, akin", "lora: {rank: 8}", [], ["run.yaml:4: ", "Did you mean 'r'?"]),
    (
        "word for a mapping",
        "lora: yes",
        [],
        ["run.yaml:4: lora is 'yes'; it must be a mapping", "lora: {enabled: true}"],
    ),
    ("overridden", "launch: {nodes: 010}", ["--nodes", "2"], ["run.yaml:4: nodes is '010'; it must be a whole number"]),
    ("tag", "seed: !!str 7", [], ["run.yaml:4: the tag is '!!str'; it must not be given."]),
    ("wrong type", "seed: many", [], ["run.yaml:4: seed is 'many'; it must be a whole number", "Write for example"]),
    ("leading zero", "launch: {nodes: 010}", [], ["run.yaml:4: nodes is '010'; it must be a whole number"]),
    ("unknown launch key", "launch: {node: 2}", [], ["run.yaml:4: ", "'node'", "Did you mean 'nodes'?"]),
    ("duplicate key", "seed: 1\nseed: 2", [], ["run.yaml:5: seed is given twice", "run.yaml:4 too"]),
    ("learning rate NaN", "learning_rate: .nan", [], ["run.yaml:4: learning_rate is nan; it must be a finite number"]),
    ("missing file", "eval_file: gone.jsonl", [], ["run.yaml:4: eval_file is 'gone.jsonl'; it must be there"]),
    (
        "batch arithmetic",
        "train_batch_size: 10\nper_device_train_batch_size: 2",
        ["--nodes", "2", "--procs-per-node", "2"],
        ["run.yaml:4: train_batch_size is 10; it must be a multiple of 8 = 4 processes × 2", "Take 8 or 16."],
    ),
    ("unwritable run directory", "", ["--runs-dir", "/proc/runs"], ["/proc/runs", "must"]),
    ("missing settings file", "", ["--config", "none.yaml"], ["none.yaml", "must"]),
    ("auto in DeepSpeed's file", "deepspeed: ds.json", [], ["ds.json", "train_batch_size", "left out"]),
]


@pytest.mark.parametrize(("lines", "options", "expected"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_refused(tmp_path: Path, lines: str, options: list[str], expected: list[str]) -> None:
    (tmp_path / "run.yaml").write_text(f"{GOOD}{lines}\n")
    (tmp_path / "ds.json").write_text('{"train_batch_size": "auto", "zero_optimization": {"stage": 2}}')
    write_conversations(tmp_path / "train.jsonl", 2)
    config = [] if "--config" in options else ["--config", "run.yaml"]
    command = [sys.executable, "-m", "launch", "submit", "--executor", "local", *config, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines().count("") == 0
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
    for text in expected:
        assert text in done.stderr
    assert not (tmp_path / "runs").exists()
