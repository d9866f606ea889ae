"""Whether ranks that must hold the same weights do: silent damage of memory or of a device shows nowhere else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from sft.errors import DivergedError
from sft.world import World

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def check_replicas(model: Any, shard_size: int | None, every: int, step: int, world: World) -> None:
    """Compares the bits of the weights over the ranks (a collective). Where each rank has a part of its own of every
    tensor, as under ZeRO-3, there is nothing to compare.

    Args:
        model: whose parameters are the same on all ranks, or on those with the same place in their group.
        shard_size: neighbouring ranks that share one copy; None: each rank has a copy.
        every: steps from one check to the next.
        step: that was done last.
        world: the ranks.

    Raises:
        DivergedError: on all ranks, with the ranks that differ.
    """
    sums = torch.zeros(world.size, dtype=torch.int64, device=world.device)
    sums[world.rank] = checksum(model, world.device)
    if world.size > 1:
        dist.all_reduce(sums)
    found = [int(number) for number in sums.tolist()]
    odd = sorted(rank for place in range(shard_size or 1) for rank in _odd_ones(found, place, shard_size or 1))
    if odd:
        ranks = f"rank {odd[0]}" if len(odd) == 1 else f"ranks {', '.join(map(str, odd))}"
        raise DivergedError(
            f"{ranks} diverged at step {step} or in the {every - 1} before it: the weights are not those of the other "
            f"ranks. Go on from a checkpoint of step {step - every} or earlier, and look at the memory of its device."
        )


def _odd_ones(sums: list[int], place: int, shard_size: int) -> list[int]:
    """The ranks whose sum is not that of most ranks with this place in their group; of two, the second."""
    ranks = range(place, len(sums), shard_size)
    usual, _ = Counter(sums[rank] for rank in ranks).most_common(1)[0]
    return [rank for rank in ranks if sums[rank] != usual]


def checksum(model: Any, device: torch.device) -> Tensor:
    """One number of the bits of all parameters that this rank holds whole or as its share: int64, on the device."""
    total = torch.zeros((), dtype=torch.int64, device=device)
    for number, values in enumerate(_held(model), 1):
        bits = values.view(_INTEGERS[values.element_size()])
        total += (2 * number + 1) * bits.sum(dtype=torch.int64)  # odd factors: tensors that change places are seen
    return total


def _held(model: Any) -> Iterator[Tensor]:
    for parameter in model.parameters():
        values = parameter.to_local() if isinstance(parameter, DTensor) else parameter.detach()
        if not hasattr(parameter, "ds_tensor") and values.numel():
            yield values.contiguous()
