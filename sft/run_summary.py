"""What a run says of itself: its arithmetic before the first step, and its figures after the last."""

from __future__ import annotations

import resource
from typing import Any, get_args

import torch

from sft.checkpoint import RunState
from sft.config import Args
from sft.metering import Phase, StepTimer
from sft.plan import Plan
from sft.world import World


def description(args: Args, plan: Plan, world: World) -> str:
    """The batch arithmetic, before the first step."""
    engine = f"DeepSpeed {args.deepspeed}" if args.deepspeed else "FSDP2" if args.fsdp else "torch"
    accumulation = args.accumulation_steps(world.size)
    rows = f"packed rows of {args.max_length} tokens" if args.packing else "conversations"
    groups = f" in {world.data_size} sequence group(s)" if world.sequence.size > 1 else ""
    return (
        f"{world.size} process(es){groups} × "
        f"{args.per_device_train_batch_size} {rows} × {accumulation} accumulation = "
        f"{plan.rows_per_step} per step; {plan.num_documents} documents, {plan.steps_per_epoch} steps per epoch, "
        f"{plan.num_steps} steps; {engine} on {world.device.type}, peak learning rate {args.peak_learning_rate:g}"
    )


def rank_figures(timer: StepTimer, world: World) -> dict[str, list[float]]:
    """What each rank did in this attempt, in the order of the ranks: `<phase>_s`, its seconds in each phase, and
    `peak_bytes`, the most memory that its tensors had on a GPU, or that the process had on a CPU. A collective."""
    timer.take()
    own = {f"{phase}_s": timer.totals[phase] for phase in get_args(Phase)}
    own["peak_bytes"] = float(_peak_bytes(world.device))
    flat = [value if rank == world.rank else 0.0 for rank in range(world.size) for value in own.values()]
    found = world.sum(*flat)
    return {name: found[number :: len(own)] for number, name in enumerate(own)}


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def summary(
    state: RunState, records: list[dict[str, Any]], ranks: dict[str, list[float]], world: World
) -> dict[str, Any]:
    """The last record of a run.

    Args:
        state: at its end.
        records: what was logged.
        ranks: what `rank_figures` found.
        world: the ranks.
    """
    losses = [record["loss"] for record in records if record["type"] == "train"]
    return {
        "step": state.step,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "best_eval_loss": state.best_eval_loss,
        "num_skipped_steps": state.num_skipped_steps,
        "num_tokens": state.num_tokens,
        "num_trained_tokens": state.num_trained_tokens,
        "tokens_per_s": state.num_tokens / state.elapsed_s if state.elapsed_s else None,
        "elapsed_s": state.elapsed_s,
        "device": world.device.type,
        "ranks": ranks,
    }
