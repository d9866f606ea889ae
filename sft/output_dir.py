"""The output directory of a run, while one process holds it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from sft.agreement import together
from sft.fence import Fence, Holder, ended_jobs, take
from sft.storage import storage_errors
from sft.world import World


@contextlib.contextmanager
def held_output_dir(path: Path, environ: Mapping[str, str], world: World) -> Iterator[tuple[Path, Fence | None]]:
    """The directory, made if it is not there, and rank 0's right to write it. Of a run that is refused it leaves
    nothing behind, unless it was there before.

    Raises:
        FencedError: another process holds it.
        StorageError: it cannot be written.
    """
    fence = None
    with together(world):
        if world.is_main:
            with storage_errors(path):
                path.mkdir(parents=True, exist_ok=True)
            fence = take(path, Holder.this_process(environ), ended_jobs=ended_jobs(environ))
    try:
        yield path, fence
    finally:
        if fence is not None:
            fence.release()
            with contextlib.suppress(OSError):  # it holds something
                path.rmdir()
