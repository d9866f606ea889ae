"""World: which process this is among how many, on which device, and the few collectives that training needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class SequenceGroup:
    """The neighbouring ranks that share the tokens of each row. A rank alone is a group of size 1."""

    rank: int = 0
    """This rank's place in the group, and that of its tokens in the row."""
    size: int = 1
    process_group: Any = None
    """torch's group of these ranks; None for a rank alone."""


@dataclass(frozen=True)
class World:
    """A value that is passed, never a global. One process alone is a world of size 1."""

    rank: int
    local_rank: int
    size: int
    device: torch.device
    sequence: SequenceGroup = field(default_factory=SequenceGroup)

    @property
    def data_size(self) -> int:
        """Groups of ranks with rows of their own: all ranks, unless some share the tokens of a row."""
        return self.size // self.sequence.size

    @property
    def data_rank(self) -> int:
        """Number of this rank's group among them."""
        return self.rank // self.sequence.size

    @property
    def is_main(self) -> bool:
        """True on rank 0, the only one that writes files."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """True if a process group was made: also for one process that torchrun started."""
        return dist.is_initialized()

    def sum(self, *values: float) -> list[float]:
        """Each value added up over all ranks (float64: exact for counts up to 2**53)."""
        if self.size == 1:
            return list(values)
        dtype = torch.float64 if self.device.type != "mps" else torch.float32
        tensor = torch.tensor(values, dtype=dtype, device=self.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def total(self, value: Tensor) -> Tensor:
        """A tensor of one number added up over all ranks, in float64; not waited for where the device can go on."""
        total = value.detach().to(torch.float32 if self.device.type == "mps" else torch.float64, copy=True)
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """True on every rank if it is true on one."""
        return self.sum(float(flag))[0] > 0

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def world_from_env(timeout_s: int, *, always_group: bool = False, sequence_parallel_size: int = 1) -> Iterator[World]:
    """The world that torchrun or DeepSpeed described in RANK, LOCAL_RANK and WORLD_SIZE; solo without them.

    Args:
        timeout_s: how long a collective may take before the run is ended.
        always_group: make a process group also for a solo process: DeepSpeed and FSDP2 need one.
        sequence_parallel_size: neighbouring ranks that share the tokens of each row; divides the world's size.

    The process group is nccl on GPUs and gloo elsewhere. It is left behind, not destroyed, when the body raises:
    destroying it can wait for peers, and the message must get out first.
    """
    rank, local_rank, size = (int(os.environ.get(name, default)) for name, default in _ENVIRONMENT)
    device = _device(local_rank)
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout, bound = timedelta(seconds=timeout_s), device if device.type == "cuda" else None
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout, device_id=bound)
    elif always_group:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout, device_id=bound)
    yield World(rank, local_rank, size, device, sequence_group(rank, sequence_parallel_size, timeout_s))
    if dist.is_initialized():
        dist.destroy_process_group()


def sequence_group(rank: int, size: int, timeout_s: int) -> SequenceGroup:
    """The group of `size` neighbouring ranks that this one belongs to; all ranks of the world call it.

    Args:
        rank: this one.
        size: divides the world's.
        timeout_s: how long a collective may take before the run is ended.
    """
    if size == 1:
        return SequenceGroup()
    process_group, _ = dist.new_subgroups(group_size=size, timeout=timedelta(seconds=timeout_s))  # type: ignore[no-untyped-call]
    return SequenceGroup(rank % size, size, process_group)


_ENVIRONMENT = (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def has_bf16(device: torch.device) -> bool:
    """True if the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_amx_tile_supported())
