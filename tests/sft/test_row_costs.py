"""What rows cost: as many operations as the model's shape says, and shares of ranks that are even by it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from sft.flops import ModelShape, Work, causal_flops
from sft.row_costs import ATTENTION_FACTOR, row_costs
from sft.sharding import balanced

SMALL = ModelShape(body=25_165_824, adapters=0, head=16_384_000, attention=4096, is_body_trained=True)
"""512 wide with 32,000 tokens: a trained token's output layer costs two thirds of its layers."""
LARGE = ModelShape(body=3_600_000_000, adapters=0, head=389_000_000, attention=147_456, is_body_trained=True)
"""Qwen3-4B: a tenth."""


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_a_row_costs_its_operations_and_attention_twice(shape: ModelShape) -> None:
    lengths, trained = [4000, 30, 700], [1200, 30, 0]
    whole, none, two = row_costs([[0], [], [1, 2]], lengths, trained, shape)
    attention = causal_flops(shape, Work(sum_squared_lengths=4000**2))
    assert whole == pytest.approx(causal_flops(shape, Work(4000, 1200, 4000**2)) + (ATTENTION_FACTOR - 1) * attention)
    assert none == 0
    assert two == pytest.approx(row_costs([[1], [2]], lengths, trained, shape).sum())


def test_attention_within_a_window_costs_less() -> None:
    narrow = replace(SMALL, window=64, windowed_share=0.5)
    (all_pairs,), (seen_pairs,) = (row_costs([[0]], [512], [0], shape) for shape in (SMALL, narrow))
    unseen = 0.5 * (512 - 64) ** 2
    assert all_pairs - seen_pairs == pytest.approx(ATTENTION_FACTOR * 6 * SMALL.attention * unseen)
    assert row_costs([[0]], [64], [9], narrow) == row_costs([[0]], [64], [9], SMALL)


def test_layers_that_are_recomputed_cost_more_beside_the_loss() -> None:
    (plain,), (half,), (whole,) = (row_costs([[0]], [2000], [500], SMALL, share) for share in (0.0, 0.5, 1.0))
    assert whole - plain == pytest.approx(2 * SMALL.body * 2000 + ATTENTION_FACTOR * 2 * SMALL.attention * 2000**2)
    assert half == pytest.approx((plain + whole) / 2)


def test_attention_is_a_larger_part_beside_frozen_layers() -> None:
    adapted = replace(SMALL, adapters=100_000, is_body_trained=False)
    (of_short, of_long), (adapted_short, adapted_long) = (
        row_costs([[0], [1]], [100, 4000], [0, 0], shape) for shape in (SMALL, adapted)
    )
    assert adapted_long / adapted_short > 1.2 * of_long / of_short


@pytest.mark.parametrize(("shape", "other"), [(SMALL, LARGE), (LARGE, SMALL)])
def test_shares_are_even_by_the_costs_of_the_model_and_not_by_anothers(shape: ModelShape, other: ModelShape) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(np.log(300), 1.0, 1600).astype(np.int64).clip(8, 4096)
    trained = (lengths * rng.uniform(0.1, 0.9, len(lengths))).astype(np.int64)

    def excess(costs: NDArray[np.float64], by: NDArray[np.float64]) -> float:
        return float(max(costs[share].sum() for share in balanced(by, 4)) / costs.sum() * 4 - 1)

    found = []
    for step in range(25):
        rows = [[64 * step + place] for place in range(64)]
        own, its = (row_costs(rows, lengths, trained, kind) for kind in (shape, other))
        found.append((excess(own, own), excess(own, its)))
    even, uneven = np.mean(found, axis=0)
    assert even < 0.005
    assert uneven > 0.02
