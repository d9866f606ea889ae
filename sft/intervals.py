"""How sure a mean over rows is: bootstrap intervals, and paired tests of two models on the same rows. Pure.

A figure is a ratio of sums over rows: of scores and 1 for a mean, of token losses and tokens for a loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
_AT_ONCE = 1 << 22
"""Numbers that are drawn at a time."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval."""

    value: float
    low: float
    high: float
    num_rows: int


@dataclass(frozen=True)
class Comparison:
    """One figure of two models on the same rows."""

    difference: float
    """Of the first less that of the second."""
    low: float
    high: float
    p: float
    """Of a difference as large as this one or larger, if it made no difference which of the two answered a row."""
    num_rows: int


def estimate(numerators: ArrayLike, denominators: ArrayLike | None = None, *, seed: int = 0) -> Estimate:
    """The ratio of sums, with its 95 % percentile bootstrap interval (Efron, 1979) over rows. The same for the same
    rows and seed.

    Args:
        numerators: (rows,).
        denominators: (rows,), positive in sum; 1 for each row by default.
        seed: of the resamples.
    """
    above = np.asarray(numerators, dtype=np.float64)
    below = np.ones_like(above) if denominators is None else np.asarray(denominators, dtype=np.float64)
    found = np.concatenate([above[draw].sum(1) / below[draw].sum(1) for draw in _draws(len(above), seed)])
    low, high = np.quantile(found, [0.025, 0.975])
    return Estimate(float(above.sum() / below.sum()), float(low), float(high), len(above))


def compare(first: ArrayLike, second: ArrayLike, denominators: ArrayLike | None = None, *, seed: int = 0) -> Comparison:
    """The difference of two ratios of sums, with its bootstrap interval over rows, and the p-value of a two-sided
    sign-flip test (approximate randomisation; Noreen, 1989; exact where scores are 0 or 1).

    Args:
        first: (rows,), numerators of one model.
        second: (rows,), of the other, for the same rows.
        denominators: (rows,), of both; 1 by default.
        seed: of the resamples.
    """
    gaps = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    found = estimate(gaps, denominators, seed=seed)
    return Comparison(found.value, found.low, found.high, sign_flip_p(gaps, seed=seed), len(gaps))


def sign_flip_p(gaps: ArrayLike, *, seed: int = 0, resamples: int = 5 * RESAMPLES) -> float:
    """How likely a sum of these differences as far from 0 is, if each had its sign by chance. 1 where all are 0."""
    values = np.asarray(gaps, dtype=np.float64)
    values = values[values != 0]
    if not len(values):
        return 1.0
    if np.ptp(np.abs(values)) == 0:  # as of answers that are right or wrong
        return _binomial_p(int((values > 0).sum()), len(values))
    generator = np.random.default_rng([seed, len(values), 1])
    observed, extreme, done = abs(values.sum()), 0, 0
    while done < resamples:
        number = min(resamples - done, max(1, _AT_ONCE // len(values)))
        signs = generator.integers(0, 2, size=(number, len(values)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ values) >= observed * (1 - 1e-9)).sum())
        done += number
    return (extreme + 1) / (resamples + 1)


def _binomial_p(num_positive: int, number: int) -> float:
    """The same without resampling, where all differences are of one size (McNemar's exact test)."""
    logs = [math.lgamma(number + 1) - math.lgamma(k + 1) - math.lgamma(number - k + 1) for k in range(number + 1)]
    far = [k for k in range(number + 1) if abs(2 * k - number) >= abs(2 * num_positive - number)]
    return min(1.0, math.fsum(math.exp(logs[k] - number * math.log(2)) for k in far))


def _draws(num_rows: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Numbers of rows drawn with replacement: (resamples, rows), in parts that need little memory."""
    generator = np.random.default_rng([seed, num_rows])
    number = max(1, min(RESAMPLES, _AT_ONCE // num_rows))
    for start in range(0, RESAMPLES, number):
        yield generator.integers(0, num_rows, size=(min(number, RESAMPLES - start), num_rows))
