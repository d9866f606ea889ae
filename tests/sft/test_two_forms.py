"""The two forms in which people bring their settings run unchanged, end to end: a plain YAML file, and short flags."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import losses, tiny_args, write_conversations
from transformers import HfArgumentParser

from sft.__main__ import main
from sft.config import Args
from sft.dataset import ConversationDataset
from sft.history import History
from sft.train import run_training, train_with

COMPILED = pytest.param(
    True,
    id="compile",
    marks=[
        pytest.mark.soak,
        pytest.mark.skipif(
            shutil.which("g++") is None, reason="torch.compile needs g++ for the CPU, and there is none"
        ),
    ],
)
PLAIN = """\
model_name: base
output_dir: outputs
per_device_train_batch_size: 2
learning_rate: 1.0e-3
num_train_epochs: 1
max_seq_length: 128
lora:
  enabled: true
  r: 4
  alpha: 8
  dropout: 0.05
train_file: data/train.jsonl
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with data, a small model and `training/config.yaml`; the working directory."""
    (tmp_path / "data").mkdir()
    data = write_conversations(tmp_path / "data" / "train.jsonl", 6)
    train_with(tiny_args(data, tmp_path / "base", max_steps=1))
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "config.yaml").write_text(PLAIN)
    (tmp_path / "template.jinja").write_bytes((tmp_path / "base" / "chat_template.jinja").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_plain_file_runs_as_a_command_and_as_a_function(project: Path) -> None:
    assert main(["train", "--config", "training/config.yaml"]) == 0
    found = losses(project / "outputs")
    assert len(found) == 3  # 6 rows, 2 at a time
    assert (project / "outputs" / "adapter_model.safetensors").is_file()
    assert run_training("training/config.yaml", output_dir="again") == Path("again")
    assert losses(project / "again") == found
    used = json.loads((project / "outputs" / "arguments.json").read_text())
    assert (used["model_name_or_path"], used["max_length"], used["lora"]["alpha"]) == ("base", 128, 8)


@pytest.mark.filterwarnings("default")  # torch's compiler warns of its own doings
@pytest.mark.parametrize("compiled", [pytest.param(False, id="plain"), COMPILED])
def test_the_short_flags_run(project: Path, compiled: bool) -> None:
    flags: dict[str, Any] = {
        "model_name": "base", "dataset": "data/train.jsonl", "max_length": 128, "per_device_batch_size": 2,
        "learning_rate": 1e-3, "accumulation_steps": 2, "epochs": 2, "warmup_ratio": 0.1, "max_grad": 0.5,
        "output_dir": "flags", "path_chat_template": "template.jinja",
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert main(["train", *words, *(["--compile"] if compiled else [])]) == 0
    assert len(losses(project / "flags")) == 4  # 3 batches of 2, in steps of 2, twice
    used = json.loads((project / "flags" / "arguments.json").read_text())
    assert (used["max_grad_norm"], used["gradient_accumulation_steps"], used["compile"]) == (0.5, 2, compiled)


def test_history_has_loss_learning_rate_and_gradient_norm_of_each_step(project: Path) -> None:
    run_training("training/config.yaml")
    records = json.loads((project / "outputs" / "training_log.json").read_text())
    steps = [record for record in records if record["type"] == "train"]
    assert [record["step"] for record in steps] == [1, 2, 3]
    assert all({"loss", "learning_rate", "grad_norm"} <= record.keys() for record in steps)


def test_the_public_classes_are_there(project: Path) -> None:
    (args,) = HfArgumentParser(Args).parse_args_into_dataclasses(["--train_file", "data/train.jsonl"])
    assert json.loads(json.dumps(args.to_json()))["train_file"] == "data/train.jsonl"
    assert ConversationDataset.__doc__
    assert History.__doc__
