"""The folder of checkpoints: what appears there is whole, damage is found, and one process writes."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from damages import DAMAGES, damage
from faults.recording import Shows

from sft.checkpoint_search import find_checkpoint
from sft.commit import (
    LATEST,
    checkpoint_path,
    checkpoints_in,
    commit,
    prune,
    remove_leftovers,
    set_aside,
    temporary_path,
)
from sft.errors import CheckpointError, FencedError
from sft.manifest import MANIFEST, Manifest
from sft.storage import write_file
from sft.world import World

SOLO = World(0, 0, 1, torch.device("cpu"))


def nobody_else() -> None:
    """The check of a fence that nobody crossed."""


def write_checkpoint(folder: Path, step: int, check_fence: Callable[[], None] = nobody_else, label: str = "1") -> Path:
    """A small one of two parts."""
    temporary = temporary_path(folder, step, label)
    temporary.mkdir(parents=True)
    numbers = random.Random(step)
    files = {
        name: write_file(temporary / name, [numbers.randbytes(300), b"\0" * 40])
        for name in ("part-00000.safetensors", "part-00001.safetensors")
    }
    return commit(temporary, Manifest(step, 0, step, 2, 1, "test", {"step": step}, {}, files), check_fence)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def found(folder: Path) -> tuple[Path | None, list[str]]:
    said: list[str] = []
    return find_checkpoint(folder, "auto", SOLO, said.append), said


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 7)
    assert names(tmp_path) == [LATEST, "step-00000007"]
    manifest = Manifest.read(path / MANIFEST)
    assert (manifest.step, manifest.world_size, dict(manifest.state)) == (7, 2, {"step": 7})
    assert found(tmp_path) == (path, [])
    assert (path / MANIFEST).stat().st_mode & 0o777 == 0o600


def test_everything_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut loses what was not synced: each file is, then the folder's names, then the new name."""
    calls: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        calls.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        calls.append(("rename", Path(target).name))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    folder = tmp_path / "checkpoints"
    write_checkpoint(folder, 7)
    assert calls[:7] == [
        ("sync", "part-00000.safetensors"),
        ("sync", "part-00001.safetensors"),
        ("sync", MANIFEST),
        ("sync", "step-00000007.tmp-1"),
        ("rename", "step-00000007"),
        ("sync", "checkpoints"),
        ("sync", f".{LATEST}"),
    ]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in range(1, 7):
        write_checkpoint(tmp_path, step)
        prune(tmp_path, 2, best_step=2 if step > 1 else 1)
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step-00000006", "step-00000005", "step-00000002"]


@pytest.mark.parametrize("latest", [b"", b"step-00000999", b"\xff\x00garbage", None])
def test_the_hint_may_say_anything(tmp_path: Path, latest: bytes | None) -> None:
    path = write_checkpoint(tmp_path, 7)
    if latest is None:
        (tmp_path / LATEST).unlink()
    else:
        (tmp_path / LATEST).write_bytes(latest)
    assert found(tmp_path) == (path, [])


def test_what_dead_writers_left_is_removed_and_is_never_a_checkpoint(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 7)
    shutil.copytree(path, tmp_path / "step-00000008.tmp-1-2")
    shutil.copytree(path, tmp_path / "step-00000006.gone")
    assert found(tmp_path) == (path, [])
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [LATEST, "step-00000007"]


def test_a_file_that_does_not_belong_there_is_told_and_ignored(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 7)
    (path / "notes.txt").write_text("mine")
    assert found(tmp_path) == (path, [f"warning: {path}/notes.txt does not belong to the checkpoint; it is not read."])


def test_later_checkpoints_are_set_aside_until_there_is_a_new_one(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        write_checkpoint(tmp_path, step)
    set_aside(tmp_path, 2, "9")
    assert names(tmp_path) == [LATEST, "step-00000002", "step-00000004.aside-9", "step-00000006.aside-9"]
    assert found(tmp_path)[0] == checkpoint_path(tmp_path, 2)
    aside = tmp_path / "step-00000006.aside-9"
    assert find_checkpoint(tmp_path, str(aside), SOLO, print) == aside
    write_checkpoint(tmp_path, 3)
    prune(tmp_path, 1, best_step=None)
    assert names(tmp_path) == [LATEST, "step-00000003"]


def test_a_fenced_writer_does_not_commit(tmp_path: Path) -> None:
    def refuse() -> None:
        raise FencedError("taken over")

    write_checkpoint(tmp_path, 1)
    with pytest.raises(FencedError):
        write_checkpoint(tmp_path, 2, refuse)
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step-00000001"]


def test_a_writer_whose_check_came_just_before_it_was_taken_over_finds_no_folder_to_rename(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_checkpoint(tmp_path, 2, lambda: remove_leftovers(tmp_path))
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_told_and_the_one_before_taken(tmp_path: Path, kind: str) -> None:
    before, path = write_checkpoint(tmp_path, 7), write_checkpoint(tmp_path, 8)
    file = damage(kind, path, random.Random(0))
    taken, said = found(tmp_path)
    assert taken == before
    assert len(said) == 1
    assert str(file) in said[0]
    assert said[0].endswith(f"The newest checkpoint that is as it was written is {before}.")
    with pytest.raises(CheckpointError, match=file.name):
        find_checkpoint(tmp_path, str(path), SOLO, print)
    damage(kind, before, random.Random(1))
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* is as it was written\. .*_checkpoint: none"):
        found(tmp_path)


@pytest.mark.parametrize(
    "number", [60, pytest.param(1000, marks=pytest.mark.soak)], ids=["a sample", "as many as the promise"]
)
def test_every_random_damage_is_found(tmp_path: Path, shows: Shows, number: int) -> None:
    """Failure of a disk or of a copy: bits, ends, holes and whole files, at random places of any file."""
    whole = write_checkpoint(tmp_path / "whole", 8)
    for seed in range(number):
        numbers = random.Random(seed)
        folder = tmp_path / f"{seed}"
        before = write_checkpoint(folder, 7)
        shutil.copytree(whole, folder / whole.name)
        kind = numbers.choice(DAMAGES)
        file = damage(kind, folder / whole.name, numbers)
        taken, said = found(folder)
        assert taken == before, (seed, kind, file)
        assert str(file) in said[0]
        shutil.rmtree(folder)
    shows(29, "1,000", note=f"{number} of {number} found")
