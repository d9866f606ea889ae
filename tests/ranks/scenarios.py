"""What several processes do together in a test: started by torchrun as `scenarios.py NAME FOLDER`, writes to FOLDER."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[0:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import torch
from counting import counting
from safetensors.torch import save_file
from tiny import tiny_args, write_conversations

import sft.loop as train_loop
from sft.config import ROOT, Args
from sft.dataset import ConversationDataset
from sft.flops import ModelShape
from sft.loop import seed_dropout
from sft.masking import Masker
from sft.model_check import prepare_model
from sft.plan import Plan
from sft.process_end import leave
from sft.row_costs import row_costs
from sft.sequence_shards import shard_of
from sft.sharding import rank_batches
from sft.sources import read_conversations
from sft.step_data import batch_of
from sft.tokenizer import build_tokenizer, pad_token_id
from sft.train import build_engine, train_in_world
from sft.world import World, sequence_group, world_from_env

ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp2": {"fsdp": True},
    **{f"zero{stage}": {"deepspeed": f"ds_configs/zero{stage}.json"} for stage in range(4)},
}
SPLITS = {1: [(8, 1), (2, 4)], 2: [(2, 2)], 4: [(1, 2)]}
"""World size → (micro-batch, accumulation): each makes one optimizer step of 8 documents."""
PACKED_SPLITS = {1: [(4, 1), (1, 4)], 2: [(2, 1), (1, 2)]}
"""The same for 4 packed rows."""


def gradients(folder: Path, world: World) -> None:
    """Saves the whole gradients of one step of 8 unequal documents, for each engine and split."""
    train_file = folder / "train.jsonl"
    for micro_batch, accumulation in SPLITS[world.size]:
        for name in ("ddp", "fsdp2", "zero1", "zero2", "zero3"):
            args = tiny_args(
                train_file,
                folder / "out",
                per_device_train_batch_size=micro_batch,
                gradient_accumulation_steps=accumulation,
                max_grad_norm=1e9,
                **ENGINES[name],
            )
            found = _gradients(args, world)
            if world.is_main:
                save_file(found, folder / f"{name}-{world.size}x{micro_batch}x{accumulation}.safetensors")


def packed(folder: Path, world: World) -> None:
    """Saves the whole gradients of one step of 4 packed rows of weighted documents, for each engine and split."""
    for micro_batch, accumulation in PACKED_SPLITS[world.size]:
        for name in ("ddp", "fsdp2", "zero2"):
            args = tiny_args(
                folder / "weighted.jsonl",
                folder / "out",
                packing=True,
                max_length=96,
                per_device_train_batch_size=micro_batch,
                gradient_accumulation_steps=accumulation,
                max_grad_norm=1e9,
                **ENGINES[name],
            )
            found = _gradients(args, world)
            if world.is_main:
                save_file(found, folder / f"packed-{name}-{world.size}x{micro_batch}x{accumulation}.safetensors")


def packed_runs(folder: Path, world: World) -> None:
    """Two epochs of 5 documents in a few packed rows, on all ranks, with evaluation."""
    for name in ("ddp", "fsdp2", "zero2", "zero3"):
        args = tiny_args(
            folder / "five.jsonl",
            folder / f"packed-run-{name}-{world.size}",
            packing=True,
            max_length=96,
            per_device_train_batch_size=1,
            eval_file=str(folder / "train.jsonl"),
            num_train_epochs=2.0,
            **ENGINES[name],
        )
        train_in_world(args, world)


def sequence(folder: Path, world: World) -> None:
    """For each engine: gradients of one step of 8 documents and a whole run, with two ranks for each row."""
    world = replace(world, sequence=sequence_group(world.rank, 2 if world.size > 1 else 1, 120))
    names = ("ddp",) if world.size == 1 else tuple(ENGINES) if world.size == 2 else ("ddp", "fsdp2", "zero3")
    shared: dict[str, Any] = {"sequence_parallel_size": world.sequence.size}
    for name in names:
        # Not under ZeRO-3, which gathers weights for every tile: ranks have not as many of them.
        memory = {"gradient_checkpointing": True, "mlp_tile_tokens": None if name == "zero3" else 16}
        for label, settings in (("plain", {}), ("saving", memory)):
            args = tiny_args(
                folder / "train.jsonl",
                folder / "out",
                per_device_train_batch_size=2,
                gradient_accumulation_steps=4 // world.data_size,
                max_grad_norm=1e9,
                **shared,
                **settings,
                **ENGINES[name],
            )
            found = _gradients(args, world) if name != "zero0" else {}
            if world.is_main and found:
                save_file(found, folder / f"sequence-{label}-{name}-{world.size}.safetensors")
        args = tiny_args(
            folder / "five.jsonl",
            folder / f"sequence-run-{name}-{world.size}",
            per_device_train_batch_size=2,
            train_batch_size=4,
            eval_file=str(folder / "train.jsonl"),
            num_train_epochs=2.0,
            save_steps=2,
            **shared,
            **ENGINES[name],
        )
        train_in_world(args, world)
        if world.size == 2:
            lora = {"enabled": True, "r": 4, "dropout": 0.1}
            output_dir = str(folder / f"sequence-lora-{name}")
            changes: dict[str, Any] = {"output_dir": output_dir, "lora": lora, "gradient_checkpointing": True}
            train_in_world(replace(args, packing=True, max_length=96, **changes), world)


def _gradients(args: Args, world: World) -> dict[str, torch.Tensor]:
    tokenizer = build_tokenizer(args)
    masker = Masker(tokenizer, pad_token_id(tokenizer))
    data = ConversationDataset(read_conversations(str(args.train_file)), masker, args.max_length)
    _, engine = build_engine(args, tokenizer, [], Path(args.output_dir), world)
    engine.model.train()
    plan = Plan.of(args, len(data), world.size, data.lengths)
    rows = plan.rows.between(0, 0, plan.rows_per_step)
    assert len(rows) == plan.rows_per_step
    costs = row_costs(rows, data.lengths, data.num_trained, ModelShape.of(engine.model))
    size = args.per_device_train_batch_size
    collation = prepare_model(engine, args, world)
    assert collation == "flat"
    assert engine.loss_module.output_layer is not None
    shares = rank_batches(rows, world.data_rank, world.data_size, size, costs, by_length=collation == "padded")
    batches = [shard_of(batch_of(share, data, args, collation), world.sequence) for share in shares]
    (total_weight,) = world.sum(sum(batch.total_weight for batch in batches))
    seed_dropout(0, 1, world.rank)
    for number, batch in enumerate(batches, 1):
        engine.accumulate(batch, total_weight, is_last=number == len(batches))
    return {name: _whole_gradient(parameter) for name, parameter in engine.model.named_parameters()}


def _whole_gradient(parameter: Any) -> torch.Tensor:
    if hasattr(parameter, "_hp_mapping") or hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_get_full_grad

        gradient = safe_get_full_grad(parameter).view(getattr(parameter, "ds_shape", parameter.shape))
    else:
        gradient = parameter.grad
    whole = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return whole.detach().clone().float().contiguous()


def resume(folder: Path, world: World) -> None:
    """For each engine: a run of 2 epochs of 3 steps, and the same run taken up from its checkpoint in the second one,
    also by others."""
    train_file = folder / "train.jsonl"
    engines = ("ddp", "fsdp2", "zero0", "zero1", "zero2", "zero3")
    lora = {"enabled": True, "r": 4, "dropout": 0.1}
    runs = [(name, name, {}) for name in engines]
    runs += [(f"{name}-lora", name, {"lora": lora}) for name in ("ddp", "fsdp2", "zero3")]
    for label, name, settings in runs:
        args = tiny_args(train_file, folder / label, max_steps=6, save_steps=4, **settings, **ENGINES[name])
        _train_noting_rows(args, world)
        _take_up(folder / label, 4, f"{label}-resumed", args, world)
    for saved, taken_up in (("zero3", "ddp"), ("ddp", "zero2"), ("fsdp2", "zero3"), ("zero1", "fsdp2")):
        args = tiny_args(train_file, folder, max_steps=6, save_steps=4, **ENGINES[taken_up])
        _take_up(folder / saved, 4, f"{saved}-then-{taken_up}", args, world)


WORLD_CHAINS = {
    "zero3-ddp-fsdp2": {2: "zero3", 1: "ddp", 4: "fsdp2"},
    **{name: dict.fromkeys((2, 1, 4), name) for name in ("ddp", "fsdp2", "zero3")},
}
"""Name → the engine of each number of ranks: two first, then one, then four."""
WORLD_HOPS = {1: (2, 4), 4: (1, 5)}
"""Number of ranks → (those that it takes up from, the step after which it does)."""


def other_worlds(folder: Path, world: World) -> None:
    """What two ranks saved at step 4 is taken up by one, which saves at step 5, and that by four."""
    before, step = WORLD_HOPS[world.size]
    for name, engines in WORLD_CHAINS.items():
        settings = {"max_steps": 6, "save_steps": 5, "per_device_train_batch_size": 4 // world.size}
        args = tiny_args(folder / "train.jsonl", folder, **settings, **ENGINES[engines[world.size]])
        _take_up(
            folder / (engines[2] if before == 2 else f"worlds-{name}-1"),
            step,
            f"worlds-{name}-{world.size}",
            args,
            world,
        )


def other_engines(folder: Path, world: World) -> None:
    """What ZeRO-3 saved at step 4 is taken up by DDP, which saves at step 5, and that by FSDP2."""
    for source, step, label, engine in (
        ("zero3", 4, "engines-ddp", "ddp"),
        ("engines-ddp", 5, "engines-fsdp2", "fsdp2"),
    ):
        args = tiny_args(folder / "train.jsonl", folder, max_steps=6, save_steps=5, **ENGINES[engine])
        _take_up(folder / source, step, label, args, world)


def hop(folder: Path, world: World) -> None:
    """A run of three epochs of 10 steps; from a step that a file says, taken up from another one."""
    hop = json.loads((folder / "hop.json").read_text())
    settings = {"max_steps": 30, "save_steps": 1, "save_total_limit": 30}
    size = {"per_device_train_batch_size": 4 // world.size}
    args = tiny_args(folder / "few.jsonl", folder / hop["name"], **settings, **size, **ENGINES[hop["engine"]])
    if hop["step"]:
        _take_up(folder / hop["source"], hop["step"], hop["name"], args, world)
    else:
        _train_noting_rows(args, world)


def _take_up(source: Path, step: int, label: str, args: Args, world: World) -> None:
    target = source.parent / label
    if world.is_main:
        name = f"step-{step:08d}"
        shutil.copytree(source / "checkpoints" / name, target / "checkpoints" / name)
        shutil.copy(source / "training_log.json", target)
    world.barrier()
    _train_noting_rows(replace(args, output_dir=str(target)), world)


def _train_noting_rows(args: Args, world: World) -> None:
    """Trains; each rank notes which rows it computes in each step, as it does."""
    original = train_loop.optimizer_step

    def noting(run: Any, step: int, data: Any, *values: Any) -> tuple[float, float]:
        rows = [row for batch in data.documents for row in batch]
        with Path(args.output_dir, f"rows-{world.rank}.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "rows": rows}) + "\n")
        return original(run, step, data, *values)

    train_loop.optimizer_step = noting
    try:
        train_in_world(args, world)
    finally:
        train_loop.optimizer_step = original


def interrupted(folder: Path, world: World) -> None:
    """A run of 20 steps, 5 in an epoch. While a file says so, all its ranks are killed in step 7 by SIGKILL."""
    settings = json.loads((folder / "settings.json").read_text())
    args = tiny_args(folder / "few.jsonl", folder / settings.pop("name"), max_steps=20, save_steps=3, **settings)
    if (folder / "kill").exists():
        original = train_loop.learning_rate_at

        def killed_at_step_7(step: int, *values: Any) -> float:
            if step == 7:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(step, *values)

        train_loop.learning_rate_at = killed_at_step_7
    train_in_world(args, world)


def pretrained(folder: Path, world: World) -> None:
    """Trains a model from a folder with a vocabulary that is too small for the tokenizer, under each engine."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if world.is_main:
        from tiny import QWEN3

        torch.manual_seed(0)
        for label, tied in (("tied", True), ("untied", False)):
            config = AutoConfig.for_model(**{**QWEN3, "vocab_size": 500, "tie_word_embeddings": tied})
            AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder / label)
    world.barrier()
    for name in ("ddp", "fsdp2", "zero1", "zero3"):
        for label in ("tied", "untied"):
            settings = {"model_config": None, "model_name_or_path": str(folder / label), "max_steps": 2}
            output_dir = folder / f"{label}-{name}"
            train_in_world(tiny_args(folder / "train.jsonl", output_dir, **settings, **ENGINES[name]), world)


def uneven(folder: Path, world: World) -> None:
    """An epoch of 5 documents on all ranks, with evaluation: some ranks have nothing to do in a step."""
    for name in ("ddp", "fsdp2", "zero2", "zero3"):
        args = tiny_args(
            folder / "five.jsonl",
            folder / f"uneven-{name}-{world.size}",
            per_device_train_batch_size=1,
            eval_file=str(folder / "train.jsonl"),
            per_device_eval_batch_size=3,
            num_train_epochs=2.0,
            **ENGINES[name],
        )
        train_in_world(args, world)


def tiny_rates(folder: Path, world: World) -> None:
    """One step and five of a learning rate that bfloat16 weights could not follow, for each engine."""
    settings: dict[str, Any] = {"bf16": True, "learning_rate": 1e-8, "save_dtype": "float32"}
    settings |= {"warmup_steps": 0, "lr_scheduler_type": "constant"}
    for name, engine in ENGINES.items():
        for num_steps in (1, 5):
            output_dir = folder / f"tiny-rates-{name}-{num_steps}"
            train_in_world(
                tiny_args(folder / "train.jsonl", output_dir, max_steps=num_steps, **settings, **engine), world
            )


def within_nodes(folder: Path, world: World) -> None:
    """Four ranks as two nodes of two: state that is shared within a node only, run, saved, and taken up by others."""
    config = json.loads((ROOT / "ds_configs" / "zero3_hpz.json").read_text())
    config["zero_optimization"] |= {"zero_hpz_partition_size": 2, "stage3_param_persistence_threshold": 0}
    if world.is_main:
        (folder / "hpz.json").write_text(json.dumps(config))
    world.barrier()
    engines: dict[str, dict[str, Any]] = {
        "ddp": {},
        "hybrid": {"fsdp": True, "fsdp_shard_size": 2},
        "hpz": {"deepspeed": str(folder / "hpz.json")},
    }
    for name, engine in engines.items():
        settings = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 1, **engine}
        args = tiny_args(folder / "train.jsonl", folder / f"nodes-{name}", **settings)
        train_in_world(args, world)
        source, target = folder / f"nodes-{name}", folder / f"nodes-{name}-resumed"
        if world.is_main:
            shutil.copytree(source / "checkpoints" / "step-00000002", target / "checkpoints" / "step-00000002")
            shutil.copy(source / "training_log.json", target)
        world.barrier()
        train_in_world(replace(args, output_dir=str(target)), world)


SPIKE_ENGINES = ("ddp", "zero0", "zero1", "zero3")


def spikes(folder: Path, world: World) -> None:
    """For each engine, a run in whose second epoch a row among others that are alike is a spike."""
    shared: dict[str, Any] = {"skip_loss_spikes": 2.0, "num_train_epochs": 2.0, "per_device_train_batch_size": 1}
    shared |= {"save_steps": 1, "save_total_limit": 100, "lr_scheduler_type": "constant", "warmup_steps": 2}
    for name in SPIKE_ENGINES:
        args = tiny_args(folder / "alike.jsonl", folder / f"spikes-{name}", **shared, **ENGINES[name])
        train_in_world(args, world)


def scale(folder: Path, world: World) -> None:
    """What each rank asks for in runs of 2 and of 4 steps: for each engine on little data, for one on much as well."""
    runs = folder.parent / f"{folder.name}-runs"
    shared: dict[str, Any] = {"dataset_cache_dir": str(folder / "cache"), "dataset_num_proc": 1, "logging_steps": 100}
    for name, data in (("ddp", "few"), ("ddp", "many"), ("zero2", "few")):
        for num_steps in (2, 4):
            label = f"{name}-{world.size}-{num_steps}-{data}"
            settings = {"max_steps": num_steps, "per_device_train_batch_size": 1, **shared, **ENGINES[name]}
            args = tiny_args(folder / f"{data}.jsonl", runs / label, **settings)
            with counting(folder) as counts:
                train_in_world(args, world)
            told = {"engine": name, "world": world.size, "steps": num_steps, "data": data, "rank": world.rank}
            (folder / f"counts-{label}-{world.rank}.json").write_text(json.dumps({**vars(counts), **told}))


SCENARIOS: dict[str, Callable[[Path, World], None]] = {
    "gradients": gradients,
    "packed": packed,
    "packed_runs": packed_runs,
    "resume": resume,
    "other_worlds": other_worlds,
    "other_engines": other_engines,
    "hop": hop,
    "spikes": spikes,
    "interrupted": interrupted,
    "pretrained": pretrained,
    "uneven": uneven,
    "tiny_rates": tiny_rates,
    "sequence": sequence,
    "within_nodes": within_nodes,
    "scale": scale,
}


def prepare(folder: Path) -> None:
    """The data that all scenarios share."""
    write_conversations(folder / "train.jsonl", 11)
    write_conversations(folder / "five.jsonl", 5, seed=1)
    write_conversations(folder / "few.jsonl", 40)
    write_conversations(folder / "many.jsonl", 400)
    usual, odd = (
        {"role": "assistant", "content": text} for text in ("as ever, and ever, and ever", "zqxv jw%k$ vb#j 77")
    )
    rows = [{"messages": [{"role": "user", "content": "which?"}, answer]} for answer in [usual] * 41 + [odd]]
    (folder / "alike.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    weighted = []
    for number, line in enumerate(write_conversations(folder / "weighted.jsonl", 20, seed=2).read_text().splitlines()):
        row = json.loads(line)
        row["messages"][-1]["weight"] = 0.25 * (1 + number % 5)
        weighted.append(json.dumps(row) + "\n")
    (folder / "weighted.jsonl").write_text("".join(weighted))


if __name__ == "__main__":
    torch.set_num_threads(1)
    scenario, target = sys.argv[1], Path(sys.argv[2])
    with world_from_env(120, always_group=True) as this_world:
        SCENARIOS[scenario](target, this_world)
    print(json.dumps({"scenario": scenario, "done": True}))
    leave(0)
