"""The whole road, on a real Slurm cluster: submit → submitit → srun → torchrun or DeepSpeed → a model that loads.

Every way of sharding trains the same model on the same conversations on two nodes. With CLEANSFT_TEST_DATA naming a
folder that holds `conversations/gsm8k_train.jsonl` and `tokenizers/dolma2`, these are used; otherwise generated
questions and the bundled tokenizer.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lab_client import Lab
from tiny import QWEN3, TOKENIZER, WORDS, losses

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 20
ENGINES = {
    "ddp": [],
    "fsdp2": ["--fsdp"],
    "zero1": ["--zero", "1"],
    "zero2": ["--zero", "2"],
    "zero3": ["--zero", "3"],
    "deepspeed-zero2": ["--launcher", "deepspeed", "--zero", "2"],
}
LORA = {"enabled": True, "r": 8, "alpha": 16, "merge": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("training")
    data, tokenizer = _data(path)
    settings: dict[str, Any] = {
        "model_config": {**QWEN3, "hidden_size": 64, "head_dim": 16, "max_position_embeddings": 512},
        "tokenizer_name": tokenizer,
        "chat_template_path": "chatml",
        "train_file": str(data),
        "columns": {"prompt": "question", "response": "answer"},
        "max_train_samples": 200,
        "max_length": 256,
        "max_steps": NUM_STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "bf16": False,
        "save_steps": 0,
    }
    (path / "full.yaml").write_text(yaml.safe_dump(settings))
    (path / "lora.yaml").write_text(yaml.safe_dump({**settings, "learning_rate": 1e-2, "lora": LORA}))
    return path


def _data(path: Path) -> tuple[Path, str]:
    given = os.environ.get("CLEANSFT_TEST_DATA")
    if given:
        return Path(given, "conversations", "gsm8k_train.jsonl").resolve(), str(
            Path(given, "tokenizers", "dolma2").resolve()
        )
    rng = random.Random(0)
    rows = [{"question": _words(rng, 30), "answer": _words(rng, 40)} for _ in range(200)]
    file = path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file, TOKENIZER


def _words(rng: random.Random, most: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def _train(lab: Lab, folder: Path, name: str, *options: str, config: str = "full.yaml") -> Path:
    command = [sys.executable, "-m", "launch", "submit", "--nodes", "2", "--wait", "--name", name, *options]
    command += ["--config", str(folder / config), "--runs-dir", str(folder / "runs")]
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    done = lab.exec(command, cwd=ROOT, env=environment, timeout=400)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert "COMPLETED" in done.stdout
    return folder / "runs" / name


@pytest.fixture(scope="module")
def runs(lab: Lab, folder: Path) -> dict[str, Path]:
    return {name: _train(lab, folder, name, *options) for name, options in ENGINES.items()}


def test_every_engine_has_the_same_losses(runs: dict[str, Path]) -> None:
    expected = losses(runs["ddp"])
    assert len(expected) == NUM_STEPS
    assert expected[-1] < expected[0]
    for name, run_dir in runs.items():
        assert losses(run_dir) == pytest.approx(expected, rel=1e-4), name


def test_every_engine_writes_a_model_that_loads_and_is_the_same(runs: dict[str, Path]) -> None:
    from transformers import AutoModelForCausalLM

    input_ids = torch.arange(10, 42).view(2, 16)
    expected = None
    for name, run_dir in runs.items():
        model, info = AutoModelForCausalLM.from_pretrained(run_dir, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), name
        with torch.no_grad():
            logits = model(input_ids).logits
        expected = logits if expected is None else expected
        assert (logits - expected).abs().max() < 1e-4, name


def test_the_run_directory_has_everything(runs: dict[str, Path]) -> None:
    run_dir = runs["ddp"]
    written = {path.name for path in run_dir.iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= written
    assert {"chat_template.jinja", "arguments.json", "training_log.json", "plan.txt", "submit.sh"} <= written
    template = (ROOT / "sft" / "templates" / "chatml.jinja").read_bytes()
    assert (run_dir / "chat_template.jinja").read_bytes() == template
    assert sorted(path.name for path in (run_dir / "exit" / "0").glob("rank-*.json")) == ["rank-0.json", "rank-1.json"]


def test_tensorboard_shows_the_scalars_of_the_log(runs: dict[str, Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(runs["zero3"] / "tensorboard")).Reload()
    records = [r for r in json.loads((runs["zero3"] / "training_log.json").read_text()) if r["type"] == "train"]
    for name in set(records[0]) - {"type", "step"}:
        shown = {event.step: event.value for event in events.Scalars(f"train/{name}")}
        assert shown == pytest.approx({record["step"]: record[name] for record in records}, rel=1e-6)


@pytest.mark.parametrize("engine", ["ddp", "zero3"])
def test_adapters_load_and_merged_weights_give_their_logits(lab: Lab, folder: Path, engine: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run_dir = _train(lab, folder, f"lora-{engine}", *ENGINES[engine], config="lora.yaml")
    base = AutoModelForCausalLM.from_pretrained(run_dir / "base_model")
    adapted = PeftModel.from_pretrained(base, run_dir).eval()
    assert all(p.abs().sum() > 0 for name, p in adapted.named_parameters() if "lora_B" in name)
    merged, info = AutoModelForCausalLM.from_pretrained(run_dir / "merged", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    input_ids = torch.arange(10, 42).view(2, 16)
    with torch.no_grad():
        assert (adapted(input_ids).logits - merged(input_ids).logits).abs().max() < 1e-4
