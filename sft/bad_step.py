"""Where a loss or gradient that is no number comes from: the ranks whose own loss it was, and the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sft.dataset import ConversationDataset
from sft.world import World

MAX_NAMED = 8
"""Rows that are named for each rank."""


def origin(losses: Sequence[float], documents: Sequence[Sequence[int]], data: ConversationDataset, world: World) -> str:
    """In words, the same on every rank (a collective).

    Args:
        losses: of this rank's micro-batches.
        documents: the documents of each.
        data: whose documents these are.
        world: the ranks.
    """
    is_bad = [not math.isfinite(loss) for loss in losses]
    # Where every loss is a number, a gradient has overflowed: any row may be the cause.
    numbers = [
        number for bad, batch in zip(is_bad, documents, strict=True) if bad or not any(is_bad) for number in batch
    ]
    told = [0.0] * (world.size * (MAX_NAMED + 2))
    first = world.rank * (MAX_NAMED + 2)
    own = [float(any(is_bad)), float(len(numbers)), *(number + 1.0 for number in numbers[:MAX_NAMED])]
    told[first : first + len(own)] = own
    told = world.sum(*told)
    tables = [told[rank * (MAX_NAMED + 2) :][: MAX_NAMED + 2] for rank in range(world.size)]
    guilty = [rank for rank in range(world.size) if tables[rank][0]]
    if not guilty:
        rows = "; ".join(_rows(tables[rank], data) for rank in range(world.size))
        return f"Each rank's own loss is finite: a gradient overflowed. Rows of this step: {rows}."
    return " ".join(f"It arose on rank {rank}, from {_rows(tables[rank], data)}." for rank in guilty)


def _rows(table: Sequence[float], data: ConversationDataset) -> str:
    named = [data.place(int(number) - 1) for number in table[2:] if number]
    more = int(table[1]) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")
