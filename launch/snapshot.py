"""`submit --snapshot`: the job runs from a copy of the code as it is now; later edits do not change what waits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launch import manifest
from launch.errors import LaunchError
from launch.records import make_directory
from launch.spec import ROOT, JobSpec

MAX_COPIED_BYTES = 50 * 2**20
"""Larger files that git does not know are data: the copy has links to them."""
_SETTINGS = "settings"


@dataclass
class Copy:
    """What a copy is made of, before anything is written: where it stands there → what is here."""

    files: dict[Path, Path] = field(default_factory=dict)
    links: dict[Path, Path] = field(default_factory=dict)
    """What is not copied but linked: large files, and what stands beside the settings file."""
    moved: dict[Path, Path] = field(default_factory=dict)
    """The other way round: a folder, or the settings file, → its place in the copy."""

    @property
    def folders(self) -> set[Path]:
        """Those that will hold a file."""
        return {folder for place in self.files for folder in place.parents}

    def has(self, place: Path) -> bool:
        """Whether something will stand there."""
        here = self.files | self.links
        for outer in (place, *place.parents):
            if outer in here:
                return (here[outer] / place.relative_to(outer)).exists()
        return place in self.folders

    def there(self, word: str) -> str:
        """A path in the copy, where the copy has it; any other word as it is."""
        for top, target in sorted(self.moved.items(), key=lambda pair: -len(str(pair[0]))):
            if word == str(top):
                return str(target)
            if word.startswith(f"{top}{os.sep}") and self.has(place := target / word[len(str(top)) + 1 :]):
                return str(place)
        return word

    def write(self) -> None:
        """Makes the copy."""
        for place, file in self.files.items():
            make_directory(place.parent)
            shutil.copy2(file, place, follow_symlinks=False)
        for place, target in self.links.items():
            make_directory(place.parent)
            if not os.path.lexists(place):
                place.symlink_to(target)


def take(spec: JobSpec) -> JobSpec:
    """Copies the code below `code/` of the run directory; the job with its paths there.

    Raises:
        LaunchError: as `planned`.
    """
    moved, copy = planned(spec)
    copy.write()
    return moved


def planned(spec: JobSpec) -> tuple[JobSpec, Copy]:
    """(the job with its paths in the copy, the copy that is to be made); nothing is written.

    Of a repository the copy has all files that git knows, and all that it would not ignore, as they are now. What else
    stands beside the settings file is linked, as settings name files beside it.

    Raises:
        LaunchError: the script is in no git repository, or git does not answer.
    """
    copy, code = Copy(), Path(spec.run_dir) / "code"
    for name, folder in manifest.code_folders(spec).items():
        files, top = manifest.code_files(folder, Path(spec.run_dir))
        if files is None:
            remedy = "Run `git init` and `git add` there, or submit without --snapshot."
            raise LaunchError(f"script is {spec.script!r}; with --snapshot it must be in a git repository. {remedy}")
        for file in files:
            place = code / name / file.relative_to(top)
            if file.is_symlink() or (file.is_file() and file.stat().st_size <= MAX_COPIED_BYTES):
                copy.files[place] = file
            elif file.is_file():  # else it was removed since it was committed, or is a repository in the repository
                copy.links[place] = file
        copy.moved[top] = code / name
    if spec.config is not None:
        _settle_config(Path(spec.config), copy, code / _SETTINGS)
    return _with_words(spec, copy.there, code_root=copy.there(str(ROOT))), copy


def _settle_config(config: Path, copy: Copy, own: Path) -> None:
    """Sees to it that the settings file is in the copy, and that what it names beside it is found there."""
    place = Path(copy.there(str(config)))
    if place == config:
        place = own / config.name
        copy.files[place] = config.resolve()
        copy.moved[config] = place
    taken = {path.name for path in (*copy.files, *copy.links) if path.parent == place.parent}
    taken |= {path.name for path in copy.folders if path.parent == place.parent}
    for beside in config.parent.iterdir():
        if beside.name not in taken:
            copy.links[place.parent / beside.name] = beside


def original(spec: JobSpec, made_of: Mapping[str, Any]) -> JobSpec:
    """The job with the paths that it had before `take`: its code where it was submitted. Pure.

    Args:
        spec: the job, from a copy or not.
        made_of: its manifest, which knows where the code was.

    Raises:
        LaunchError: the manifest does not.
    """
    if spec.code_root is None:
        return spec
    code = Path(spec.run_dir) / "code"
    places = {code / name: Path(facts["folder"]) for name, facts in (made_of.get("code") or {}).items()}
    if not places:
        raise LaunchError(
            f"{spec.run_dir}/manifest.json is missing; it must say where the code was. Use `launch submit`."
        )
    if made_of.get("settings"):
        places[code / _SETTINGS] = Path(made_of["settings"]["path"]).parent

    def back(word: str) -> str:
        for place, top in places.items():
            if word == str(place) or word.startswith(f"{place}{os.sep}"):
                return str(top) + word[len(str(place)) :]
        return word

    return _with_words(spec, back, code_root=None)


def _with_words(spec: JobSpec, change: Callable[[str], str], *, code_root: str | None) -> JobSpec:
    """The job with each path among its words changed."""
    return replace(
        spec,
        script=change(spec.script),
        script_args=tuple(map(change, spec.script_args)),
        config=None if spec.config is None else change(spec.config),
        code_root=code_root,
    )
