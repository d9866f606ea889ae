"""Packing: documents → rows of a fixed number of tokens, and which rows an optimizer step takes.

Best-fit decreasing (Johnson, 1973), one window of documents at a time: the longest document first, each into the
fullest row that still has room for it. Every document of a window finds its place in that window, so that none waits
for a better one. Lengths are whole numbers up to the row's capacity, so that not documents are placed but numbers of
documents of one length into numbers of rows with the same room left: the work grows with the number of lengths.

How many rows a window gives depends on the lengths in it alone, not on their order. Windows keep their documents in
every epoch (`sharding.Windows`), so that all epochs have the same number of rows, which is known before the first
step from one pass over the lengths. Within a window, documents of one length are exchanged and rows shuffled anew in
every epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sft.sharding import WINDOW, Windows, steps_per_epoch

_KEPT_WINDOWS = 2


@dataclass(frozen=True)
class Rows:
    """Rows of documents."""

    documents: NDArray[np.int64]
    """Document numbers, row after row."""
    starts: NDArray[np.int64]
    """Where each row begins in `documents`, and the end."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> NDArray[np.int64]:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self.documents[self.starts[row] : self.starts[row + 1]]


class TrainingRows:
    """The rows of every epoch, packed or one document each; any step is computed without those before it.

    Only two windows are in memory at a time.
    """

    def __init__(
        self,
        num_documents: int,
        seed: int,
        lengths: ArrayLike | None = None,
        capacity: int | None = None,
        window: int = WINDOW,
    ) -> None:
        """
        Args:
            num_documents: of an epoch.
            seed: of the order.
            lengths: tokens of each document, needed with a capacity; may be memory-mapped.
            capacity: tokens of a packed row; without it a row is one document.
            window: documents that are shuffled and packed together.
        """
        self._windows = Windows(num_documents, seed, window)
        self._seed = seed
        self._lengths = None if lengths is None else np.asanyarray(lengths)
        self._capacity = capacity
        self._counts: dict[int, int] = {}
        self._kept: dict[tuple[int, int], Rows] = {}

    @cached_property
    def num_rows(self) -> int:
        """Rows of an epoch: the same in each. Packs every window once."""
        return sum(self._num_rows(window) for window in range(self._windows.count))

    def between(self, epoch: int, start: int, stop: int) -> list[list[int]]:
        """The documents of an epoch's rows from `start` until before `stop`, or its end."""
        return [row.tolist() for row in self._between(epoch, start, stop)]

    def step(self, step: int, rows_per_step: int) -> list[list[int]]:
        """The rows of the optimizer step `step`, counted from 0 over all epochs, over all ranks."""
        epoch, step_in_epoch = divmod(step, steps_per_epoch(self.num_rows, rows_per_step))
        start = step_in_epoch * rows_per_step
        return self.between(epoch, start, start + rows_per_step)

    def _between(self, epoch: int, start: int, stop: int) -> Iterator[NDArray[np.int64]]:
        first = 0
        for window in self._windows.order(epoch):
            if first >= stop:
                return
            num_rows = self._num_rows(window)
            if first + num_rows > start:
                rows = self._rows(epoch, window)
                yield from (rows[row] for row in range(max(start - first, 0), min(stop - first, num_rows)))
            first += num_rows

    def _num_rows(self, window: int) -> int:
        if self._capacity is None:
            return self._windows.num_members(window)
        if window not in self._counts:
            lengths = self._lengths_of(self._windows.members(window))
            self._counts[window] = place(_histogram(lengths, self._capacity), self._capacity)[0]
        return self._counts[window]

    def _rows(self, epoch: int, window: int) -> Rows:
        if (epoch, window) not in self._kept:
            documents = self._windows.shuffled(epoch, window)
            if self._capacity is None:
                rows = Rows(documents, np.arange(len(documents) + 1))
            else:
                packed = pack(self._lengths_of(documents), self._capacity)
                order = np.random.default_rng([self._seed, epoch, window, 1]).permutation(len(packed))
                rows = _reordered(Rows(documents[packed.documents], packed.starts), order)
                self._counts[window] = len(rows)
            while len(self._kept) >= _KEPT_WINDOWS:
                self._kept.pop(next(iter(self._kept)))
            self._kept[epoch, window] = rows
        return self._kept[epoch, window]

    def _lengths_of(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._lengths is None:
            raise ValueError("lengths is None; it must be given with a capacity. Pass the documents' lengths.")
        return self._lengths[documents]


def pack(lengths: ArrayLike, capacity: int) -> Rows:
    """Rows of at most `capacity` tokens that hold each document once, by its place in `lengths`.

    Args:
        lengths: tokens of each document, from 1 to `capacity`. Those of one length are placed in the order given.
        capacity: tokens of a row.

    Raises:
        ValueError: a length is not from 1 to `capacity`.
    """
    tokens = np.asarray(lengths)
    num_rows, taken = place(_histogram(tokens, capacity), capacity)
    shorter = (capacity - tokens).astype(np.uint16 if capacity < 1 << 16 else np.uint32)
    documents = np.argsort(shorter, kind="stable")  # for 16 bits a radix sort
    order = np.argsort(taken.astype(np.uint16 if num_rows < 1 << 16 else np.uint32), kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(taken, minlength=num_rows))])
    return Rows(documents[order], starts)


def place(histogram: NDArray[np.int64], capacity: int) -> tuple[int, NDArray[np.int64]]:
    """(number of rows, row of each document from the longest to the shortest), by best fit.

    Args:
        histogram: number of documents of each length, from 0 to `capacity`.
        capacity: tokens of a row.
    """
    rooms = _Rooms(capacity)
    taken, times = list[int](), list[int]()
    num_rows = 0
    for length in np.flatnonzero(histogram)[::-1].tolist():
        left = int(histogram[length])
        while left:
            room = rooms.smallest_from(length)
            # A row with room for several is filled with them: after the first it is the best fit for the next.
            together = (room or capacity) // length
            num_wanted, together = (left // together, together) if left >= together else (1, left)
            if room:
                rows = rooms.take(room, num_wanted)
            else:
                room = capacity
                rows = list(range(num_rows, num_rows + num_wanted))
                num_rows += num_wanted
            taken += rows
            times += [together] * len(rows)
            left -= together * len(rows)
            rooms.put(room - together * length, rows)
    return num_rows, np.repeat(np.array(taken, dtype=np.int64), times)


class _Rooms:
    """Open rows by the room that they have left, and a bit for each room that some row has, in words of 256 bits."""

    def __init__(self, capacity: int) -> None:
        self._rows: list[list[int]] = [[] for _ in range(capacity + 1)]
        self._words = [0] * ((capacity >> 8) + 1)
        self._has_word = 0

    def smallest_from(self, length: int) -> int:
        """The smallest room not below `length` that some row has, or 0."""
        number = length >> 8
        word = self._words[number] >> (length & 255)
        if word:
            return length + (word & -word).bit_length() - 1
        above = self._has_word >> (number + 1)
        if not above:
            return 0
        number += (above & -above).bit_length()
        word = self._words[number]
        return (number << 8) + (word & -word).bit_length() - 1

    def take(self, room: int, num_wanted: int) -> list[int]:
        """Rows with this room, at most so many."""
        rows = self._rows[room]
        taken = rows[-num_wanted:]
        del rows[-num_wanted:]
        if not rows:
            self._words[room >> 8] ^= 1 << (room & 255)
            if not self._words[room >> 8]:
                self._has_word ^= 1 << (room >> 8)
        return taken

    def put(self, room: int, rows: list[int]) -> None:
        """Gives rows back with the room that they have now."""
        if room:
            self._rows[room] += rows
            self._words[room >> 8] |= 1 << (room & 255)
            self._has_word |= 1 << (room >> 8)


def _histogram(lengths: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= capacity:
        wrong = int(lengths.min() if lengths.min() < 1 else lengths.max())
        raise ValueError(f"a length is {wrong}; it must be from 1 to {capacity}. Truncate the documents first.")
    return np.bincount(lengths, minlength=capacity + 1)


def _reordered(rows: Rows, order: NDArray[np.int64]) -> Rows:
    sizes = np.diff(rows.starts)[order]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    places = np.repeat(rows.starts[:-1][order] - starts[:-1], sizes) + np.arange(starts[-1])
    return Rows(rows.documents[places], starts)
