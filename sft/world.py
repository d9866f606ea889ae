"""World: which process this is among how many, on which device, and the few collectives that training needs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sft.heartbeat import Heartbeat
from sft.meeting import bound_store, require_one_run


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
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    """Where this process tells how far it is, and hears that it is to stop."""

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

    def any(self, flag: bool) -> bool:
        """True on every rank if it is true on one."""
        return self.sum(float(flag))[0] > 0

    def gather(self, own: bytes) -> list[bytes]:
        """What each rank has, in the order of the ranks (a collective)."""
        if self.size == 1:
            return [own]
        sizes = [int(size) for size in self.sum(*(len(own) * float(rank == self.rank) for rank in range(self.size)))]
        padded = bytearray(own.ljust(max([1, *sizes]), b"\0"))
        mine = torch.frombuffer(padded, dtype=torch.uint8).to(self.device)
        all_of_them = [torch.empty_like(mine) for _ in sizes]
        dist.all_gather(all_of_them, mine)
        return [bytes(found[:size].cpu().numpy()) for found, size in zip(all_of_them, sizes, strict=True)]

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.size > 1:
            dist.barrier()


_LOST_PEER = re.compile(
    r"gloo/|Connection (reset|closed|refused)|Broken pipe|closed by (the )?(remote )?peer|remote process exited|"
    r"NCCL communicator was aborted|ncclRemoteError|Timed out waiting|Socket Timeout|failed to recv"
)


def is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another rank is gone, or did not come within the group's timeout."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and dist.is_initialized() and _LOST_PEER.search(str(error)) is not None
    )


class StepTotals:
    """What each step adds up over all ranks, in one collective: its loss, and whether a rank is asked to stop."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._asks = world.heartbeat
        # float64: of many micro-batches nothing is rounded away.
        dtype = torch.float32 if world.device.type == "mps" else torch.float64
        self._sums = torch.zeros(2, dtype=dtype, device=world.device)
        self._loss: Tensor = self._sums[0]
        self._stop: Tensor = self._sums[1]
        is_cuda = world.device.type == "cuda"
        self._on_host = torch.zeros(2, dtype=dtype, pin_memory=True) if is_cuda else self._sums

    def add_up(self, loss_sum: Tensor) -> Tensor:
        """The loss over all ranks, to be read before the next step's; not waited for where the device can go on."""
        self._loss.copy_(loss_sum)
        if self._asks.stop_reason is not None:
            self._stop.fill_(1.0)
        if self._world.size > 1:
            dist.all_reduce(self._sums)
        if self._on_host is not self._sums:
            self._on_host.copy_(self._sums, non_blocking=True)
        return self._loss

    @property
    def stop_is_agreed(self) -> bool:
        """Whether a rank was asked to stop before this step's sum, the same on all. On a GPU known once something that
        came later on its stream has been read, as the step's loss."""
        return bool(self._on_host[1] > 0)


@contextmanager
def world_from_env(
    timeout_s: int,
    *,
    always_group: bool = False,
    sequence_parallel_size: int = 1,
    heartbeat: Heartbeat | None = None,
) -> Iterator[World]:
    """The world that torchrun or DeepSpeed described in RANK, LOCAL_RANK and WORLD_SIZE; solo without them.

    Args:
        timeout_s: how long a collective may take before the run is ended.
        always_group: make a process group also for a solo process: DeepSpeed and FSDP2 need one.
        sequence_parallel_size: neighbouring ranks that share the tokens of each row; divides the world's size.
        heartbeat: of this process; by default nobody hears it.

    Raises:
        MeetingError: a rank of another run has come.

    The process group is nccl on GPUs and gloo elsewhere. It is left behind, not destroyed, when the body raises:
    destroying it can wait for peers, and the message must get out first.
    """
    rank, local_rank, size = (int(os.environ.get(name, default)) for name, default in _ENVIRONMENT)
    device = _device(local_rank)
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout, bound = timedelta(seconds=timeout_s), device if device.type == "cuda" else None
    if "RANK" in os.environ:
        store = bound_store(os.environ, timeout)
        place = {} if store is None else {"store": store, "rank": rank, "world_size": size}
        dist.init_process_group(backend, timeout=timeout, device_id=bound, **place)
        require_one_run(os.environ, device)
    elif always_group:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout, device_id=bound)
    group = sequence_group(rank, sequence_parallel_size, timeout_s)
    yield World(rank, local_rank, size, device, group, heartbeat or Heartbeat())
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


def solo_device() -> torch.device:
    """Where a process alone computes."""
    return _device(0)


def has_bf16(device: torch.device) -> bool:
    """True if the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # With AVX-512 BF16 alone products take a third of the time that they take in float32.
    has_units = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device.type == "cpu" and bool(has_units)
