"""The folder of checkpoints: what is in it, and how one appears there — whole, after a power cut too, or not at all.

`step-00000100` is a checkpoint. Everything with a suffix is none: `.tmp-…` is being written or was left by a dead
writer, `.aside-…` was made by a run that went on from an earlier step, or is damaged, `.gone` is being removed.

Why a writer that was taken over (`fence`) cannot commit: it checks its token between making its temporary folder and
renaming it. Who takes over first claims a higher token, then renames away all temporary folders, then looks for
checkpoints. So the old writer finds the higher token, or no folder to rename, or it was early enough to be found.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from sft.manifest import MANIFEST, Manifest
from sft.storage import sync, write_file

LATEST = "LATEST"
"""Names the newest checkpoint, for people: nothing is read from it."""
_STEP = re.compile(r"step-(\d{8})")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder, set aside or not."""
    return int(path.name.removeprefix("step-")[:8])


def checkpoints_in(folder: Path) -> list[Path]:
    """Those under their final names, newest first; nothing is said of whether they are valid."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return [folder / name for name in sorted(names, reverse=True) if _STEP.fullmatch(name)]


def temporary_path(folder: Path, step: int, label: str) -> Path:
    """Where a checkpoint is written.

    Args:
        folder: of the checkpoints.
        step: of the checkpoint.
        label: the same for all ranks, and not used before.
    """
    return folder / f"step-{step:08d}.tmp-{label}"


def commit(temporary: Path, manifest: Manifest, check_fence: Callable[[], None]) -> Path:
    """Makes a checkpoint of a temporary folder whose files are on the disk; returns its path.

    Raises:
        FencedError: another writer has taken over.
        OSError: the disk does not take it.
    """
    final = checkpoint_path(temporary.parent, manifest.step)
    write_file(temporary / MANIFEST, [manifest.text().encode()])
    sync(temporary)
    check_fence()
    os.rename(temporary, final)
    sync(final.parent)
    with contextlib.suppress(OSError):  # a hint only
        hint = final.with_name(f".{LATEST}")
        hint.unlink(missing_ok=True)
        write_file(hint, [f"{final.name}\n".encode()])
        os.replace(hint, final.with_name(LATEST))
    return final


def remove(path: Path) -> None:
    """Removes a checkpoint or a temporary folder: it has lost its name before its first file is gone."""
    gone = path.with_name(f"{path.name}.gone")
    if gone.exists():
        shutil.rmtree(gone)
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, gone)
        shutil.rmtree(gone)


def remove_leftovers(folder: Path) -> None:
    """Removes what dead writers left. Only who holds the run directory may call it."""
    for name in os.listdir(folder):
        if name.startswith("step-") and name.endswith(".gone"):
            shutil.rmtree(folder / name)
        elif name.startswith("step-") and ".tmp-" in name:
            remove(folder / name)


def set_aside(folder: Path, after_step: int, label: str) -> list[Path]:
    """Renames the checkpoints of later steps than the one from which a run goes on: it will make them anew. They are
    removed once it has committed one of its own, and can be named until then."""
    aside: list[Path] = []
    for path in checkpoints_in(folder):
        if step_of(path) > after_step:
            aside.append(path.with_name(f"{path.name}.aside-{label}"))
            os.rename(path, aside[-1])
    return aside


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Removes all but the newest `keep` checkpoints and the best one, and those that were set aside."""
    for path in checkpoints_in(folder)[keep:]:
        if step_of(path) != best_step:
            remove(path)
    for name in os.listdir(folder):
        if name.startswith("step-") and ".aside-" in name and not name.endswith(".gone"):
            remove(folder / name)
