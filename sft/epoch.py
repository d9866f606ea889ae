"""What one epoch means: steps, tokens and padding, from the lengths of the documents alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from sft.config import Args
from sft.packing import place
from sft.sharding import WINDOW, steps_per_epoch

_SAMPLED_STEPS = 400


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data."""

    num_processes: int
    rows_per_step: int
    documents: int
    """With those that are seen several times."""
    tokens: int
    steps: int
    padding: float
    """Share of the computed tokens that is padding, where each row holds one document; estimated from random steps."""
    packed_steps: int
    """With `packing`; exact for one window of documents, else from windows of average lengths."""
    packed_fill: float
    """How full packed rows are."""


def epoch_of(sources: Iterable[tuple[Mapping[int, int], float]], args: Args, num_processes: int) -> Epoch:
    """The epoch of these sources.

    Args:
        sources: (documents of each length, how often they are seen in an epoch).
        args: batch sizes and `max_length`.
        num_processes: ranks.

    Raises:
        SettingsError: `train_batch_size` cannot be shared out.
    """
    seen: Counter[int] = Counter()
    for lengths, times in sources:
        for length, number in lengths.items():
            seen[length] += round(number * times)
    rows_per_step = args.rows_per_step(num_processes)
    documents, tokens = sum(seen.values()), sum(length * number for length, number in seen.items())
    packed_rows = _packed_rows(seen, args.max_length)
    return Epoch(
        num_processes,
        rows_per_step,
        documents,
        tokens,
        steps_per_epoch(documents, rows_per_step),
        padding_share(seen, rows_per_step, args.per_device_train_batch_size),
        steps_per_epoch(packed_rows, rows_per_step),
        tokens / max(packed_rows * args.max_length, 1),
    )


def _packed_rows(lengths: Mapping[int, int], capacity: int) -> int:
    """Rows of `capacity` tokens that hold these documents."""
    num_windows = max(math.ceil(sum(lengths.values()) / WINDOW), 1)
    histogram = np.zeros(capacity + 1, dtype=np.int64)
    for length, number in lengths.items():
        histogram[length] = round(number / num_windows)
    return place(histogram, capacity)[0] * num_windows


def padding_share(lengths: Mapping[int, int], rows_per_step: int, batch_size: int) -> float:
    """The share of padding to expect where the documents of a step are sorted by length, and each micro-batch of
    `batch_size` documents is filled up to its longest. Estimated from steps of random documents."""
    if not lengths:
        return 0.0
    values = np.array(sorted(lengths), dtype=np.int64)
    chances = np.array([lengths[int(length)] for length in values]) / sum(lengths.values())
    rows = np.random.default_rng(0).choice(values, size=(_SAMPLED_STEPS, rows_per_step), p=chances)
    rows.sort(axis=1)
    computed = sum(
        int(rows[:, start : start + batch_size].max(axis=1).sum()) * min(batch_size, rows_per_step - start)
        for start in range(0, rows_per_step, batch_size)
    )
    return 1.0 - int(rows.sum()) / computed
