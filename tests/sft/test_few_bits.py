"""AdamW in eight bits, frozen weights in four or eight: what is trained, saved, and refused."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from spawned import spawn
from tiny import QWEN3, TOKENIZER, losses, tiny_args, write_conversations

from sft import eight_bit
from sft.arguments import load_args
from sft.flops import ModelShape
from sft.lora_args import LoraArgs
from sft.model import build_model
from sft.tokenizer import build_tokenizer
from sft.train import train_in_world, train_with
from sft.world import SequenceGroup, World
from strict_settings import SettingsError

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install bitsandbytes"
)
quietly = pytest.mark.filterwarnings("ignore:MatMul8bitLt.*:UserWarning")


def codes(signed: bool) -> torch.Tensor:
    """Rising codes as bitsandbytes has them: the largest is 1, the smallest 0 or nearest to −1."""
    positive = torch.cat([torch.zeros(1), torch.logspace(-7, 0, 127 if signed else 255)])
    return torch.cat([-positive[1:].flip(0) * 0.993, positive]) if signed else positive


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("size", [1, 256, 5000])
def test_what_was_read_is_written_as_it_was(signed: bool, size: int) -> None:
    code = codes(signed)
    code = torch.cat([code, code[-1:]])[:256] if len(code) < 256 else code[:256]
    numbers = torch.randint(0, len(code), (size,), generator=torch.Generator().manual_seed(size)).to(torch.uint8)
    for start in range(0, size, 256):  # each block has a number at one of its ends, as it is when it is made
        numbers[start] = 255 if not signed or start % 512 else 0
    scales = torch.rand(-(-size // 256), generator=torch.Generator().manual_seed(1)) + 0.1
    state = {"state1": numbers, "qmap1": code, "absmax1": scales}
    values = eight_bit.read_mean(state, "exp_avg")
    other: dict[str, Any] = {
        "state1": torch.zeros_like(numbers), "qmap1": code, "absmax1": torch.zeros_like(scales),
    }  # fmt: skip
    eight_bit.write_mean(other, "exp_avg", values)
    assert torch.allclose(other["absmax1"], scales, rtol=2e-7, atol=0)
    assert torch.allclose(eight_bit.read_mean(other, "exp_avg"), values, rtol=3e-7, atol=0)


def test_zeros_stay_zeros() -> None:
    found, scales = eight_bit.quantized(torch.zeros(300), codes(True))
    assert not codes(True)[found.long()].any()
    assert not scales.any()


@needs_library
@pytest.mark.parametrize("settings", [{}, {"bf16": True, "param_dtype": "bfloat16"}], ids=["float32", "bf16"])
def test_a_run_in_eight_bits_learns_and_resumes(tmp_path: Path, settings: dict[str, Any]) -> None:
    train_file = write_conversations(tmp_path / "train.jsonl", 12)
    shared: dict[str, Any] = {"max_steps": 8, "learning_rate": 3e-3, **settings}
    train_with(tiny_args(train_file, tmp_path / "plain", **shared))
    args = tiny_args(train_file, tmp_path / "whole", optim="adamw_8bit", save_steps=4, **shared)
    train_with(args)
    expected, found = losses(tmp_path / "plain"), losses(tmp_path / "whole")
    assert found != expected
    assert found == pytest.approx(expected, rel=0.01)
    saved = tmp_path / "whole" / "checkpoints" / "step-00000004"
    shutil.copytree(saved, tmp_path / "resumed" / "checkpoints" / "step-00000004")
    train_with(replace(args, output_dir=str(tmp_path / "resumed")))
    assert losses(tmp_path / "resumed")[-4:] == pytest.approx(found[-4:], rel=1e-5)


@needs_library
def test_state_in_eight_bits_is_that_of_float32_rounded(tmp_path: Path) -> None:
    weights = {name: torch.nn.Parameter(torch.full((64, 100), 0.5)) for name in ("plain", "rounded")}
    plain = torch.optim.AdamW([weights["plain"]], lr=1e-3)
    rounded = eight_bit.adamw_8bit([{"params": [weights["rounded"]], "weight_decay": 0.01}], 1e-3, (0.9, 0.999), 1e-8)
    for step in range(3):
        gradient = torch.randn(64, 100, generator=torch.Generator().manual_seed(step))
        for optimizer, weight in ((plain, weights["plain"]), (rounded, weights["rounded"])):
            weight.grad = gradient.clone()
            optimizer.step()
    for kind in ("exp_avg", "exp_avg_sq"):
        expected, found = (
            plain.state[weights["plain"]][kind],
            eight_bit.read_mean(rounded.state[weights["rounded"]], kind),
        )
        assert (found - expected).norm() < 0.03 * expected.norm()
        again = {**rounded.state[weights["rounded"]]}
        before = again["state1"].clone(), again["state2"].clone()
        eight_bit.write_mean(again, kind, found)
        assert torch.equal(again["state1"], before[0])
        assert torch.equal(again["state2"], before[1])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    wide = {**QWEN3, "hidden_size": 64, "head_dim": 16, "vocab_size": len(tokenizer)}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**wide)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@needs_library
@quietly
@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_adapters_train_on_weights_in_few_bits(tmp_path: Path, base: Path, bits: str) -> None:
    from peft import AutoPeftModelForCausalLM

    train_file = write_conversations(tmp_path / "train.jsonl", 12)
    loaded = {"model_config": None, "model_name_or_path": str(base)}
    shared: dict[str, Any] = {**loaded, "lora": LoraArgs(r=4), "max_steps": 12}
    train_with(tiny_args(train_file, tmp_path / "plain", **shared))
    few: dict[str, Any] = {bits: True}
    args = tiny_args(train_file, tmp_path / "few", save_steps=6, gradient_checkpointing=True, **few, **shared)
    model = build_model(args, build_tokenizer(args)).model
    kinds = {parameter.dtype for name, parameter in model.named_parameters() if "base_layer" in name}
    assert kinds == {torch.uint8 if bits == "load_in_4bit" else torch.int8}
    whole = build_model(replace(args, **{bits: False}), build_tokenizer(args)).model
    assert ModelShape.of(model) == ModelShape.of(whole)
    train_with(args)
    expected, found = losses(tmp_path / "plain"), losses(tmp_path / "few")
    assert found[-1] < found[0] - 0.2
    assert found == pytest.approx(expected, rel=0.05)
    shutil.copytree(tmp_path / "few" / "checkpoints" / "step-00000006", tmp_path / "again/checkpoints/step-00000006")
    train_with(replace(args, output_dir=str(tmp_path / "again")))
    assert losses(tmp_path / "again")[-6:] == pytest.approx(found[-6:], rel=1e-6)
    names = load_file(tmp_path / "few" / "adapter_model.safetensors").keys()
    assert all(".lora_" in name for name in names)
    assert AutoPeftModelForCausalLM.from_pretrained(tmp_path / "few").dtype == torch.float32


RUNS: dict[str, dict[str, Any]] = {
    "optimizer": {"optim": "adamw_8bit"},
    "masters": {"optim": "adamw_8bit", "bf16": True, "param_dtype": "bfloat16"},
    "weights": {"load_in_4bit": True, "lora": LoraArgs(r=4), "gradient_checkpointing": True},
}


def _runs(world: World, folder: Path) -> None:
    world = replace(world, sequence=SequenceGroup())
    for label, settings in RUNS.items():
        loaded = {"model_config": None, "model_name_or_path": str(folder / "base")}
        shared = {
            "train_batch_size": 4,
            "per_device_train_batch_size": 4 // world.size,
            "max_steps": 4,
            "save_steps": 2,
        }
        target = folder / f"{label}-{world.size}"
        train_in_world(tiny_args(folder / "train.jsonl", target, **loaded, **shared, **settings), world)


@needs_library
@pytest.mark.ranks
def test_two_ranks_train_in_few_bits_as_one_does(tmp_path: Path, base: Path) -> None:
    write_conversations(tmp_path / "train.jsonl", 8)
    for num_processes in (1, 2):
        spawn(_runs, num_processes, tmp_path)
        (tmp_path / "store").unlink()
    for label in RUNS:
        assert losses(tmp_path / f"{label}-2") == pytest.approx(losses(tmp_path / f"{label}-1"), rel=1e-3)


@pytest.mark.parametrize("setting", [{"optim": "adamw_8bit"}, {"load_in_4bit": True, "lora": LoraArgs(r=4)}])
def test_it_is_said_that_the_library_is_missing(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, setting: dict[str, Any]
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    train_file = write_conversations(tmp_path / "train.jsonl", 2)
    loaded = {"model_config": None, "model_name_or_path": str(base)}
    with pytest.raises(SettingsError, match=r"must come with bitsandbytes, which is not here. Run pip install"):
        train_with(tiny_args(train_file, tmp_path / "out", **loaded, **setting))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--load_in_4bit=true"], "load_in_4bit is .*; it must come with lora. Add lora"),
        (["--load_in_8bit=true", "--lora.r=4", "--fsdp=true"], "load_in_8bit is .*; it must not be given with fsdp"),
        (["--load_in_4bit=true", "--lora.r=4", "--deepspeed=ds_configs/zero3.json"], "not be given with deepspeed"),
        (
            ["--load_in_4bit=true", "--lora.r=4", "--load_in_8bit=true"],
            "not be given with load_in_4bit",
        ),
        (["--load_in_4bit=true", "--lora.merge=true"], "merge is .*; it must be false with load_in_4bit"),
        (["--optim=adamw_8bit", "--fsdp=true"], "optim is .*; it must not be given with fsdp"),
        (["--optim=adamw_8bit", "--deepspeed=ds_configs/zero2.json"], "optim is .*; it must not be given with deepsp"),
    ],
)
def test_what_does_not_go_with_few_bits_is_refused(tmp_path: Path, words: list[str], message: str) -> None:
    train_file = write_conversations(tmp_path / "train.jsonl", 1)
    with pytest.raises(SettingsError, match=message):
        load_args([f"--train_file={train_file}", "--model_name_or_path=a/b", *words])
