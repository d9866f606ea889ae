"""How long documents are: histograms and quantiles of counted lengths."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Bin:
    """One bar of a histogram."""

    first: int
    last: int | None
    """None: all that is longer."""
    number: int

    @property
    def name(self) -> str:
        """`1–100`, `over 100`."""
        return f"{self.first:,}–{self.last:,}" if self.last is not None else f"over {self.first - 1:,}"


def bins(lengths: Mapping[int, int], max_bins: int = 16) -> list[Bin]:
    """Bars of equal and round width; the longest half per cent stand in one bar at the end if they would make it wide.

    Args:
        lengths: documents of each length.
        max_bins: at most so many bars, and one for the rest.
    """
    if not lengths:
        return []
    usual = quantile(lengths, 0.995)
    width = next(w for w in round_numbers() if w * max_bins >= usual)
    numbers = Counter[int]()
    last = max(-(-usual // width), 1)
    for length, number in lengths.items():
        numbers[min((max(length, 1) - 1) // width, last)] += number
    found = [Bin(index * width + 1, (index + 1) * width, numbers[index]) for index in range(last)]
    return [*found, Bin(last * width + 1, None, numbers[last])] if numbers[last] else found


def round_numbers() -> Iterator[int]:
    """1, 2, 5, 10, 20, 50, …"""
    for power in itertools.count():
        yield from (step * 10**power for step in (1, 2, 5))


def quantile(lengths: Mapping[int, int], share: float) -> int:
    """The length that this share of the documents does not exceed; 0 without documents."""
    total, so_far = sum(lengths.values()), 0
    for length in sorted(lengths):
        so_far += lengths[length]
        if so_far >= share * total:
            return length
    return 0


def usual(lengths: Mapping[int, int]) -> str:
    """The median and the length that 95 % do not exceed, for people."""
    return ", ".join(f"{name} {quantile(lengths, share):,}" for name, share in (("median", 0.5), ("95 %", 0.95)))
