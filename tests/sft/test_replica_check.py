"""Silent divergence: one changed bit on one rank is found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from spawned import spawn

from sft.errors import DivergedError
from sft.replica_check import _odd_ones, check_replicas, checksum
from sft.world import World


def test_one_bit_and_exchanged_tensors_change_the_sum() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False)).bfloat16()
    before = checksum(model, torch.device("cpu"))
    model[1].weight.data.view(torch.int16)[3, 3] ^= 1
    assert checksum(model, torch.device("cpu")) != before
    model[1].weight.data.view(torch.int16)[3, 3] ^= 1
    assert checksum(model, torch.device("cpu")) == before
    model[0].weight.data, model[1].weight.data = model[1].weight.data, model[0].weight.data
    assert checksum(model, torch.device("cpu")) != before


def test_the_ranks_that_differ() -> None:
    assert _odd_ones([5, 5, 6, 5], 0, 1) == [2]
    assert _odd_ones([5, 6], 0, 1) == [1]
    assert [_odd_ones([1, 2, 1, 3, 1, 2], place, 2) for place in (0, 1)] == [[], [3]]
    assert [_odd_ones([1, 2, 3], place, 3) for place in range(3)] == [[], [], []]


def _compare(world: World, _folder: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    check_replicas(model, None, 10, 30, world)
    if world.rank == 1:
        model.weight.data[0, 0] += 1e-6
    with pytest.raises(
        DivergedError, match=r"rank 1 diverged at step 40 or in the 9 before it.* of step 30 or earlier"
    ):
        check_replicas(model, None, 10, 40, world)


@pytest.mark.ranks
def test_every_rank_is_told(tmp_path: Path) -> None:
    spawn(_compare, 2, tmp_path)
