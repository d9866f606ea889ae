"""`python -m sft estimate`: what a pass holds, who holds what, what fits, and what is printed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import QWEN3, TOKENIZER, tiny_args, write_conversations

from sft.__main__ import main
from sft.arguments import load_args
from sft.attention import use_document_attention
from sft.batching import Batch, collate, collate_flat
from sft.config import ROOT
from sft.documents import Document
from sft.estimate import Choice, Machine, Rows, estimate, full_batch, own_peak, own_step_time, recommended
from sft.loss import LossModule
from sft.memory import Peak, Setting, Sharing, Sizes, peak, weights_in_bf16
from sft.memory_trace import Moment, Trace, trace, without_memory
from sft.model import build_model
from sft.output_layer import output_layer_of
from sft.tokenizer import build_tokenizer
from sft.trace_depth import extrapolated, trace_of_any_depth
from strict_settings import SettingsError

GIB = 2**30
ONE_LAYER = {**QWEN3, "num_hidden_layers": 1}
"""Where nothing depends on the depth: each choice of a table is traced."""


def build(**changes: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**{**QWEN3, "vocab_size": 600, **changes})
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def batch_of(lengths: list[int], trained_from: int = 0, collated: Callable[..., Batch] = collate) -> Batch:
    return collated([Document([1] * n, [i >= trained_from for i in range(n)]) for n in lengths], 0)


def really_saved(model: Any, batch: Batch) -> int:
    """Bytes of the storages that a real forward pass saves for the backward pass."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    module = LossModule(model)
    module.output_layer = output_layer_of(model)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_sum = module(batch)
        assert loss_sum.requires_grad
        return sum(storage.nbytes() for storage in saved.values())


EXPERTS = {
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 16,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
}


@pytest.mark.parametrize("sizes", [{}, {"model_type": "gpt_neox"}, EXPERTS], ids=["qwen3", "gpt_neox", "qwen3_moe"])
@pytest.mark.parametrize("lengths", [[64], [40, 9, 64]])
@pytest.mark.parametrize("is_flat", [True, False])
def test_a_trace_saves_what_a_real_pass_saves(sizes: dict[str, Any], lengths: list[int], is_flat: bool) -> None:
    batch = batch_of(lengths, 6, collate_flat if is_flat else collate)

    def model() -> Any:
        made = build(**sizes)
        if is_flat:
            use_document_attention(made)
        return made

    found = trace(without_memory(model), batch, autocast=False)
    # Beside what autograd saves, the trace counts the loss and masks that are alive at that moment.
    assert found.saved_bytes == pytest.approx(really_saved(model(), batch), rel=0.02)


def test_a_trace_takes_no_memory_whatever_the_size() -> None:
    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "head_dim": 128}
    model = without_memory(lambda: build(**sizes, num_hidden_layers=9, vocab_size=32_000))
    assert sum(parameter.numel() for parameter in model.parameters()) > 7e9
    found = trace_of_any_depth(model, batch_of([4096]), autocast=True)
    # The table of words is the last to get its gradient; nothing is held after it.
    embedding = model.get_input_embeddings().weight.numel()
    assert found.moments[-1].num_gradients == sum(parameter.numel() for parameter in model.parameters()) - embedding
    assert found.saved_bytes > 10 * GIB


def test_checkpointing_keeps_one_tensor_per_layer() -> None:
    def checkpointed() -> Any:
        model = build(num_hidden_layers=6)
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        return model

    batch = batch_of([200])
    plain = trace(without_memory(lambda: build(num_hidden_layers=6)), batch, autocast=False)
    found = trace(without_memory(checkpointed), batch, autocast=False)
    kept = [moment.held_bytes["activations"] for moment in (plain.moments[0], found.moments[0])]
    assert 6 * 200 * 32 * 4 <= kept[1] < 9 * 200 * 32 * 4
    assert kept[0] > 8 * kept[1]


def test_logits_of_untrained_positions_show_where_the_loss_makes_them() -> None:
    model = without_memory(build)
    few, many = (trace(model, batch_of([200], first), autocast=False) for first in (180, 0))
    assert few.moments[0].held_bytes["logits and loss"] < many.moments[0].held_bytes["logits and loss"]


def test_products_in_bfloat16_are_added_up_in_float32_where_there_are_no_units_for_it() -> None:
    """The buffer is as large as the product: seen as the resident set of single products on such a processor."""
    model, batch = without_memory(lambda: build(num_hidden_layers=1, vocab_size=16_000)), batch_of([600])
    most = [
        max(moment.held_bytes["logits and loss"] for moment in trace(model, batch, autocast=bf16, emulated=on).moments)
        for bf16, on in ((True, False), (True, True), (False, False), (False, True))
    ]
    # The logits, beside them the sums that they are made of; the loss takes less, as it goes some 8 MB at a time.
    assert most[0] < (2 + 4) * 600 * 16_000 <= most[1] < 1.02 * (2 + 4) * 600 * 16_000
    assert most[2] == most[3]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_many_layers_follow_from_few(tied: bool, autocast: bool) -> None:
    model = without_memory(lambda: build(num_hidden_layers=10, tie_word_embeddings=tied))
    batch = batch_of([90, 50])
    whole, quick = (function(model, batch, autocast=autocast) for function in (trace, trace_of_any_depth))
    assert len(quick.moments) < len(whole.moments)
    assert quick.saved_bytes == whole.saved_bytes
    assert (quick.moments[0], quick.moments[-1]) == (whole.moments[0], whole.moments[-1])
    for per_gradient in (0, 2, 4, 6):
        most = [max(m.total_bytes + per_gradient * m.num_gradients for m in found.moments) for found in (whole, quick)]
        assert most[0] == most[1]


def test_many_layers_that_are_recomputed_in_turn_follow_from_few(tmp_path: Path) -> None:
    config = {**QWEN3, "num_hidden_layers": 19}
    turns: Any = {"gradient_checkpointing": True, "gradient_checkpointing_every": 2}
    args = tiny_args(tmp_path / "x", tmp_path, model_config=config, **turns)
    model = without_memory(lambda: build_model(args, build_tokenizer(args), with_weights=False).model)
    batch = batch_of([90, 50])
    whole, quick = (function(model, batch, autocast=False) for function in (trace, trace_of_any_depth))
    assert len(quick.moments) < len(whole.moments)
    assert quick.saved_bytes == whole.saved_bytes
    for per_gradient in (0, 4):
        most = [max(m.total_bytes + per_gradient * m.num_gradients for m in found.moments) for found in (whole, quick)]
        assert most[0] == most[1]


def test_ranks_that_share_rows_hold_a_share_of_them(tmp_path: Path) -> None:
    args = tiny_args(tmp_path / "x", tmp_path, max_length=128, per_device_train_batch_size=4)
    tokenizer, machine, rows = build_tokenizer(args), Machine("cpu", 1, 4, GIB, False), Rows(128, 0.5)
    shared = [replace(args, sequence_parallel_size=size) for size in (1, 2, 4)]
    peaks = [own_peak(each, tokenizer, machine, rows) for each in shared]
    held = [peak.parts["activations"] for peak in peaks]
    # An exchange has what is sent and what has arrived, and all key-value heads of 2 for 4 ranks are there twice.
    assert 0.5 * held[0] <= held[1] <= 0.65 * held[0]
    assert 0.25 * held[0] <= held[2] <= 0.40 * held[0]
    assert peaks[0].parts["weights"] == peaks[2].parts["weights"]
    tokens = [own_step_time(each, tokenizer, machine, rows).num_tokens for each in shared]
    assert tokens == [4 * 4 * 128, 2 * 4 * 128, 4 * 128]
    with pytest.raises(SettingsError, match=r"sequence_parallel_size is 8; it must suit the model"):
        own_peak(replace(args, sequence_parallel_size=8), tokenizer, replace(machine, procs_per_node=8), rows)


def test_extrapolation_by_hand() -> None:
    def of(layers: int) -> Trace:
        held = [layers * 10 + 5, *(layers * 10 - 8 * done for done in range(1, layers + 1)), 3]
        counts = [0, *(7 * done for done in range(1, layers + 1)), 7 * layers + 50]
        moments = tuple(Moment(n, {"activations": b}) for n, b in zip(counts, held, strict=True))
        return Trace(moments, layers * 10)

    whole, found = of(12), extrapolated(of(3), of(4), 12)
    assert found.saved_bytes == 120
    assert all(moment in whole.moments for moment in found.moments)
    assert (found.moments[0], found.moments[-1]) == (whole.moments[0], whole.moments[-1])


def test_models_whose_layers_differ_are_traced_whole() -> None:
    sliding = {"layer_types": ["full_attention", "sliding_attention"] * 5, "use_sliding_window": True}
    model = without_memory(lambda: build(num_hidden_layers=10, **sliding))
    batch = batch_of([60])
    assert trace_of_any_depth(model, batch, autocast=False) == trace(model, batch, autocast=False)


SIZES = Sizes(total=1000, trained=1000, largest_layer=100, outside_layers=200, numbers=(10, 40, 950))
TRACE = Trace((Moment(0, {"activations": 5000, "logits and loss": 700}), Moment(1000, {"activations": 900})), 5000)


def fixed(world_size: int = 1, bf16: bool = False, micro_batches: int = 1, cuda: bool = False) -> Setting:
    return Setting(world_size, bf16, micro_batches, cuda)


def parts(found: Peak) -> tuple[int, ...]:
    names = ("weights", "gradients", "optimizer states", "activations", "logits and loss", "buffers")
    return tuple(found.parts[name] for name in names)


def test_one_process_by_hand() -> None:
    assert parts(peak(Sharing("one"), SIZES, TRACE, fixed())) == (4000, 0, 8000, 5000, 700, 0)
    # From the second micro-batch on, gradients are there while activations are.
    assert parts(peak(Sharing("one"), SIZES, TRACE, fixed(micro_batches=2))) == (4000, 4000, 8000, 5000, 700, 0)
    # Where activations are small, the end of the backward pass is the peak.
    small = Trace((Moment(0, {"activations": 50}), Moment(1000, {"activations": 90})), 50)
    assert parts(peak(Sharing("one"), SIZES, small, fixed())) == (4000, 4000, 8000, 90, 0, 0)


def test_masters_by_hand() -> None:
    masters = Setting(1, True, 1, False, bf16_parameters=True)
    assert parts(peak(Sharing("one"), SIZES, TRACE, masters)) == (2000 + 4000, 0, 8000, 5000, 700, 0)
    lora = replace(SIZES, trained=100)
    assert parts(peak(Sharing("one"), lora, TRACE, masters)) == (2000 + 400, 0, 800, 5000, 700, 0)


def test_few_bits_by_hand() -> None:
    sizes = replace(SIZES, trained=600, small_trained=88, loadable_in_few_bits=400, largest_of_them=30)
    found = peak(Sharing("one"), sizes, TRACE, Setting(1, False, 1, False, adamw_8bit=True))
    assert found.parts["optimizer states"] == 8 * 88 + 2 * (512 + 4 * 2)
    for bits, in_bits in ((8, 400), (4, 206)):
        found = peak(Sharing("one"), sizes, TRACE, Setting(1, False, 1, False, few_bits=bits))
        assert found.parts["weights"] == 4 * 600 + in_bits
        assert found.parts["buffers"] == 4 * 30


def test_zero_by_hand() -> None:
    stage2 = Sharing.of_deepspeed("2", {"zero_optimization": {"stage": 2, "reduce_bucket_size": 300}})
    # bfloat16 weights, a quarter of the float32 ones and of AdamW's states.
    assert parts(peak(stage2, SIZES, TRACE, fixed(4, bf16=True))) == (2000 + 1000, 0, 2000, 5000, 700, 0)
    # A GPU takes the bucket at once.
    assert peak(stage2, SIZES, TRACE, fixed(4, bf16=True, cuda=True)).parts["buffers"] == 2 * 300
    offload = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    found = peak(Sharing.of_deepspeed("o", offload), SIZES, TRACE, fixed(4, bf16=True))
    assert parts(found) == (2000, 0, 0, 5000, 700, 0)
    assert found.host_bytes == (4 + 8 + 4 + 2) * 250


def test_stage_0_keeps_float32_weights_whatever_it_computes_in() -> None:
    for bf16 in (False, True):
        assert not weights_in_bf16(Sharing("0", 0), bf16=bf16)
        assert parts(peak(Sharing("0", 0), SIZES, TRACE, fixed(1, bf16))) == (4000, 0, 8000, 5000, 700, 0)
    accumulating = peak(Sharing("0", 0), SIZES, TRACE, fixed(1, micro_batches=2))
    assert parts(accumulating) == (4000, 4000, 8000, 5000, 700, 0)
    # Where activations are small, the step is the peak: ranks add up a flat copy of all gradients.
    small = Trace((Moment(0, {"activations": 50}),), 50)
    assert parts(peak(Sharing("0", 0), SIZES, small, fixed(2))) == (4000, 4000, 8000, 0, 0, 4000)


def test_gradients_that_are_reduced_once_a_step_are_whole_until_then() -> None:
    long_rows = Trace((Moment(0, {"activations": 50_000}), Moment(1000, {"activations": 900})), 50_000)
    for sharing, bf16, gradients in (
        (Sharing("f", fsdp=True), False, 4 * 1000),
        (Sharing("f", fsdp=True), True, 4 * 1000),
        (Sharing("1", 1), False, 4 * 1000),
        (Sharing("1", 1), True, 2 * 1000),
        (Sharing("2", 2), False, 4 * 250),  # which reduces them in each micro-batch
    ):
        assert peak(sharing, SIZES, long_rows, fixed(4, bf16)).parts["gradients"] == 0
        assert peak(sharing, SIZES, long_rows, fixed(4, bf16, micro_batches=2)).parts["gradients"] == gradients


def test_a_second_copy_of_the_weights_within_nodes_is_counted() -> None:
    zero = {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}}
    found = peak(Sharing.of_deepspeed("hpz", zero), SIZES, TRACE, fixed(16, bf16=True))
    plain = peak(Sharing("3", 3), SIZES, TRACE, fixed(16, bf16=True))
    assert found.parts["weights"] - plain.parts["weights"] == 2 * SIZES.total // 8
    offload = {"zero_optimization": {**zero["zero_optimization"], "offload_param": {"device": "cpu"}}}
    offloaded = peak(Sharing.of_deepspeed("o", offload), SIZES, TRACE, fixed(16, bf16=True))
    assert offloaded.host_bytes == round(2 * SIZES.total / 16) + 2 * SIZES.total // 8


def test_sharding_never_takes_more_with_more_ranks() -> None:
    for sharing in (Sharing("f", fsdp=True), *(Sharing(str(stage), stage) for stage in (1, 2, 3))):
        for bf16 in (False, True):
            totals = [peak(sharing, SIZES, TRACE, fixed(world, bf16)).total_bytes for world in (2, 4, 64)]
            assert totals == sorted(totals, reverse=True)
            assert totals[0] > totals[2]


def test_what_zero3_keeps_whole_is_counted_by_its_own_threshold() -> None:
    def held(**zero: Any) -> Peak:
        small = Trace((Moment(0, {"activations": 50}),), 50)
        settings = {"stage": 3, "stage3_max_live_parameters": 100, "reduce_bucket_size": 10, **zero}
        return peak(Sharing.of_deepspeed("3", {"zero_optimization": settings}), SIZES, small, fixed(4, bf16=True))

    found = [held(stage3_param_persistence_threshold=threshold) for threshold in (10, 40, 950)]
    # In the step: a float32 copy of a quarter of the gradients, the bucket, and what is whole.
    assert [one.parts["buffers"] for one in found] == [1000 + 20 + 2 * whole for whole in (10, 50, 1000)]
    assert held() == found[2]  # DeepSpeed's default is above all of these


def test_sharding_by_groups_is_a_choice_beside_that_over_all_ranks(tmp_path: Path) -> None:
    for settings, names in (
        ({"fsdp": True, "fsdp_shard_size": 2}, [("FSDP by 2", True), ("FSDP", False)]),
        ({"fsdp": True, "fsdp_shard_size": 4}, [("FSDP", True)]),
        ({"fsdp": True}, [("FSDP", True)]),
    ):
        args = tiny_args(tmp_path / "x", tmp_path, max_length=32, model_config=ONE_LAYER, **settings)
        machine = Machine("cpu", 1, 4, GIB, False)
        found = estimate(args, build_tokenizer(args), machine, Rows(32, 1.0))
        ways = [choice for choice in found.choices if choice.sharing.fsdp and not choice.is_checkpointed]
        assert [(choice.sharing.name, choice.is_yours) for choice in ways] == names
        assert ["fsdp_shard_size: null" in choice.settings for choice in ways] == [not yours for _, yours in names]
        held = [choice.peak.parts["optimizer states"] for choice in ways]
        assert held == sorted(held, reverse=True)
        assert len(set(held)) == len(held)


def test_hybrid_sharding_takes_what_a_world_of_its_size_takes() -> None:
    hybrid = peak(Sharing("f", fsdp=True, shard_size=4), SIZES, TRACE, fixed(64))
    assert hybrid == peak(Sharing("f", fsdp=True), SIZES, TRACE, fixed(4))


@pytest.fixture
def run_file(tmp_path: Path) -> Callable[..., str]:
    def write(**settings: Any) -> str:
        path = tmp_path / "run.yaml"
        data = str(write_conversations(tmp_path / "train.jsonl", 2))
        path.write_text(
            json.dumps({"model_config": ONE_LAYER, "tokenizer_name": TOKENIZER, "train_file": data, **settings})
        )
        return str(path)

    return write


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any, str]]:
    """(exit code, stdout, stderr) of a command line; with --json stdout is read."""

    def run(*words: str) -> tuple[int, Any, str]:
        code = main(["estimate", *words])
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if "--json" in words else captured.out, captured.err

    return run


def test_every_way_is_in_the_table(run_file: Any, told: Any) -> None:
    words = (run_file(max_length=128), "--nodes", "2", "--procs-per-node", "2", "--device", "cpu", "--memory-gib", "4")
    code, text, _ = told(*words, "--tflops", "0.5")
    assert code == 0
    rows = [line[2:].split("  ")[0] for line in text.splitlines() if line.count(".") >= 7]
    ways = ["DDP", "ZeRO-1", "ZeRO-2", "ZeRO-2 offload", "ZeRO-3", "ZeRO-3 offload", "FSDP", "DDP LoRA"]
    assert rows == ways
    assert next(line for line in text.splitlines() if line.startswith("→ ")).startswith("→ DDP ")
    assert "take DDP: 0.0" in text
    assert "\n  the default\n" in text
    assert "2 node(s) × 2 process(es), cpu, 4.0 GiB each" in text
    assert "at 30% of 0.5 TFLOP/s" in text


def test_settings_are_words_too(run_file: Any, told: Any) -> None:
    _, long, _ = told(run_file(), "--json", "--memory-gib", "4", "max_length=512", "--device=cpu")
    _, short, _ = told(run_file(), "--json", "--memory-gib", "4", "--max_length", "64", "--device=cpu")
    assert (long["length"], short["length"]) == (512, 64)
    activations = [found["choices"][0]["parts"]["activations"] for found in (long, short)]
    assert activations[0] > 7 * activations[1]
    assert long["step"]["num_tokens"] == 8 * 512


def test_yours_is_marked_whatever_it_is(run_file: Any, told: Any) -> None:
    own = Path(run_file()).with_name("own.json")
    own.write_text(json.dumps({"zero_optimization": {"stage": 2, "reduce_bucket_size": 1000}}))
    for settings, name in (
        ({"deepspeed": "ds_configs/zero3.json"}, "ZeRO-3"),
        ({"deepspeed": str(own)}, "yours"),
        ({"fsdp": True}, "FSDP"),
        ({"lora": {"r": 4}, "gradient_checkpointing": True}, "DDP"),
    ):
        path = run_file(max_length=32, launch={"procs_per_node": 2}, **settings)
        _, found, _ = told(path, "--json", "--memory-gib", "4", "--device", "cpu")
        yours = [choice for choice in found["choices"] if choice["is_yours"]]
        assert [choice["name"] for choice in yours] == [name]
        assert yours[0]["lora"] == ("lora" in settings)
        assert yours[0]["gradient_checkpointing"] == ("gradient_checkpointing" in settings)
        assert len(yours[0]["settings"]) == 1
        other = next(c for c in found["choices"] if c["name"] == name and not c["is_yours"])
        assert other["settings"][1].startswith("gradient_checkpointing: ")


@pytest.mark.parametrize(
    "settings", [{"deepspeed": "ds_configs/zero1.json"}, {"deepspeed": "ds_configs/zero0.json"}, {"fsdp": True}]
)
def test_yours_is_there_for_one_process_too(run_file: Any, told: Any, settings: dict[str, Any]) -> None:
    _, found, _ = told(run_file(max_length=32, **settings), "--json", "--memory-gib", "4", "--device", "cpu")
    assert [choice["is_yours"] for choice in found["choices"]].count(True) == 1


MIXED: dict[str, tuple[dict[str, Any], set[str]]] = {
    "offloaded inputs": (
        {"gradient_checkpointing": True, "gradient_checkpointing_every": 2, "activation_offload": True},
        set(),
    ),
    "fsdp": ({"fsdp": True, "fsdp_shard_size": 2}, set()),
    "zero": ({"deepspeed": "ds_configs/zero2.json"}, set()),
    "tiles": ({"mlp_tile_tokens": 1024}, {"ZeRO-3", "ZeRO-3 offload"}),
    "eight bits": (
        {"optim": "adamw_8bit"},
        {"ZeRO-1", "ZeRO-2", "ZeRO-2 offload", "ZeRO-3", "ZeRO-3 offload", "FSDP"},
    ),
}


@pytest.mark.parametrize(("settings", "left_out"), MIXED.values(), ids=MIXED)
def test_what_to_write_for_a_choice_is_what_a_run_takes(
    run_file: Any, told: Any, settings: dict[str, Any], left_out: set[str]
) -> None:
    path = run_file(max_length=32, launch={"procs_per_node": 2}, **settings)
    words = (path, "--memory-gib", "4", "--device", "cpu")
    _, found, _ = told(*words, "--json")
    assert set(found["left_out"]) == left_out
    assert not left_out & {choice["name"] for choice in found["choices"]}
    for choice in found["choices"]:
        options = [f"--{text.replace(': ', '=', 1)}" for text in choice["settings"] if text != "the default"]
        args = load_args(options, config=path)
        kept = "DDP" if args.deepspeed is None and not args.fsdp else choice["name"]
        assert (choice["name"], choice["gradient_checkpointing"], choice["lora"]) == (
            kept,
            args.gradient_checkpointing,
            args.lora.enabled,
        )
    if "optim" in settings:
        assert "left out: ZeRO-1, " in told(*words)[1]


BIG = {
    "hidden_size": 4096,
    "intermediate_size": 24576,
    "num_hidden_layers": 3,
    "num_attention_heads": 32,
    "head_dim": 128,
}


def test_the_lowest_stage_that_fits_is_taken(tmp_path: Path) -> None:
    """1.0 billion parameters on four devices of shrinking memory: each way gives way to a later one of the order."""
    args = tiny_args(tmp_path / "x", tmp_path, max_length=64, model_config={**QWEN3, **BIG})
    tokenizer, taken = build_tokenizer(args), []
    machine = Machine("cpu", 1, 4, round((80.0 + 0.6) / 0.95 * GIB), True)
    found = estimate(args, tokenizer, machine, Rows(64, 1.0))
    assert found.recommended is found.choices[0]
    on_devices, offloaded = ("DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3", "FSDP"), ("ZeRO-2 offload", "ZeRO-3 offload")
    order = [
        *((name, False, is_checkpointed) for is_checkpointed in (False, True) for name in on_devices),
        *((name, False, is_checkpointed) for is_checkpointed in (False, True) for name in offloaded),
        *(("DDP", True, is_checkpointed) for is_checkpointed in (False, True)),
    ]
    assert sorted(order) == sorted(map(_key, found.choices))
    for limit in sorted({choice.peak.total_bytes for choice in found.choices}, reverse=True):
        choices = [replace(choice, fits=choice.peak.total_bytes <= limit) for choice in found.choices]
        fitting = {_key(choice) for choice in choices if choice.fits}
        chosen = recommended(choices)
        assert chosen is not None
        assert _key(chosen) == next(key for key in order if key in fitting)
        taken.append(_key(chosen))
    assert [name for name, *_ in taken[:2]] == ["DDP", "ZeRO-1"]
    assert len(set(taken)) >= 4
    assert recommended([replace(choice, fits=False) for choice in choices]) is None


def _key(choice: Choice) -> tuple[str, bool, bool]:
    return choice.sharing.name, choice.is_lora, choice.is_checkpointed


def test_what_the_table_says_of_your_settings_is_what_is_told_of_them_alone(tmp_path: Path) -> None:
    halves = {"param_dtype": "bfloat16", "bf16": True}
    stage3 = {"deepspeed": str(ROOT / "ds_configs/zero3.json")}
    for settings in ({}, {"fsdp": True}, stage3, {"lora": {"r": 4}}, halves, {"optim": "adamw_8bit"}):
        args = tiny_args(tmp_path / "x", tmp_path, max_length=64, model_config=ONE_LAYER, **settings)
        tokenizer, machine, rows = build_tokenizer(args), Machine("cpu", 1, 2, GIB, True), Rows(64, 0.5)
        (yours,) = [choice for choice in estimate(args, tokenizer, machine, rows).choices if choice.is_yours]
        assert yours.peak == own_peak(args, tokenizer, machine, rows)


def test_full_rows_are_as_long_as_the_settings_allow(tmp_path: Path) -> None:
    args, packing = (tiny_args(tmp_path / "x", tmp_path, max_length=100, packing=packing) for packing in (False, True))
    rows = Rows(40, 0.25)
    found = {
        (own.packing, is_flat): full_batch(own, rows, is_flat=is_flat)
        for own in (args, packing)
        for is_flat in (False, True)
    }
    assert {key: tuple(batch.input_ids.shape) for key, batch in found.items()} == {
        (False, False): (2, 40),
        (False, True): (1, 80),
        (True, False): (2, 100),
        (True, True): (1, 160),
    }
    assert [batch.num_trained_tokens for batch in found.values()] == [20, 20, 40, 40]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "0"], "--nodes is '0'; it must be a whole number above 0"),
        (["--memory-gib", "much"], "--memory-gib is 'much'; it must be a number above 0"),
        (["--length", "4096"], "--length is 4096; it must be from 2 to max_length, 2048"),
        (["--trained-share", "1.5"], "--trained-share is 1.5; it must be at most 1"),
        (["--tflops", "1", "--measure"], "--tflops is '1'; it must not be given with --measure"),
        (["--max_lenght", "5"], "max_lenght"),
    ],
)
def test_mistakes_are_told(run_file: Any, told: Any, words: list[str], message: str) -> None:
    code, _, error = told(run_file(), "--device", "cpu", *words)
    assert code == 2
    assert message in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to look at")
@pytest.mark.parametrize("words", [[], ["--memory-gib", "80", "--measure"]])
def test_a_gpu_that_is_not_here_must_be_described(run_file: Any, told: Any, words: list[str]) -> None:
    code, _, error = told(run_file(launch={"gpus_per_node": 8}), *words)
    assert code == 2
    assert "Give the memory of one GPU" in error or "Measure on a machine with the GPU" in error


@pytest.mark.soak
@pytest.mark.ranks  # processes of their own, whose memory is measured
def test_real_runs_of_one_process_and_of_two_ranks_peak_where_the_estimate_says() -> None:
    rows = [f"tiny, {way}" for way in ("full", "LoRA", "ZeRO-1", "ZeRO-2", "ZeRO-3")]
    words = [str(ROOT / "benchmarks" / "estimate.py"), "--only", *rows]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert [row for row in rows if f"{row} " in done.stdout] == rows


def test_a_model_that_takes_no_adapters_is_estimated_without_them(run_file: Any, told: Any) -> None:
    mamba = {"model_type": "mamba", "vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    words = (run_file(model_config=mamba, max_length=32), "--memory-gib", "4", "--device", "cpu")
    code, text, _ = told(*words)
    assert code == 0
    assert "left out: LoRA, since " in text
    _, found, _ = told(*words, "--json")
    assert not any(choice["lora"] for choice in found["choices"])


def test_host_memory_is_told_with_checkpointing_too(run_file: Any, told: Any) -> None:
    settings = {"gradient_checkpointing": True, "activation_offload": True, "max_length": 2048}
    words = (run_file(**settings), "--memory-gib", "4", "--device", "cuda")
    _, found, _ = told(*words, "--json")
    replicated = [each for each in found["choices"] if each["name"] == "DDP" and not each["lora"]]
    bytes_of = {each["gradient_checkpointing"]: each["host_bytes"] for each in replicated}
    assert bytes_of[True] > bytes_of[False] == 0
    row = next(line for line in told(*words)[1].splitlines() if line.startswith("→ DDP"))
    assert 0 < bytes_of[True] / 2**30 < 0.01  # small, and yet not told as nothing
    assert row.endswith(f"  0.00 / {bytes_of[True] / 2**30:.4f}")
