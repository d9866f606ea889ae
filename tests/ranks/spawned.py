"""Runs a function in several processes that form a world over gloo: spawned, meeting in a file, on no port."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from sft.process_end import leave
from sft.world import SequenceGroup, World


def spawn(function: Callable[..., None], num_processes: int, folder: Path, *values: Any) -> None:
    """Calls `function(world, folder, *values)` in every process, all one sequence group; raises what they raise."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.multiprocessing.spawn(_process, (num_processes, function, folder, values), nprocs=num_processes)


def _process(rank: int, size: int, function: Callable[..., None], folder: Path, values: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    group = SequenceGroup(rank, size, dist.group.WORLD) if size > 1 else SequenceGroup()
    function(World(rank, rank, size, torch.device("cpu"), group), folder, *values)
    dist.destroy_process_group()
    leave(0)  # as training does: torch's own threads may abort while the interpreter is taken down
