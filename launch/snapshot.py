"""`submit --snapshot`: the job runs from a copy of the code as it is now; later edits do not change what waits."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from launch import manifest
from launch.errors import LaunchError
from launch.records import make_directory
from launch.spec import ROOT, JobSpec

MAX_COPIED_BYTES = 50 * 2**20
"""Larger files that git does not know are data: the copy has links to them."""


def take(spec: JobSpec) -> JobSpec:
    """Copies the code below `code/` of the run directory; the job with its paths there.

    Of a repository the copy has all files that git knows, and all that it would not ignore, as they are now. What else
    stands beside the settings file is linked, as settings name files beside it.

    Raises:
        LaunchError: the script is in no git repository.
    """
    moved: dict[Path, Path] = {}
    code_root = Path(spec.run_dir) / "code"
    for name, folder in manifest.code_folders(spec).items():
        files, top = manifest.code_files(folder)
        if files is None:
            remedy = "Run `git init` and `git add` there, or submit without --snapshot."
            raise LaunchError(f"script is {spec.script!r}; with --snapshot it must be in a git repository. {remedy}")
        _copy(files, top, code_root / name)
        moved[top] = code_root / name
    if spec.config is not None:
        _settle_config(Path(spec.config), moved, code_root / "settings")
    words = {word: _there(word, moved) for word in (*spec.script_args, spec.script, spec.config or "")}
    return replace(
        spec,
        script=words[spec.script],
        script_args=tuple(words[word] for word in spec.script_args),
        config=words[spec.config] if spec.config is not None else None,
        code_root=_there(str(ROOT), moved),
    )


def _copy(files: list[Path], top: Path, target: Path) -> None:
    for file in files:
        place = target / file.relative_to(top)
        if not file.is_symlink() and not file.is_file():
            continue  # removed since it was committed; or a repository in the repository
        make_directory(place.parent)
        if file.is_symlink() or file.stat().st_size <= MAX_COPIED_BYTES:
            shutil.copy2(file, place, follow_symlinks=False)
        else:
            place.symlink_to(file)


def _settle_config(config: Path, moved: dict[Path, Path], own: Path) -> None:
    """Sees to it that the settings file is in the copy, and that what it names beside it is found there."""
    place = Path(_there(str(config), moved))
    if place == config:
        make_directory(own)
        place = own / config.name
        shutil.copy2(config, place)
        moved[config] = place
    for beside in config.parent.iterdir():
        if not os.path.lexists(place.parent / beside.name):
            (place.parent / beside.name).symlink_to(beside)


def _there(word: str, moved: dict[Path, Path]) -> str:
    """A path in the copy, where the copy has it; any other word as it is."""
    for top, target in sorted(moved.items(), key=lambda pair: -len(str(pair[0]))):
        if word == str(top):
            return str(target)
        if word.startswith(f"{top}{os.sep}") and (target / word[len(str(top)) + 1 :]).exists():
            return str(target / word[len(str(top)) + 1 :])
    return word
