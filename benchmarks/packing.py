"""How full packed rows are, what packing costs, and how evenly ranks are loaded: `python benchmarks/packing.py`.

Every row of the table is 100,000 documents of one distribution of lengths, drawn with a fixed seed and clipped to
[1, capacity]. Before a row is printed it is checked that the rows hold each document exactly once and none holds more
than its capacity. Imbalance is the cost of the dearest rank, in a model of 0.6B parameters, over the mean of the ranks,
less 1, over 8 ranks: the mean over the steps of one epoch and, in brackets, the worst step (the epoch's short last one
aside). "at best" is the fill that no packing could exceed: the lower bound L2 on the number of rows (Martello and Toth,
1990).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from numpy.typing import NDArray

from benchmarks import rounds
from sft.flops import ModelShape
from sft.packing import TrainingRows, pack
from sft.row_costs import row_costs
from sft.sharding import balanced

NUM_DOCUMENTS = 100_000
WORLD = 8
ROWS_PER_RANK = (2, 4, 8, 16)
SHAPE = ModelShape(body=440_000_000, adapters=0, head=155_000_000, attention=57_344, is_body_trained=True)
"""Of a model like Qwen3-0.6B, for what rows cost."""
Lengths = NDArray[np.int64]


def long_tail(rng: np.random.Generator) -> Lengths:
    """Log-normal, median 300 tokens, σ 1.4: instructions with a few very long ones."""
    return rng.lognormal(np.log(300), 1.4, NUM_DOCUMENTS).astype(np.int64)


def chat(rng: np.random.Generator) -> Lengths:
    """2 to 16 messages (2 + geometric), each log-normal with median 90 and σ 0.9."""
    turns = 2 * np.minimum(rng.geometric(0.45, NUM_DOCUMENTS), 8)
    sums = np.concatenate([[0], np.cumsum(rng.lognormal(np.log(90), 0.9, turns.sum()))])
    ends = np.cumsum(turns)
    return (sums[ends] - sums[ends - turns]).astype(np.int64)


def reasoning(rng: np.random.Generator) -> Lengths:
    """A question of 50–400 tokens and a log-normal trace, median 2,500, σ 0.9: 31 % are cut at 4,096, 10 % at 8,192,
    2 % at 16,384 tokens."""
    return (rng.integers(50, 400, NUM_DOCUMENTS) + rng.lognormal(np.log(2500), 0.9, NUM_DOCUMENTS)).astype(np.int64)


def short(rng: np.random.Generator) -> Lengths:
    """Uniform from 8 to 64 tokens: labels and one-line answers."""
    return rng.integers(8, 65, NUM_DOCUMENTS)


def mixed(rng: np.random.Generator) -> Lengths:
    """A third each of short, chat and reasoning."""
    kinds = np.stack([short(rng), chat(rng), reasoning(rng)])
    return kinds[rng.integers(0, 3, NUM_DOCUMENTS), np.arange(NUM_DOCUMENTS)]


DISTRIBUTIONS: tuple[Callable[[np.random.Generator], Lengths], ...] = (long_tail, chat, reasoning, short, mixed)


def imbalance(rows: TrainingRows, lengths: Lengths, num_trained: Lengths, rows_per_rank: int) -> tuple[float, float]:
    """(mean, worst) of max/mean − 1 of the ranks' costs over the full steps of an epoch."""
    found = []
    for step in range(rows.num_rows // (WORLD * rows_per_rank)):
        costs = row_costs(rows.step(step, WORLD * rows_per_rank), lengths, num_trained, SHAPE)
        loads = np.array([costs[share].sum() for share in balanced(costs, WORLD)])
        found.append(loads.max() / loads.mean() - 1)
    return float(np.mean(found)), float(np.max(found))


def fewest_rows(lengths: Lengths, capacity: int) -> int:
    """A lower bound on the number of rows. For each k up to half the capacity: a document longer than capacity − k has
    a row without any of k tokens or more; one longer than half has a row of its own; the rest fill what is left."""
    histogram = np.bincount(lengths, minlength=capacity + 1)
    counts, tokens = np.cumsum(histogram), np.cumsum(histogram * np.arange(capacity + 1))
    k = np.arange(1, capacity // 2 + 1)
    num_long = len(lengths) - counts[capacity - k]
    num_half = counts[capacity - k] - counts[capacity // 2]
    room = num_half * capacity - (tokens[capacity - k] - tokens[capacity // 2])
    rest = tokens[capacity // 2] - tokens[k - 1]
    return int((num_long + num_half + np.maximum(0, -((room - rest) // capacity))).max())


def opening(num_documents: int) -> float:
    """Seconds until the first row of a data set of so many documents."""
    lengths = np.random.default_rng(1).integers(10, 4000, num_documents, dtype=np.int32)
    started = time.perf_counter()
    TrainingRows(num_documents, 7, lengths, 4096).between(0, 0, 1)
    return time.perf_counter() - started


def main() -> None:
    """Prints the table."""
    rounds.parse_no_options(__doc__)
    heads = "".join(f"  imbalance, {number:2} rows a rank" for number in ROWS_PER_RANK)
    print(f"{'distribution':12} {'capacity':>8} {'rows':>7} {'fill':>9} {'at best':>9} {'us/document':>12}{heads}")
    for capacity in (4096, 8192, 16_384):
        for distribution in DISTRIBUTIONS:
            rng = np.random.default_rng(0)
            lengths = distribution(rng).clip(1, capacity)
            num_trained = (lengths * rng.uniform(0.2, 0.9, NUM_DOCUMENTS)).astype(np.int64)
            times = []
            for _ in range(3):
                started = time.perf_counter()
                packed = pack(lengths, capacity)
                times.append(time.perf_counter() - started)
            rows = TrainingRows(NUM_DOCUMENTS, 7, lengths, capacity)
            everything = rows.between(0, 0, rows.num_rows)
            seen = np.array([document for row in everything for document in row])
            assert (np.sort(seen) == np.arange(NUM_DOCUMENTS)).all()
            assert (np.sort(packed.documents) == np.arange(NUM_DOCUMENTS)).all()
            assert max(int(lengths[row].sum()) for row in everything) <= capacity
            assert len(everything) == len(packed)
            fill = lengths.sum() / (len(packed) * capacity)
            best = lengths.sum() / (max(fewest_rows(lengths, capacity), -(-lengths.sum() // capacity)) * capacity)
            shares = "".join(
                f"{mean:20.2%} ({worst:5.2%})"
                for mean, worst in (imbalance(rows, lengths, num_trained, number) for number in ROWS_PER_RANK)
            )
            microseconds = min(times) / NUM_DOCUMENTS * 1e6
            numbers = f"{capacity:8} {len(packed):7} {fill:9.3%} {best:9.3%} {microseconds:12.2f}"
            print(f"{distribution.__name__:12} {numbers}{shares}")
    print(f"first row of 10,000,000 documents: {opening(10_000_000):.2f} s")


if __name__ == "__main__":
    main()
