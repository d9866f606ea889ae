"""A row's pieces: which of its tokens a rank of a sequence group computes. Pure."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from sft.attention import Layout
from sft.batching import IGNORED_LABEL, Batch
from sft.world import SequenceGroup


def shard_of(batch: Batch, group: SequenceGroup) -> Batch:
    """This rank's piece of a batch of one row: as many tokens as each rank of its group has, in the row's order.

    The row is filled up so that it divides, with a document of its own. What belongs to a token stays with it: its
    place in its document, its loss and its share of the counts. The last token of a piece predicts the first of the
    next, so that labels reach one token further. The layout is of the whole row, which attention brings together.

    Args:
        batch: the whole one; every rank of the group has the same.
        group: the ranks that share it.
    """
    if group.size == 1:
        return batch
    layout = batch.layout
    if layout is None or batch.position_ids is None or batch.predicting is None:
        return batch
    num_tokens = batch.input_ids.shape[1]
    num_own = -(-num_tokens // group.size)
    filled = num_own * group.size - num_tokens
    start, stop = group.rank * num_own, (group.rank + 1) * num_own

    def piece(row: Tensor, fill: float, more: int = 0) -> Tensor:
        return functional.pad(row, (0, filled + more), value=fill)[:, start : stop + more].contiguous()

    places = functional.pad(batch.position_ids, (0, filled))
    places[:, num_tokens:] = torch.arange(filled)
    weights = None if batch.label_weights is None else piece(batch.label_weights, 0.0, 1)
    named = batch.predicting if batch.num_trained_tokens else batch.predicting[:0]
    found = named[(named >= start) & (named < stop)] - start
    num_trained = len(found)
    return replace(
        batch,
        input_ids=piece(batch.input_ids, 0),
        labels=piece(batch.labels, IGNORED_LABEL, 1),
        position_ids=places[:, start:stop],
        label_weights=weights,
        predicting=found if num_trained else torch.zeros(1, dtype=torch.int64),
        layout=Layout.of([*layout.lengths, *([filled] if filled else [])], group),
        num_tokens=batch.num_tokens * (group.rank + 1) // group.size - batch.num_tokens * group.rank // group.size,
        num_trained_tokens=num_trained,
        total_weight=float(num_trained if weights is None else weights.flatten()[found + 1].double().sum()),
    )
