"""A trace of some steps by torch's profiler, for Perfetto or TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from sft.config import Args
from sft.storage import storage_errors
from sft.world import World

_SETTLING_STEPS = 2
"""The first steps allocate, choose kernels and compile; they say nothing about the others."""


def profiled(steps: range, args: Args, world: World) -> Iterator[int]:
    """The same steps; on rank 0, `args.profile_steps` of them are recorded after the first two, or at the end of a run
    that is too short for that.

    Raises:
        StorageError: the trace cannot be written.
    """
    if not args.profile_steps or not world.is_main:
        yield from steps
        return
    first = steps[min(_SETTLING_STEPS, max(len(steps) - args.profile_steps, 0))] if steps else 0
    profiler = torch.profiler.profile(activities=_activities(world.device))
    is_running = False
    try:
        for step in steps:
            if step == first:
                profiler.start()
                is_running = True
            with torch.profiler.record_function(f"step {step}"):
                yield step
            if is_running and step == min(first + args.profile_steps - 1, steps[-1]):
                is_running = False
                _write(profiler, trace_path(Path(args.output_dir)))
    finally:
        if is_running:  # the run ends within the steps that are recorded
            _write(profiler, trace_path(Path(args.output_dir)))


def trace_path(output_dir: Path) -> Path:
    """Where a run's trace is: the name by which TensorBoard's profiler plugin knows one."""
    return output_dir / "profile" / "rank-0.pt.trace.json"


def _write(profiler: torch.profiler.profile, path: Path) -> None:
    profiler.stop()
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path))
    print(f"\ntrace: {path}", flush=True)


def _activities(device: torch.device) -> list[torch.profiler.ProfilerActivity]:
    kinds = torch.profiler.ProfilerActivity
    return [kinds.CPU, kinds.CUDA] if device.type == "cuda" else [kinds.CPU]
