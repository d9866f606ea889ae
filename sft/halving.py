"""The best of several candidates by scores on rows, without scoring all of them on all rows: successive halving. Pure.

Karnin, Koren and Somekh, "Almost optimal exploration in multi-armed bandits" (2013), with the rows as pulls: all
candidates see the same rows in the same order, so that they are compared in pairs, row by row. A candidate that is
clearly worse than the leader goes at once; of the others the worse half goes after each quarter of the rows, but two
stay to the end, unless one is clearly better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sft.intervals import Comparison, compare, sign_flip_p

ROUNDS = 4
CLEARLY = 0.01
"""A p-value below which a candidate goes before the last round; smaller than the last one's, as it is asked often."""
TIE = 0.05
"""A p-value from which on two candidates are told apart by nothing but luck."""


@dataclass
class Candidate:
    """One candidate's scores, on the first rows of the common order."""

    number: int
    """In the order in which the candidates were given, from 0."""
    scores: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Over the rows that it saw; minus infinity where a score is no finite number, so that it is nobody's best."""
        found = float(np.mean(self.scores))
        return found if math.isfinite(found) else -math.inf


@dataclass(frozen=True)
class Outcome:
    """What was found."""

    best: Candidate
    """The one with the highest mean of those that saw all that was needed."""
    ties: tuple[Candidate, ...]
    """Those that stayed to the end and can't be told from the best."""
    others: tuple[tuple[Candidate, Comparison], ...]
    """All but the best, the best ones first, each with how far it is behind the best on the rows that it saw."""
    num_scored: int
    """Rows that were scored, over all candidates."""
    full_cost: int
    """As many as there are rows, times candidates."""


Scores = Callable[[int, Sequence[int]], Sequence[float]]
"""(number of a candidate, rows) → the score of each row; higher is better."""


def best_of(num_candidates: int, num_rows: int, scores: Scores, *, seed: int = 0) -> Outcome:
    """Finds the best candidate.

    With 12 candidates and at least 4 rows it scores at most 48 % of what scoring them all on all rows would take.

    Args:
        num_candidates: at least 1.
        num_rows: at least 1; the more, the smaller differences are found.
        scores: asked for each candidate and some rows at a time, never twice for the same. A candidate with a score
            that is not finite is the worst.
        seed: of the order of the rows.
    """
    order = [int(row) for row in np.random.default_rng(seed).permutation(num_rows)]
    everyone = [Candidate(number) for number in range(num_candidates)]
    staying = everyone
    for part in range(1, ROUNDS + 1):
        # Rounded down, as the first rounds are those of many candidates; but none is judged by no row.
        rows = order[len(staying[0].scores) : max(1, num_rows * part // ROUNDS)]
        for candidate in staying if rows else ():
            candidate.scores += scores(candidate.number, rows)
        ranked = sorted(staying, key=lambda each: (-each.mean, each.number))
        if part == ROUNDS or not math.isfinite(ranked[0].mean):
            staying = ranked
            break
        close = [each for each in ranked if each is ranked[0] or _p(ranked[0], each) >= CLEARLY]
        staying = close[: max(2, math.ceil(len(staying) / 2))]
        if len(staying) == 1:
            break
    best = staying[0]
    others = [(each, behind(best, each)) for each in everyone if each is not best]
    others.sort(key=lambda pair: (-len(pair[0].scores), pair[1].difference, pair[0].number))
    ties = tuple(each for each, found in others if any(each is one for one in staying) and found.p >= TIE)
    num_scored = sum(len(each.scores) for each in everyone)
    return Outcome(best, ties, tuple(others), num_scored, num_candidates * num_rows)


def _p(best: Candidate, other: Candidate) -> float:
    """How likely a gap as large is by luck; both have seen the same rows."""
    if not math.isfinite(other.mean):
        return float(best.mean == other.mean)
    return sign_flip_p(np.subtract(best.scores, other.scores))


def behind(best: Candidate, other: Candidate) -> Comparison:
    """How far the other's mean is behind, on the rows that both have seen: infinitely, where one alone has a score that
    is not finite."""
    number = min(len(best.scores), len(other.scores))
    if not (math.isfinite(best.mean) and math.isfinite(other.mean)):
        gap = 0.0 if best.mean == other.mean else math.inf
        return Comparison(gap, gap, gap, float(gap == 0), number)
    return compare(best.scores[:number], other.scores[:number])
