"""`param_dtype: bfloat16`: what computes is bfloat16, what is trained, saved and exported is float32."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from spawned import spawn
from tiny import losses, tiny_args, write_conversations

from sft.arguments import load_args
from sft.batching import Batch, collate_flat
from sft.config import Args
from sft.documents import Document
from sft.engine import TorchEngine
from sft.lora_args import LoraArgs
from sft.model import build_model
from sft.model_check import prepare_model
from sft.optimizer import build_optimizer
from sft.tokenizer import build_tokenizer
from sft.train import train_with
from sft.world import World
from strict_settings import SettingsError

SOLO = World(0, 0, 1, torch.device("cpu"))
BF16: dict[str, Any] = {"bf16": True, "param_dtype": "bfloat16"}


def engine_of(args: Args, world: World = SOLO) -> TorchEngine:
    engine = TorchEngine(
        build_model(args, build_tokenizer(args)).model,
        lambda model: build_optimizer(model, args),
        world,
        bf16=bool(args.bf16),
        max_grad_norm=1e9,
        fsdp=False,
        bf16_parameters=args.param_dtype == "bfloat16",
    )
    assert prepare_model(engine, args, world) == "flat"
    engine.model.train()
    return engine


def batches() -> list[Batch]:
    made = torch.randint(3, 400, (4, 17), generator=torch.Generator().manual_seed(0)).tolist()
    documents = [Document(ids, [place > 5 for place in range(17)]) for ids in made]
    return [collate_flat(documents[:2], 0), collate_flat(documents[2:], 0)]


def gradients(engine: TorchEngine, own: list[Batch]) -> dict[str, torch.Tensor]:
    total = sum(batch.total_weight for batch in batches())
    for number, batch in enumerate(own, 1):
        engine.accumulate(batch, total, is_last=number == len(own))
    return {name: parameter.grad for name, parameter in engine._parameters.items() if parameter.grad is not None}


def test_gradients_are_float32_and_near_those_of_float32(tmp_path: Path) -> None:
    args = tiny_args(tmp_path / "none", tmp_path)
    expected = gradients(engine_of(args), batches())
    engine = engine_of(replace(args, **BF16))
    found = gradients(engine, batches())
    assert {parameter.dtype for parameter in engine.model.parameters()} == {torch.bfloat16}
    assert all(parameter.grad is None for parameter in engine.model.parameters())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - gradient).norm() < 0.02 * gradient.norm(), name


def _two_ranks(world: World, folder: Path, settings: Mapping[str, Any]) -> None:
    from sft import master_weights

    master_weights.BUCKET_BYTES = 10_000
    engine = engine_of(tiny_args(folder / "none", folder, **BF16, **settings), replace(world, sequence=SOLO.sequence))
    assert world.size == 2
    found = gradients(engine, [batches()[world.rank]])
    expected = gradients(engine_of(tiny_args(folder / "none", folder, **BF16, **settings)), batches())
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
        assert gradient.abs().max() > 0, name


@pytest.mark.ranks
def test_two_ranks_add_up_what_one_rank_accumulates_bit_by_bit(tmp_path: Path) -> None:
    spawn(_two_ranks, 2, tmp_path, {"gradient_checkpointing": True})


@pytest.mark.parametrize("lora", [None, LoraArgs(r=4, dropout=0.1)], ids=["full", "lora"])
def test_a_resumed_run_is_the_uninterrupted_one_and_masters_are_exported(tmp_path: Path, lora: LoraArgs | None) -> None:
    train_file = write_conversations(tmp_path / "train.jsonl", 12)
    settings = BF16 if lora is None else {**BF16, "lora": lora}
    args = tiny_args(
        train_file, tmp_path / "whole", max_steps=6, save_steps=3, save_dtype="float32", learning_rate=1e-4, **settings
    )
    train_with(args)
    other = tmp_path / "resumed"
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "step-00000003", other / "checkpoints" / "step-00000003")
    train_with(replace(args, output_dir=str(other)))
    assert losses(other)[-3:] == losses(tmp_path / "whole")[-3:]
    name = "model.safetensors" if lora is None else "adapter_model.safetensors"
    expected, found = load_file(tmp_path / "whole" / name), load_file(other / name)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    (part,) = (tmp_path / "whole" / "checkpoints" / "step-00000006").glob("*.safetensors")
    pieces = {key.split("/", 2)[2]: tensor for key, tensor in load_file(part).items() if key.startswith("weight/")}
    saved = {key: tensor.view(expected[key].shape) if lora is None else tensor for key, tensor in pieces.items()}
    assert saved
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())
    inexact = [key for key, tensor in saved.items() if not torch.equal(tensor, tensor.bfloat16().float())]
    assert len(inexact) == len(saved)
    if lora is None:
        assert all(torch.equal(expected[key], saved[key]) for key in saved)


def test_it_learns_as_float32_does(tmp_path: Path) -> None:
    train_file = write_conversations(tmp_path / "train.jsonl", 24)
    found = []
    for label, settings in (("float32", {}), ("bfloat16", BF16)):
        train_with(tiny_args(train_file, tmp_path / label, max_steps=20, learning_rate=3e-3, **settings))
        found.append(losses(tmp_path / label))
    assert found[0][-1] < 0.8 * found[0][0]
    assert sum(found[1][-5:]) == pytest.approx(sum(found[0][-5:]), rel=0.01)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bf16=false"], r"bf16 is .?[Ff]alse.?; it must not be false with param_dtype: bfloat16"),
        (["--deepspeed=ds_configs/zero0.json"], "param_dtype is 'bfloat16'; it must be float32 with ZeRO-0"),
    ],
)
def test_what_does_not_go_with_it_is_refused(tmp_path: Path, words: list[str], message: str) -> None:
    train_file = write_conversations(tmp_path / "train.jsonl", 1)
    with pytest.raises(SettingsError, match=message):
        load_args([f"--train_file={train_file}", "--model_name_or_path=a/b", "--param_dtype=bfloat16", *words])
