"""Evaluation: the loss on held-out conversations, and what follows from it."""

from __future__ import annotations

from dataclasses import replace

import torch

from sft.batching import collate_flat
from sft.checkpoint import RunState
from sft.config import Args
from sft.dataset import ConversationDataset
from sft.engine import Engine
from sft.model_check import Collation
from sft.sequence_shards import shard_of
from sft.sharding import rank_batches
from sft.world import World

BATCHES_BETWEEN_QUESTIONS = 8
"""How many batches of an evaluation pass before the ranks ask each other again whether to stop."""


def evaluate(
    engine: Engine,
    data: ConversationDataset,
    args: Args,
    world: World,
    collation: Collation = "padded",
    step: int = 0,
) -> tuple[float, int] | None:
    """(weighted mean loss over all trained tokens, number of those tokens): the same for any world or batch. None where
    the ranks were asked to stop before the end."""
    engine.model.eval()
    loss_sum, num_trained_tokens, total_weight = torch.zeros((), device=world.device, dtype=torch.float64), 0, 0.0
    size = args.per_device_eval_batch_size
    shares = rank_batches(range(len(data)), world.data_rank, world.data_size, size, data.lengths, by_length=True)
    is_stopped = False
    for number, share in enumerate(shares, 1):
        world.heartbeat.beat("evaluation", step)
        is_flat = collation == "flat"
        whole = collate_flat([data[document] for document in share], 0) if is_flat else data.batch(share)
        batch = shard_of(whole, world.sequence).to(world.device)
        loss_sum += engine.evaluate(batch).double()
        num_trained_tokens += batch.num_trained_tokens
        total_weight += batch.total_weight
        if number % BATCHES_BETWEEN_QUESTIONS == 0 and world.any(world.heartbeat.stop_reason is not None):
            is_stopped = True
            break
    engine.model.train()
    if is_stopped:
        return None
    loss, count, weight = world.sum(float(loss_sum), num_trained_tokens, total_weight)
    return loss / weight, int(count)


def after_evaluation(state: RunState, eval_loss: float) -> tuple[RunState, bool]:
    """The state with the best evaluation so far, and whether this is it."""
    if state.best_eval_loss is None or eval_loss < state.best_eval_loss:
        return replace(state, best_eval_loss=eval_loss, best_step=state.step, num_evals_since_best=0), True
    return replace(state, num_evals_since_best=state.num_evals_since_best + 1), False
