"""Which documents come when, and which rank computes what: pure functions of (seed, epoch, step, rank, world).

The documents are dealt into windows of about 100,000, once and for all, by a keyed bijection of their numbers: what a
window holds is computed for that window alone, so that ten million documents cost no more memory or time before the
first step than a hundred thousand. In every epoch the windows come in a new order and each is shuffled anew. A data
set of one window is thus shuffled as a whole; in a larger one a document meets others of its own window more often.

Step s takes the next `rows_per_step` rows of the epoch, whatever the world: the same rows are in the same step for
every split into ranks, micro-batches and accumulation. The last step of an epoch is shorter if the rows do not divide;
no row is dropped, none is seen twice.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

WINDOW = 100_000
"""Documents that are shuffled, and packed, together."""

_SWAPPED = 128
"""Shares of more items are even without swapping, and comparing every pair would take long."""

_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Windows:
    """The documents in windows of nearly equal size."""

    num_documents: int
    seed: int
    size: int = WINDOW

    @property
    def count(self) -> int:
        """Windows of an epoch."""
        return math.ceil(self.num_documents / self.size)

    def order(self, epoch: int) -> list[int]:
        """The windows in the order in which the epoch takes them."""
        return [int(window) for window in np.random.default_rng([self.seed, epoch]).permutation(self.count)]

    def num_members(self, window: int) -> int:
        """Documents of a window."""
        first, last = self._bounds(window)
        return last - first

    def members(self, window: int) -> NDArray[np.int64]:
        """The documents of a window, in the same order for every epoch."""
        places = np.arange(*self._bounds(window))
        return places if self.count == 1 else _scattered(places, self.num_documents, self.seed)

    def shuffled(self, epoch: int, window: int) -> NDArray[np.int64]:
        """The documents of a window in the epoch's order."""
        return np.random.default_rng([self.seed, epoch, window]).permutation(self.members(window))

    def _bounds(self, window: int) -> tuple[int, int]:
        return window * self.num_documents // self.count, (window + 1) * self.num_documents // self.count


def _scattered(places: NDArray[np.int64], num_places: int, seed: int) -> NDArray[np.int64]:
    """A permutation of range(num_places), computed for some places alone.

    Rounds of odd multiplication and xor-shift, each a bijection of b-bit numbers, where 2**b is the first power of two
    that is not below `num_places`; what falls outside goes through again until it falls inside (cycle walking), at
    most twice as often as not on average.
    """
    bits = max(1, (num_places - 1).bit_length())
    mask, shift = np.uint64((1 << bits) - 1), np.uint64((bits + 1) // 2)
    keys = np.random.default_rng([seed, bits]).integers(0, 1 << 63, size=(4, 2), dtype=np.uint64)

    def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        for factor, offset in keys:
            values = (values * (factor | np.uint64(1)) + offset) & mask
            values ^= values >> shift
        return values

    found = mixed(places.astype(np.uint64))
    outside = np.flatnonzero(found >= num_places)
    while len(outside):
        found[outside] = mixed(found[outside])
        outside = outside[found[outside] >= num_places]
    return found.astype(np.int64)


def steps_per_epoch(num_rows: int, rows_per_step: int) -> int:
    """Optimizer steps that one epoch takes."""
    return math.ceil(num_rows / rows_per_step)


def rank_batches(
    rows: Sequence[_Row],
    rank: int,
    world_size: int,
    batch_size: int,
    costs: ArrayLike | None = None,
    *,
    by_length: bool = False,
) -> list[list[_Row]]:
    """The micro-batches of one rank. All ranks get the same number of them, so that collectives meet; the last ones
    are shorter or empty where the rows do not divide.

    Args:
        rows: those of the whole step.
        rank: this one.
        world_size: ranks.
        batch_size: rows of a micro-batch at most.
        costs: of each row; the ranks get shares that cost nearly the same, the dearest micro-batches first, so that
            a run that does not fit into memory ends in its first steps.
        by_length: rows of like cost come into the same micro-batch, for rows that are padded to the longest.
    """
    cost = np.ones(len(rows)) if costs is None else np.asarray(costs, dtype=np.float64)
    num_batches = math.ceil(len(rows) / (world_size * batch_size))
    order = np.argsort(-cost, kind="stable")
    if by_length:
        groups = np.array_split(order, world_size * num_batches)
        share = balanced([float(cost[group].sum()) for group in groups], world_size)[rank]
        return [[rows[int(place)] for place in groups[number]] for number in share]
    own = balanced(cost, world_size)[rank]
    return [[rows[place] for place in own[start * batch_size :][:batch_size]] for start in range(num_batches)]


def balanced(costs: ArrayLike, num_shares: int) -> list[list[int]]:
    """Numbers of items in shares of nearly equal cost, none larger than it must be, each share's dearest first.

    Longest processing time first (Graham, 1969) under a limit on the size of a share; then items are swapped between
    the dearest share and the others as long as that makes the dearest cheaper.
    """
    given = np.asarray(costs, dtype=np.float64)
    limit = math.ceil(len(given) / num_shares)
    cost = np.zeros(limit * num_shares)  # empty places are items that cost nothing
    cost[: len(given)] = given
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    heap = [(0.0, share) for share in range(num_shares)]
    for item in np.argsort(-cost, kind="stable").tolist():
        load, share = heap[0]
        shares[share].append(item)
        if len(shares[share]) < limit:
            heapq.heapreplace(heap, (load + cost[item], share))
        else:
            heapq.heappop(heap)
    if num_shares > 1 and limit <= _SWAPPED:
        _swap(cost, shares)
    return [sorted((n for n in share if n < len(given)), key=lambda item: (-cost[item], item)) for share in shares]


def _swap(cost: NDArray[np.float64], shares: list[list[int]]) -> None:
    """Swaps items between the dearest share and the cheapest that can help, until none can."""
    loads = np.array([cost[share].sum() for share in shares])
    for _ in range(8 * len(shares)):
        top = int(loads.argmax())
        for other in np.argsort(loads, kind="stable").tolist():
            gap = float(loads[top] - loads[other])
            if gap <= 1e-9 * loads[top]:
                return
            gains = cost[shares[top]][:, None] - cost[shares[other]]
            helps = (gains > 1e-6 * gap) & (gains < (1 - 1e-6) * gap)
            if helps.any():
                distance = np.where(helps, np.abs(gains - gap / 2), np.inf)
                mine, its = divmod(int(distance.argmin()), gains.shape[1])
                shares[top][mine], shares[other][its] = shares[other][its], shares[top][mine]
                loads[top] -= gains[mine, its]
                loads[other] += gains[mine, its]
                break
        else:
            return
