"""Counts what a process asks of things that all ranks share: files, the rendezvous store, the network."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile


@dataclass
class Counts:
    """What was asked for while `counting` was open."""

    opens: Counter[str] = field(default_factory=Counter)
    """Files below the folder that was named, by name."""
    store_keys: int = 0
    """Keys that were added to the rendezvous store."""
    collectives: Counter[str] = field(default_factory=Counter)
    """Calls, by name: also those that torch's and DeepSpeed's own code makes."""
    sent_numbers: int = 0
    """Numbers in the tensors of those calls."""


@contextmanager
def counting(folder: Path) -> Iterator[Counts]:
    """Counts until it is closed; the counts are complete afterwards."""
    counts, is_open = Counts(), True

    def hook(event: str, details: tuple[Any, ...]) -> None:
        if is_open and event == "open" and isinstance(details[0], str) and details[0].startswith(str(folder)):
            counts.opens[Path(details[0]).name] += 1

    sys.addaudithook(hook)
    before = _num_keys()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        yield counts
    is_open = False
    counts.store_keys = _num_keys() - before
    for event in found.events():
        if event.name.startswith("gloo:"):
            counts.collectives[event.name] += 1
            counts.sent_numbers += sum(math.prod(shape) for shape in event.input_shapes)


def _num_keys() -> int:
    return int(dist.distributed_c10d._get_default_store().num_keys())
