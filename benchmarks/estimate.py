"""Estimated against measured peaks of memory: `python benchmarks/estimate.py [--only ROW …] [--keep-freed]`.

Each row is a run of its own: the project's engine takes three optimizer steps of full micro-batches on the CPU, with
one process or with two under torchrun. Measured is the peak of the resident set (VmHWM, set back through
/proc/self/clear_refs) over the second and third step, less the resident set before the model is built, by the rank that
has most. Before that, a small model has gone through the same engine: what libraries load and what the matrix library
sets aside once is not a model's memory. The C allocator is told to return what is freed
(MALLOC_MMAP_THRESHOLD_=131072): otherwise the resident set shows what lies in pieces beside what is held. With
`--keep-freed` it keeps it, as it does when training on a CPU (docs/decisions/2026-11-21-allocator.md).

The last columns are the time of the fastest step and the estimate from this process's own matmul rate. The script ends
with code 1 if a peak is off by more than a tenth.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MIB = 2**20
LIMIT = 0.10
TOKENIZER = str(ROOT / "sft" / "quickstart" / "tokenizer")
COMMON = {"model_type": "qwen3", "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 2048}
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "head_dim": 32,
        "vocab_size": 16_000,
    },
    "small": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "head_dim": 64,
        "vocab_size": 32_000,
    },
}
WARM_UP = {"hidden_size": 1024, "intermediate_size": 1024, "num_hidden_layers": 1, "head_dim": 128, "vocab_size": 1024}
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "full": (1, {}),
    "full, checkpointing": (1, {"gradient_checkpointing": True}),
    "full, bf16": (1, {"bf16": True}),
    "full, bf16 parameters": (1, {"bf16": True, "param_dtype": "bfloat16"}),
    **({"full, AdamW in eight bits": (1, {"optim": "adamw_8bit"})} if find_spec("bitsandbytes") else {}),
    "LoRA": (1, {"lora": {"r": 16}}),
    "LoRA, bf16 parameters": (1, {"lora": {"r": 16}, "bf16": True, "param_dtype": "bfloat16"}),
    "DDP": (2, {}),
    "DDP, bf16 parameters": (2, {"bf16": True, "param_dtype": "bfloat16"}),
    "DDP, shared rows": (2, {"sequence_parallel_size": 2, "per_device_train_batch_size": 16}),
    "full, every second layer checkpointed": (1, {"gradient_checkpointing": True, "gradient_checkpointing_every": 2}),
    "FSDP": (2, {"fsdp": True}),
    **{f"ZeRO-{stage}": (2, {"deepspeed": str(ROOT / f"ds_configs/zero{stage}.json")}) for stage in (1, 2, 3)},
    **{
        f"ZeRO-{stage}, bf16": (2, {"deepspeed": str(ROOT / f"ds_configs/zero{stage}.json"), "bf16": True})
        for stage in (1, 2, 3)
    },
    **{
        f"ZeRO-{stage}, accumulation": (
            2,
            {"deepspeed": str(ROOT / f"ds_configs/zero{stage}.json"), "gradient_accumulation_steps": 2},
        )
        for stage in (1, 2)
    },
    "FSDP, accumulation": (2, {"fsdp": True, "gradient_accumulation_steps": 2}),
    **{
        f"ZeRO-0, {name}": (1, {"deepspeed": str(ROOT / "ds_configs/zero0.json"), **chosen})
        for name, chosen in (("bf16", {"bf16": True}), ("accumulation", {"gradient_accumulation_steps": 2}))
    },
}
"""Name → (processes, settings)."""
NUM_STEPS = 3
LENGTH = 256


def settings(model: dict[str, Any], way: dict[str, Any]) -> Any:
    """The settings of a run; no file of them is read."""
    from sft.config import Args

    config = {**COMMON, **model, "tie_word_embeddings": True}
    defaults = {"model_config": config, "tokenizer_name": TOKENIZER, "train_file": "-", "bf16": False}
    return Args(**{**defaults, "max_length": LENGTH, "per_device_train_batch_size": 4, **way})


def kib(key: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


def steps(args: Any, tokenizer: Any, world: Any) -> tuple[int, float]:
    """(peak in bytes above the resident set before, seconds of the fastest step)."""
    from sft.estimate import Rows, full_batch
    from sft.model_check import prepare_model
    from sft.sequence_shards import shard_of
    from sft.train import build_engine
    from sft.world import StepTotals

    gc.collect()
    before = kib("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        _, engine = build_engine(args, tokenizer, [], Path(folder), world)
    is_flat = prepare_model(engine, args, world) == "flat"
    engine.model.train()
    batch = shard_of(full_batch(args, Rows(LENGTH, 1.0), is_flat=is_flat), world.sequence).to(world.device)
    accumulation, totals = args.accumulation_steps(world.size), StepTotals(world)
    fastest = float("inf")
    for step in range(NUM_STEPS):
        if step == 1:
            Path("/proc/self/clear_refs").write_text("5")
        started = time.perf_counter()
        weight = world.sum(batch.total_weight)[0] * accumulation
        for number in range(accumulation):
            loss_sum = engine.accumulate(batch, weight, is_last=number == accumulation - 1)
        engine.step(1e-4, totals.add_up(loss_sum) / weight)
        fastest = min(fastest, time.perf_counter() - started)
    return kib("VmHWM") - before, fastest


def child(model: str, way: str, threads: int, *, keeps_freed: bool) -> None:
    """One run; rank 0 prints the result as JSON."""
    import torch

    from sft.allocator import keep_freed_memory
    from sft.matmul_rate import measured_flops_per_s
    from sft.tokenizer import build_tokenizer
    from sft.world import world_from_env

    torch.set_num_threads(threads)
    if keeps_freed:
        assert keep_freed_memory(os.environ)
    args = settings(MODELS[model], WAYS[way][1])
    tokenizer = build_tokenizer(args)
    needs_group = args.deepspeed is not None or args.fsdp
    with world_from_env(600, always_group=needs_group, sequence_parallel_size=args.sequence_parallel_size) as world:
        steps(settings(WARM_UP, WAYS[way][1]), tokenizer, world)
        rate = measured_flops_per_s(world.device, bf16=bool(args.bf16))
        found, seconds = steps(args, tokenizer, world)
        most = max(world.sum(*(found if rank == world.rank else 0 for rank in range(world.size))))
        if world.is_main:
            print(json.dumps({"peak": most, "seconds": seconds, "rate": rate}), flush=True)


def measured(model: str, way: str, threads: int, *, keeps_freed: bool) -> dict[str, float]:
    """What a run measured."""
    words = [str(Path(__file__).resolve()), "--child", model, way, "--threads", str(threads)]
    words += ["--keep-freed"] if keeps_freed else []
    processes = WAYS[way][0]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        words = [*launcher, *words]
    settled = {} if keeps_freed else {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    done = subprocess.run(
        [sys.executable, *words], env={**os.environ, **settled}, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{model}, {way}: {done.stderr[-3000:]}")
    return dict(json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{"))))


def main() -> int:
    """Prints the table; 1 if an estimate is off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="ROW", nargs="+", help="these rows, such as 'tiny, ZeRO-2'")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep-freed", action="store_true", help="with the allocator as training has it")
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    if options.child:
        child(*options.child, options.threads, keeps_freed=options.keep_freed)
        return 0
    import torch

    from sft.estimate import USUAL_MFU, Machine, Rows, own_peak, own_step_time
    from sft.tokenizer import build_tokenizer
    from sft.world import has_bf16

    is_good = True
    print(f"{'run':<30}{'processes':>10}{'measured':>10}{'estimated':>10}{'off':>8}{'step s':>9}{'estimated':>10}")
    for model, sizes in MODELS.items():
        for way, (processes, chosen) in WAYS.items():
            if options.only and f"{model}, {way}" not in options.only:
                continue
            found = measured(model, way, options.threads, keeps_freed=options.keep_freed)
            args = settings(sizes, chosen)
            emulates = not has_bf16(torch.device("cpu"))
            machine = Machine("cpu", 1, processes, 2**40, bool(args.bf16), found["rate"], emulates)
            tokenizer, rows = build_tokenizer(args), Rows(LENGTH, 1.0)
            expected = own_peak(args, tokenizer, machine, rows).total_bytes
            seconds = own_step_time(args, tokenizer, machine, rows).usual_s
            off = expected / found["peak"] - 1
            is_good = is_good and abs(off) <= LIMIT
            peaks = f"{found['peak'] / MIB:>8.0f} M{expected / MIB:>8.0f} M{off:>8.1%}"
            print(
                f"{f'{model}, {way}':<30}{processes:>10}{peaks}{found['seconds']:>9.2f}{seconds:>10.2f}",
                flush=True,
            )
    print(f"estimated seconds: at {USUAL_MFU['cpu']:.0%} of the matmul rate that the run measured")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
