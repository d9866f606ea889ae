"""Which checkpoint a run goes on from: the newest that is, byte by byte, what was written."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from sft.agreement import told_by_main
from sft.commit import checkpoint_path, checkpoints_in, step_of
from sft.errors import CheckpointError
from sft.manifest import MANIFEST, Finding, Manifest, compare
from sft.world import World


def find_checkpoint(folder: Path, wanted: str, world: World, say: Callable[[str], None]) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` means, or None to start anew (a collective).

    Args:
        folder: of the run's checkpoints.
        wanted: `none`, `auto` or a checkpoint's folder.
        world: the ranks, which share the reading.
        say: told which files are damaged where an older checkpoint is taken.

    Raises:
        CheckpointError: the one that was named is none or is damaged, or all that are there are.
    """
    if wanted == "none":
        return None
    if wanted == "auto":
        return _newest_valid(folder, world, say)
    if not Path(wanted).is_dir():
        remedy = "Name a folder like checkpoints/step-00000100, or auto, or none."
        raise CheckpointError(f"resume_from_checkpoint is {wanted!r}; it must hold a {MANIFEST}. {remedy}")
    if problems := problems_of(Path(wanted), world, say):
        raise CheckpointError(f"{_listed(problems)} Name another checkpoint, or auto for the newest valid one.")
    return Path(wanted)


def _newest_valid(folder: Path, world: World, say: Callable[[str], None]) -> Path | None:
    tried: list[str] = []
    below: int | None = None
    while (path := _next(folder, below, world)) is not None:
        problems = problems_of(path, world, say)
        if not problems:
            if tried:
                say(f"warning: {_listed(tried)} The newest checkpoint that is as it was written is {path}.")
            return path
        tried += problems
        below = step_of(path)
    if tried:
        remedy = "Bring one back from a copy, or start anew with resume_from_checkpoint: none."
        raise CheckpointError(f"{_listed(tried)} No checkpoint in {folder} is as it was written. {remedy}")
    return None


def _next(folder: Path, below: int | None, world: World) -> Path | None:
    """The newest checkpoint of a lower step. As rank 0 sees it: file systems may tell others late."""
    steps = [step_of(path) for path in checkpoints_in(folder)] if world.is_main else []
    step = told_by_main(world, max((step for step in steps if below is None or step < below), default=-1))
    return checkpoint_path(folder, int(step)) if step >= 0 else None


def problems_of(path: Path, world: World, say: Callable[[str], None]) -> list[str]:
    """What is wrong with a checkpoint, in words, the same on every rank (a collective): each reads its share of the
    files. Files that do not belong to it are told to `say` and harm nothing."""
    manifest, problem, checksum = None, "", 0
    try:
        manifest = Manifest.read(path / MANIFEST)
        checksum = zlib.crc32(manifest.text().encode())
    except CheckpointError as error:
        problem = str(error)
    num_unread, total = world.sum(float(manifest is None), float(checksum))
    if manifest is None or num_unread or total != float(checksum) * world.size:
        return [problem or f"{path / MANIFEST} is not the same for all ranks"]
    names = sorted(manifest.files)
    findings = [Finding.RIGHT] * len(names)
    for number in range(world.rank, len(names), world.size):
        findings[number] = compare(path / names[number], manifest.files[names[number]], world.heartbeat.again)
    told = zip(names, world.sum(*(float(finding) for finding in findings)), strict=True)
    for extra in sorted(set(os.listdir(path)) - {*names, MANIFEST}) if world.is_main else ():
        say(f"warning: {path / extra} does not belong to the checkpoint; it is not read.")
    return [Finding(int(found)).told(str(path / name)) for name, found in told if found]


def _listed(problems: Sequence[str]) -> str:
    return f"{'; '.join(problems)}."
