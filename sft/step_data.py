"""What each optimizer step computes: its rows, shared out to ranks and made into micro-batches."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sft.batching import Batch, collate_flat, collate_packed
from sft.config import Args
from sft.dataset import ConversationDataset
from sft.flops import ModelShape
from sft.model_check import Collation
from sft.plan import Plan
from sft.row_costs import row_costs
from sft.sequence_shards import shard_of
from sft.sharding import rank_batches
from sft.world import World


@dataclass(frozen=True)
class StepData:
    """What an optimizer step computes: this rank's micro-batches, and what every rank's have in all."""

    batches: list[Batch]
    num_tokens: int
    num_trained_tokens: int
    total_weight: float
    """By which the loss is divided."""
    own_slots: int
    """Tokens that this rank computes, with padding."""
    own_squares: int
    """Sum of the squared lengths of the documents that it computes, by which attention grows."""
    own_beyond: int
    """The same of what they have beyond the model's window."""
    documents: list[list[int]]
    """Those of each of this rank's micro-batches, by their numbers."""


def step_data(
    steps: Iterable[int],
    data: ConversationDataset,
    args: Args,
    plan: Plan,
    world: World,
    collation: Collation,
    shape: ModelShape,
) -> Generator[StepData]:
    """What each of these optimizer steps computes, on the CPU, ready to be copied to the device.

    The counts of all ranks come from the data's columns, which every rank has: no collective is needed for them.
    `shape` is the model's: what a row costs depends on it.
    """
    lengths, num_trained, total_weights = data.lengths, data.num_trained, data.total_weights
    size = args.per_device_train_batch_size
    for step in steps:
        rows = plan.rows.step(step - 1, plan.rows_per_step)
        costs = row_costs(rows, lengths, num_trained, shape, args.recomputed_share)
        shares = rank_batches(rows, world.data_rank, world.data_size, size, costs, by_length=collation == "padded")
        documents = [document for row in rows for document in row]
        batches = [shard_of(batch_of(share, data, args, collation), world.sequence) for share in shares]
        pairs = list(zip(batches, shares, strict=True))
        yield StepData(
            [batch.for_copies_to(world.device) for batch in batches],
            int(lengths[documents].sum(dtype=np.int64)),
            int(num_trained[documents].sum(dtype=np.int64)),
            float(total_weights[documents].sum()),
            sum(batch.input_ids.numel() for batch in batches),
            sum(sum_of_squares(batch, share, lengths) for batch, share in pairs),
            sum(sum_of_squares(batch, share, lengths, shape.window) for batch, share in pairs) if shape.window else 0,
            [[document for row in share for document in row] for share in shares],
        )


def sum_of_squares(batch: Batch, rows: Sequence[Sequence[int]], lengths: NDArray[np.int32], beyond: int = 0) -> int:
    """Sum of the squared lengths of a batch's documents, or this rank's part of it where ranks share their tokens; what
    is left out of the documents does not count, nor so many of their tokens."""
    documents = [document for row in rows for document in row]
    computed = batch.layout.without_padding().lengths if batch.layout is not None else lengths[documents]
    found = np.maximum(np.array(computed, dtype=np.int64) - beyond, 0)
    return int(found @ found) // (batch.layout.group.size if batch.layout is not None else 1)


def batch_of(rows: Sequence[Sequence[int]], data: ConversationDataset, args: Args, collation: Collation) -> Batch:
    """The batch of rows of document numbers, as the model takes them."""
    if collation == "padded":
        return data.batch([document for row in rows for document in row])
    # No document sees the padding, so that any token will do.
    if collation == "flat":
        return collate_flat([data[document] for row in rows for document in row], 0, args.row_capacity)
    return collate_packed([[data[document] for document in row] for row in rows], 0, args.max_length)
