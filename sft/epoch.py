"""What one epoch means: steps, tokens and padding, from the lengths of the documents alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sft.config import Args


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
    """Share of the computed tokens that is padding, where each row holds one document; expected, in random order."""
    packed_steps: int
    """At least so many steps with `packing`."""


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
    rows_per_step = num_processes * args.per_device_train_batch_size * args.accumulation_steps(num_processes)
    documents, tokens = sum(seen.values()), sum(length * number for length, number in seen.items())
    packed_rows = math.ceil(tokens / args.max_length)
    return Epoch(
        num_processes,
        rows_per_step,
        documents,
        tokens,
        math.ceil(documents / rows_per_step),
        padding_share(seen, args.per_device_train_batch_size),
        math.ceil(packed_rows / rows_per_step),
    )


def padding_share(lengths: Mapping[int, int], batch_size: int) -> float:
    """The share of padding to expect where `batch_size` documents drawn at random are filled up to the longest.

    The longest of B draws is at most l with probability F(l)^B, F being the share of documents with at most l tokens.
    """
    total = sum(lengths.values())
    if not total:
        return 0.0
    mean = sum(length * number for length, number in lengths.items()) / total
    longest, below, so_far = 0.0, 0.0, 0
    for length in sorted(lengths):
        so_far += lengths[length]
        at_most = (so_far / total) ** batch_size
        longest += length * (at_most - below)
        below = at_most
    return 1.0 - mean / longest if longest else 0.0
