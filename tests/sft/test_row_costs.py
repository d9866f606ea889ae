"""What rows cost: as many operations as the model's shape says, and shares of ranks that are even by it."""

from __future__ import annotations

import numpy as np
import pytest

from sft.flops import ModelShape, Work, causal_flops
from sft.row_costs import ATTENTION_TIME, row_costs
from sft.sharding import balanced

SMALL = ModelShape(body=25_165_824, adapters=0, head=16_384_000, attention=4096, is_body_trained=True)
"""512 wide with 32,000 tokens: a trained token's output layer costs two thirds of its layers."""
LARGE = ModelShape(body=3_600_000_000, adapters=0, head=389_000_000, attention=147_456, is_body_trained=True)


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_a_row_costs_its_operations_and_attention_twice(shape: ModelShape) -> None:
    lengths, trained = [4000, 30, 700], [1200, 30, 0]
    whole, none, two = row_costs([[0], [], [1, 2]], lengths, trained, shape)
    attention = causal_flops(shape, Work(sum_squared_lengths=4000**2))
    assert whole == pytest.approx(causal_flops(shape, Work(4000, 1200, 4000**2)) + (ATTENTION_TIME - 1) * attention)
    assert none == 0
    assert two == pytest.approx(row_costs([[1], [2]], lengths, trained, shape).sum())


def test_attention_within_a_window_costs_less() -> None:
    sizes = {"body": 1000, "adapters": 0, "head": 10, "attention": 100, "is_body_trained": True}
    wide, narrow = ModelShape(**sizes), ModelShape(**sizes, window=64, windowed_share=1.0)
    (all_pairs,), (seen_pairs,) = (row_costs([[0]], [512], [0], shape) for shape in (wide, narrow))
    assert seen_pairs == pytest.approx(all_pairs - ATTENTION_TIME * 6 * 100 * (512 - 64) ** 2)
    assert [row_costs([[0]], [64], [9], shape) for shape in (wide, narrow)] == [row_costs([[0]], [64], [9], wide)] * 2


def test_adapters_on_frozen_layers_make_attention_and_loss_dearer_beside_them() -> None:
    frozen = ModelShape(SMALL.body, 0, SMALL.head, SMALL.attention, is_body_trained=False)
    (one,), (other,) = (row_costs([[0]], [2000], [0], shape) for shape in (SMALL, frozen))
    assert other / one == pytest.approx((4 * SMALL.body * 2000 + ATTENTION_TIME * 6 * SMALL.attention * 2000**2) / one)


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_ranks_of_a_step_without_packing_cost_nearly_the_same(shape: ModelShape) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(np.log(300), 1.0, 1600).astype(np.int64).clip(8, 4096)
    trained = (lengths * rng.uniform(0.1, 0.9, len(lengths))).astype(np.int64)
    for step in range(100):
        costs = row_costs([[16 * step + place] for place in range(16)], lengths, trained, shape)
        dearest, *others = sorted(costs, reverse=True)
        with_dearest = dearest + sum(others[-7:])  # at least: each rank has eight rows
        loads = [costs[share].sum() for share in balanced(costs, 2)]
        assert max(loads) < 1.01 * max(np.mean(loads), with_dearest)
