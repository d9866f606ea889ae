"""Settings that change how a model is built: which layers are recomputed, which kind of adapter is trained."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import QWEN3, losses, tiny_args, write_conversations

from sft import model_check
from sft.batching import Batch
from sft.config import Args
from sft.device_check import refuse_what_is_not_here
from sft.engine import TorchEngine
from sft.lora_args import LoraArgs
from sft.model import build_model
from sft.tokenizer import build_tokenizer
from sft.train import train_with
from strict_settings import SettingsError

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs g++ for the CPU, and there is none"
)


@pytest.fixture
def graphs() -> Iterator[Counter[str]]:
    """What torch's compiler counts, from nothing: what it compiled for other tests is forgotten."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    yield counters["stats"]
    torch.compiler.reset()
    counters.clear()


@pytest.mark.parametrize(("every", "expected"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3]), (9, [0])])
def test_one_of_every_so_many_layers_is_recomputed(tmp_path: Path, every: int, expected: list[int]) -> None:
    more = {"gradient_checkpointing": True, "gradient_checkpointing_every": every}
    args = tiny_args(tmp_path / "none", tmp_path, model_config={**QWEN3, "num_hidden_layers": 5}, **more)
    model = build_model(args, build_tokenizer(args)).model.train()
    passes: list[int] = []
    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, number=number: passes.append(number))
    model(torch.arange(6).unsqueeze(0)).logits.sum().backward()
    assert sorted(passes) == sorted([*range(5), *expected])


@pytest.mark.parametrize(("name", "words"), [("foo", "not supported"), ("flash_attention_2", "FlashAttention2")])
def test_an_attention_that_is_not_there_is_what_is_blamed(tmp_path: Path, name: str, words: str) -> None:
    """Not the model, which would build without it; and the model where it would not."""
    if name == "flash_attention_2" and importlib.util.find_spec("flash_attn"):
        pytest.skip("flash-attn is installed")
    args = tiny_args(tmp_path / "none", tmp_path, attn_implementation=name)
    tokenizer = build_tokenizer(args)
    with pytest.raises(
        SettingsError, match=rf"^attn_implementation is '{name}'; it must be auto, or .* qwen3.*{words}"
    ):
        build_model(args, tokenizer)
    build_model(tiny_args(tmp_path / "none", tmp_path), tokenizer).model.save_pretrained(tmp_path / "model")
    saved = {"model_config": None, "model_name_or_path": str(tmp_path / "model")}
    with pytest.raises(SettingsError, match=rf"^attn_implementation is '{name}'"):
        build_model(replace(args, **saved), tokenizer)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(SettingsError, match=r"^model_name_or_path is "):
        build_model(replace(args, attn_implementation="eager", **saved), tokenizer)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_hidden_layers": 0}, "model_config.num_hidden_layers is 0; it must be at least 1."),
        ({"num_attention_heads": 5}, "num_attention_heads is 5; it must be a multiple of num_key_value_heads, 2."),
    ],
)
def test_sizes_that_build_and_cannot_run_are_refused(tmp_path: Path, sizes: dict[str, int], message: str) -> None:
    args = tiny_args(tmp_path / "none", tmp_path, model_config={**QWEN3, **sizes})
    with pytest.raises(SettingsError, match=re.escape(message)):
        build_model(args, build_tokenizer(args))


@pytest.mark.parametrize("name", ["paged|eager", "flex_attention"])
def test_kinds_of_attention_that_do_not_train_here_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=rf"^attn_implementation is '{re.escape(name)}'; it must be "):
        refuse_what_is_not_here(Args(attn_implementation=name), torch.device("cpu"))


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize(("name", "in_peft"), [("dora", "use_dora"), ("rslora", "use_rslora")])
def test_other_kinds_of_adapters_are_trained_and_written(tmp_path: Path, name: str, in_peft: str, merge: bool) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    train_file = write_conversations(tmp_path / "train.jsonl", 6)
    kind: Any = {name: True}
    args = tiny_args(train_file, tmp_path / "out", lora=LoraArgs(r=4, merge=merge, **kind), max_steps=8)
    train_with(args)
    found = losses(tmp_path / "out")
    assert found[-1] < found[0]
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())[in_peft] is True
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")
    assert any("magnitude" in key for key in model.state_dict()) == (name == "dora")
    assert (tmp_path / "out" / "merged" / "model.safetensors").is_file() == merge
    if merge:
        ids = torch.arange(20).unsqueeze(0)
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged")
        expected = model.eval()(ids).logits
        assert torch.allclose(whole.eval()(ids).logits, expected, atol=1e-4 * float(expected.abs().max()))


def test_a_share_of_ranks_that_does_not_divide_them_is_refused(tmp_path: Path) -> None:
    args = tiny_args(tmp_path / "none", tmp_path, fsdp=True, fsdp_shard_size=4)
    with pytest.raises(SettingsError, match="fsdp_shard_size is 4; it must divide the 6 processes"):
        args.accumulation_steps(6)
    assert args.accumulation_steps(8) == 1


def _filled_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Runs of 8 packed steps, plain and compiled; asserts on their losses and sizes. Graphs there are before each of
    the compiled steps' updates."""
    from torch._dynamo.utils import counters

    train_file = write_conversations(tmp_path / "train.jsonl", 24)
    sizes: list[int] = []
    graphs: list[int] = []
    accumulate, step = TorchEngine.accumulate, TorchEngine.step

    def counting(self: TorchEngine, *words: Any) -> tuple[float, float]:
        graphs.append(counters["stats"]["unique_graphs"])
        return step(self, *words)

    def measuring(self: TorchEngine, batch: Batch, *words: Any, **more: Any) -> torch.Tensor:
        sizes.append(batch.input_ids.numel())
        return accumulate(self, batch, *words, **more)

    monkeypatch.setattr(TorchEngine, "step", counting)
    monkeypatch.setattr(TorchEngine, "accumulate", measuring)
    found = []
    for compiled in (False, True):
        counters.clear()
        more: dict[str, Any] = {"packing": True, "max_length": 160, "compile": compiled}
        train_with(tiny_args(train_file, tmp_path / f"{compiled}", max_steps=8, **more))
        found.append(losses(tmp_path / f"{compiled}"))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert len(set(sizes[:8])) > 3
    assert set(sizes[8:]) == {2 * 160}
    return graphs[8:]


def test_packed_rows_of_compiled_layers_are_filled_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(model_check, "compile_layers", lambda _, fixed_sizes: asked.append(fixed_sizes))
    _filled_up(tmp_path, monkeypatch)
    assert asked == [True]


@pytest.mark.soak
@pytest.mark.filterwarnings("default")  # torch's compiler warns of its own doings
@needs_compiler
def test_nothing_is_compiled_after_the_first_step_of_filled_up_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = _filled_up(tmp_path, monkeypatch)
    assert graphs[0] >= 2
    assert graphs == [graphs[0]] * 8


@pytest.mark.filterwarnings("default")  # torch's compiler warns of its own doings
@needs_compiler
def test_compiled_layers_train_alike_and_are_compiled_once_for_all_lengths(
    tmp_path: Path, graphs: Counter[str]
) -> None:
    train_file = write_conversations(tmp_path / "train.jsonl", 24)
    found = []
    for compiled in (False, True):
        graphs.clear()
        args = tiny_args(train_file, tmp_path / f"{compiled}", max_steps=10, compile=compiled)
        train_with(args)
        found.append(losses(tmp_path / f"{compiled}"))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    # Before and after attention, which is left out; the first layer's input has no gradient when it is compiled first.
    assert 2 <= graphs["unique_graphs"] <= 4


@pytest.mark.filterwarnings("default")  # torch's compiler warns of its own doings
@needs_compiler
@pytest.mark.parametrize("lora", [LoraArgs(enabled=False), LoraArgs(r=4)], ids=["full", "lora"])
def test_layers_that_are_recomputed_are_compiled_as_a_whole_too(
    tmp_path: Path, graphs: Counter[str], lora: LoraArgs
) -> None:
    train_file = write_conversations(tmp_path / "train.jsonl", 24)
    captured, found = {}, {}
    for compiled in (False, True):
        for checkpointing in (False, True):
            torch.compiler.reset()
            graphs.clear()
            folder = tmp_path / f"{compiled}-{checkpointing}"
            more = {"compile": compiled, "gradient_checkpointing": checkpointing, "lora": lora}
            train_with(tiny_args(train_file, folder, max_steps=4, **more))
            captured[compiled, checkpointing] = graphs["calls_captured"]
            found[compiled, checkpointing] = losses(folder)
    for run in found.values():
        assert run == pytest.approx(found[False, False], rel=1e-4)
    # With LoRA the first layer, whose input has no gradient unless it is recomputed, is compiled for itself too.
    assert 0 < captured[True, False] <= 2 * captured[True, True]


def test_liger_is_told_to_replace_all_but_the_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    def apply(
        rope: bool = False,
        cross_entropy: bool = True,
        fused_linear_cross_entropy: bool = True,
        rms_norm: bool = False,
        swiglu: bool = False,
        model: Any = None,
    ) -> None:
        told.append({"rope": rope, "rms_norm": rms_norm, "swiglu": swiglu, "model": model})
        told[-1] |= {"cross_entropy": cross_entropy, "fused_linear_cross_entropy": fused_linear_cross_entropy}

    stand_in = types.ModuleType("monkey_patch")
    stand_in.MODEL_TYPE_TO_APPLY_LIGER_FN = {"qwen3": apply}  # type: ignore[attr-defined]
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", stand_in)
    args = tiny_args(tmp_path / "none", tmp_path, liger=True, lora=LoraArgs(r=4))
    model = build_model(args, build_tokenizer(args), device=torch.device("cuda")).model
    assert len(told) == 1
    assert told[0].pop("model") is model.get_base_model()
    losses_off = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    assert told[0] == {"rope": True, "rms_norm": True, "swiglu": True, **losses_off}
    other = {"model_type": "gpt_neox", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
    args = replace(args, model_config=other)
    with pytest.raises(SettingsError, match=r"liger is .*; it must be false for gpt_neox. Liger knows qwen3"):
        build_model(args, build_tokenizer(args), device=torch.device("cuda"))


def test_liger_is_refused_where_it_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = tiny_args(tmp_path / "none", tmp_path, liger=True)
    with pytest.raises(SettingsError, match=r"liger is .*; it must be false on a cpu. Leave it out"):
        build_model(args, build_tokenizer(args))
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(SettingsError, match=r"must come with liger-kernel, which is not here. Run pip install"):
        build_model(args, build_tokenizer(args), device=torch.device("cuda"))
    assert build_model(args, build_tokenizer(args), with_weights=False).model is not None
