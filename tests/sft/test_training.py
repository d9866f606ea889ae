"""Whole runs in one process: what is learned, written, resumed and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import QWEN3, losses, tiny_args, write_conversations

from sft.config import Args
from sft.dataset import num_times
from sft.errors import CheckpointError, DataError, NonFiniteError
from sft.lora_args import LoraArgs
from sft.optimizer import learning_rate_at
from sft.train import run_training, train_with
from strict_settings import SettingsError


@pytest.fixture
def args(tmp_path: Path) -> Args:
    write_conversations(tmp_path / "eval.jsonl", 3, seed=9)
    return tiny_args(write_conversations(tmp_path / "train.jsonl", 12), tmp_path / "out", max_steps=8)


def records(args: Args, kind: str) -> list[dict[str, Any]]:
    found = json.loads(Path(args.output_dir, "training_log.json").read_text())
    return [record for record in found if record["type"] == kind]


def test_a_run_learns_and_writes_everything(args: Args) -> None:
    train_with(replace(args, report_to="tensorboard", save_steps=4, max_steps=20))
    found = losses(Path(args.output_dir))
    assert found[-1] < found[0] - 0.5
    first = records(args, "train")[0]
    names = "step epoch loss learning_rate grad_norm num_tokens num_trained_tokens".split()
    rates = "tokens_per_s trained_tokens_per_s padding tflops_per_s mfu mfu_palm".split()
    phases = "data_s forward_s backward_s optimizer_s communication_s checkpoint_s".split()
    assert list(first) == ["type", *names, *rates, *phases, "elapsed_s"]
    assert records(args, "summary")[0]["last_loss"] == found[-1]
    written = {path.name for path in Path(args.output_dir).iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= written
    assert {"chat_template.jinja", "arguments.json", "training_log.json", "tensorboard", "checkpoints"} <= written
    assert json.loads(Path(args.output_dir, "arguments.json").read_text())["max_steps"] == 20
    kept = sorted(path.name for path in Path(args.output_dir, "checkpoints").iterdir())
    assert kept == ["LATEST", "step-00000016", "step-00000020"]
    assert Path(args.output_dir, "checkpoints", "LATEST").read_text() == "step-00000020\n"


def test_packing_truncation_sources_adapters_and_skipped_rows_go_together(
    args: Args, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path(str(args.train_file)).open("a") as file:
        file.write('{"messages": []}\n{"prompt": "x"\n')
    sources = {str(args.train_file): 1.0, str(tmp_path / "eval.jsonl"): 2.5}
    more: dict[str, Any] = {"packing": True, "max_length": 64, "truncation": "left", "on_bad_row": "skip"}
    lora = LoraArgs(r=4, merge=True)
    train_with(replace(args, train_file=None, train_files=sources, lora=lora, max_steps=3, **more))
    out = capsys.readouterr().out
    assert f"skipped:\n{args.train_file}:13: `messages` is an empty list" in out
    assert f"{args.train_file}:14:" in out
    assert "truncated, 2 bad rows" in out
    num_seen = 12 + 2 * 3 + sum(num_times(range(3), 2.5) > 2)
    assert f"2 packed rows of 64 tokens × 1 accumulation = 2 per step; {num_seen} documents" in out
    found = [record["loss"] for record in records(args, "train")]
    assert len(found) == 3
    assert all(0 < loss < 10 for loss in found)
    assert (Path(args.output_dir) / "adapter_model.safetensors").is_file()
    assert (Path(args.output_dir) / "merged" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_every": 2},
        {"per_device_train_batch_size": 1},
    ],
)
def test_memory_settings_do_not_change_the_loss(args: Args, settings: dict[str, Any]) -> None:
    train_with(replace(args, train_batch_size=2))
    expected = losses(Path(args.output_dir))
    other = replace(args, train_batch_size=2, output_dir=f"{args.output_dir}2", **settings)
    train_with(other)
    assert losses(Path(other.output_dir)) == pytest.approx(expected, rel=1e-5)


def test_evaluation_does_not_depend_on_the_batch(args: Args, tmp_path: Path) -> None:
    found = []
    for size in (1, 2, 3):
        own = replace(args, eval_file=str(tmp_path / "eval.jsonl"), max_steps=2, output_dir=f"{args.output_dir}{size}")
        train_with(replace(own, per_device_eval_batch_size=size))
        found.append(records(own, "eval")[-1]["eval_loss"])
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)


def test_early_stopping_writes_the_best_model(args: Args, tmp_path: Path) -> None:
    own = replace(args, eval_file=str(tmp_path / "eval.jsonl"), max_steps=200, eval_steps=4, learning_rate=2e-2)
    train_with(replace(own, early_stopping_patience=2, load_best_model_at_end=True))
    found = [record["eval_loss"] for record in records(own, "eval")]
    assert len(found) < 50
    assert found[-2:] == [loss for loss in found[-2:] if loss >= min(found)]
    # A run of one all but standing step, from the written model, evaluates to the best loss.
    again = replace(
        own, model_config=None, model_name_or_path=own.output_dir, max_steps=1, output_dir=f"{own.output_dir}2"
    )
    train_with(replace(again, learning_rate=1e-12, eval_steps=None))
    assert records(again, "eval")[0]["eval_loss"] == pytest.approx(min(found), rel=1e-5)


def test_a_loss_that_is_no_number_ends_the_run_without_a_model(args: Args, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**QWEN3, "vocab_size": 512}))
    model.save_pretrained(tmp_path / "poisoned")
    weights = load_file(tmp_path / "poisoned" / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, tmp_path / "poisoned" / "model.safetensors", metadata={"format": "pt"})
    own = replace(args, model_config=None, model_name_or_path=str(tmp_path / "poisoned"), save_steps=1)
    with pytest.raises(NonFiniteError, match="loss is nan; it must be finite") as error:
        train_with(own)
    assert error.value.exit_code == 15
    assert not Path(args.output_dir, "model.safetensors").exists()
    assert not Path(args.output_dir, "checkpoints").exists()


def test_resuming_with_other_settings_is_refused(args: Args) -> None:
    train_with(replace(args, save_steps=4))
    with pytest.raises(SettingsError, match=r"learning_rate is 0\.5; it must be 0\.01, as in "):
        train_with(replace(args, learning_rate=0.5))
    train_with(replace(args, learning_rate=0.5, resume_from_checkpoint="none", max_steps=1))
    with pytest.raises(CheckpointError, match=r"must hold a MANIFEST\.json"):
        train_with(replace(args, resume_from_checkpoint="nowhere"))


def test_rows_that_are_too_long_are_counted_and_refused_when_nothing_is_left(args: Args) -> None:
    with pytest.raises(DataError, match="no row has a trained token within max_length 2"):
        train_with(replace(args, max_length=2))


def test_from_python(args: Args, tmp_path: Path) -> None:
    values = {name: value for name, value in args.to_json().items() if value not in (None, {}) and name != "lora"}
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    assert run_training(tmp_path / "run.yaml", max_steps=1, learning_rate=1e-3) == Path(args.output_dir)
    assert records(args, "train")[0]["learning_rate"] == 1e-3


def test_a_tokenizer_larger_than_the_model_is_refused_with_lora(args: Args) -> None:
    own = replace(args, model_config={**QWEN3, "vocab_size": 300}, lora={"enabled": True})  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="the tokenizer's length is 512; it must have at most 300"):
        train_with(own)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("cosine", [0.5, 1.0, 1.0, 0.5]), ("linear", [0.5, 1.0, 1.0, 0.5]), ("constant", [0.5, 1, 1, 1])],
)
def test_the_learning_rate_rises_and_falls(kind: Any, expected: list[float]) -> None:
    args = Args(learning_rate=1.0, warmup_steps=2, lr_scheduler_type=kind)
    rates = [learning_rate_at(step, 10, args) for step in (1, 2, 3, 7)]
    assert rates == pytest.approx(expected)
    assert learning_rate_at(1, 100, Args(learning_rate=1.0, warmup_ratio=0.1)) == pytest.approx(0.1)


def test_large_models_are_written_in_shards_that_load(tmp_path: Path) -> None:
    from functools import partial

    from transformers import AutoConfig, AutoModelForCausalLM

    from sft.storage import TensorEntry, write_tensors

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**{**QWEN3, "vocab_size": 512, "num_hidden_layers": 4})
    )
    model.config.save_pretrained(tmp_path)
    entries = [TensorEntry(name, p.nbytes, partial(torch.Tensor.detach, p)) for name, p in model.named_parameters()]
    write_tensors(entries, tmp_path, "model", is_main=True, max_shard_bytes=70_000)
    assert len(list(tmp_path.glob("model-0000*-of-0000*.safetensors"))) >= 3
    assert not (tmp_path / "model.safetensors").exists()
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys"))
    assert all(torch.equal(p, dict(loaded.named_parameters())[name]) for name, p in model.named_parameters())


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    from sft.storage import write_json

    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
