"""The longest row that fits into a given memory, for one rank and for two that share it: `benchmarks/long_rows.py`.

Forward and backward of one document as one row on the CPU (gloo, one thread for each rank, float32). The memory of a
rank is the peak of its resident set during the pass (`VmHWM` of /proc, reset before it) above what it held before its
first pass: weights aside, what a row costs. Before the table is printed it is checked that every size has found the
same loss for the same row.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing

from benchmarks import rounds
from sft.attention import use_document_attention
from sft.batching import collate_flat
from sft.documents import Document
from sft.loss import LossModule
from sft.output_layer import output_layer_of
from sft.sequence_shards import shard_of
from sft.tiling import tile_mlps
from sft.world import SequenceGroup

MODEL = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
}
BUDGET_MIB = 256
STEP = 512
"""Row lengths that are tried are multiples of it."""
NUM_TRAINED = 64


@dataclass(frozen=True)
class Pass:
    """What a forward and backward pass of a row took."""

    num_tokens: int
    mib: float
    """Peak of the rank that needed most."""
    loss: float


def measured(size: int, lengths: Sequence[int], *, saving: bool = False, budget_mib: float = 0.0) -> list[Pass]:
    """Passes of rows of these lengths, shared by `size` ranks.

    Args:
        size: ranks, each a process of its own.
        lengths: tokens.
        saving: with gradient checkpointing and feed-forward blocks in tiles.
        budget_mib: also look for the longest row that fits into it, by bisection; the longest comes last.
    """
    with tempfile.TemporaryDirectory() as folder:
        values = (size, tuple(lengths), saving, budget_mib, folder)
        torch.multiprocessing.spawn(_rank, values, nprocs=size)
        return [Pass(*values) for values in json.loads(Path(folder, "passes.json").read_text())]


def _rank(rank: int, size: int, lengths: tuple[int, ...], saving: bool, budget_mib: float, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder, "store")), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(minutes=5))
    group = SequenceGroup(rank, size, dist.group.WORLD) if size > 1 else SequenceGroup()
    module = _module(saving)
    _run(module, STEP, group)  # libraries, threads and gradients are there from now on
    before = _resident_mib("VmRSS")

    def run(num_tokens: int) -> Pass:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        loss = _run(module, num_tokens, group)
        peak = torch.tensor(_resident_mib("VmHWM") - before)
        dist.all_reduce(peak, dist.ReduceOp.MAX)
        return Pass(num_tokens, float(peak), loss)

    passes = [run(num_tokens) for num_tokens in lengths]
    if budget_mib:
        passes.append(_longest(run, budget_mib))
    if rank == 0:
        values = [(one.num_tokens, one.mib, one.loss) for one in passes]
        Path(folder, "passes.json").write_text(json.dumps(values))
    dist.destroy_process_group()


def _module(saving: bool) -> LossModule:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", **MODEL), dtype=torch.float32)
    use_document_attention(model)
    model.train()
    if saving:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        tile_mlps(model, STEP)
    module = LossModule(model)
    module.output_layer = output_layer_of(model)
    return module


def _run(module: LossModule, num_tokens: int, group: SequenceGroup) -> float:
    ids = np.random.default_rng(num_tokens).integers(0, MODEL["vocab_size"], num_tokens).astype(np.int32)
    trained = np.arange(num_tokens) >= num_tokens - NUM_TRAINED
    loss = module(shard_of(collate_flat([Document(ids, trained)], 0), group))
    loss.backward()
    total = loss.detach().clone()
    dist.all_reduce(total)
    return float(total) / NUM_TRAINED


def _longest(run: Callable[[int], Pass], budget_mib: float) -> Pass:
    """The longest row within the budget: doubled until it is left, then halved in between."""
    best, fits = Pass(0, 0.0, 0.0), 0
    fails = STEP
    while (tried := run(fails)).mib <= budget_mib:
        best, fits, fails = tried, fails, 2 * fails
    while fails - fits > STEP:
        middle = (fits + fails) // (2 * STEP) * STEP
        tried = run(middle)
        if tried.mib <= budget_mib:
            best, fits = tried, middle
        else:
            fails = middle
    return best


def _resident_mib(name: str) -> float:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) / 1024


def main() -> None:
    """Prints the table."""
    rounds.parse_no_options(__doc__)
    lengths = [2048, 4096]
    print(f"| ranks | saving | {' | '.join(f'{n} tokens, MiB' for n in lengths)} | longest row in {BUDGET_MIB} MiB |")
    print("|---|---|---|---|---|")
    losses: dict[int, float] = {}
    for saving in (False, True):
        for size in (1, 2):
            *passes, longest = measured(size, lengths, saving=saving, budget_mib=BUDGET_MIB)
            for one in passes:
                expected = losses.setdefault(one.num_tokens, one.loss)
                assert abs(one.loss - expected) <= 1e-5 * expected, (size, saving, one, expected)
            peaks = " | ".join(f"{one.mib:.0f}" for one in passes)
            print(f"| {size} | {'yes' if saving else 'no'} | {peaks} | {longest.num_tokens} |", flush=True)


if __name__ == "__main__":
    main()
