"""Faults 28 to 33, 36, 37 and 49: what is on the disk is not what was written, or not what belongs to the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .recording import Shows
from .runs_here import NUM_STEPS, SAVE_STEPS, Ended, RunsHere, copied

STOPPED_IN = 6
"""The step in which the run that goes on has failed: its newest checkpoint is of step 4."""
NEWEST = "checkpoints/step-00000004"
PART = f"{NEWEST}/part-00000.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was not disturbed, and one that failed in step 6."""
    return tmp_path_factory.mktemp("disk")


@pytest.fixture
def runs(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> RunsHere:
    """`out` is the run that failed, to go on with."""
    runs = RunsHere(tmp_path, capsys, monkeypatch)
    if not (made / "straight").exists():
        first = RunsHere(made, capsys, monkeypatch)
        assert first.run("straight").code == 0
        assert first.run("failed", fault=f"nan@0:{STOPPED_IN}").code == 15
    copied(made / "failed", tmp_path / "out")
    return runs


@pytest.fixture
def straight(made: Path, runs: RunsHere) -> Ended:
    """The run that was not disturbed."""
    return Ended(made / "straight", 0, "")


def same(found: Ended, straight: Ended) -> bool:
    return (found.code, found.losses, found.weights) == (0, straight.losses, straight.weights)


def lost(found: Ended) -> int:
    return STOPPED_IN - 1 - found.resumed_after


def test_a_bit_that_is_flipped_on_purpose_is_found_by_the_run_that_goes_on(runs: RunsHere, straight: Ended) -> None:
    newest = NUM_STEPS - NUM_STEPS % SAVE_STEPS
    found = runs.run("flipped", fault=f"bitflip@0:{newest}")
    assert (found.code, f"fault on purpose: bitflip at part_committed {newest}" in found.said) == (0, True), found.said
    again = runs.run("flipped")
    assert again.resumed_after == newest - SAVE_STEPS
    assert f"step-{newest:08d}/part-00000.safetensors has another sha256 than its manifest says" in again.warning
    assert same(again, straight)


def cut(folder: Path) -> None:
    path = folder / PART
    path.write_bytes(path.read_bytes()[:-100])


def flip(folder: Path) -> None:
    content = bytearray((folder / PART).read_bytes())
    content[len(content) // 2] ^= 4
    (folder / PART).write_bytes(content)


def zero(folder: Path) -> None:
    content = bytearray((folder / PART).read_bytes())
    (folder / PART).write_bytes(content[:-4096] + bytes(4096))


def remove(folder: Path) -> None:
    (folder / PART).unlink()


def empty_manifest(folder: Path) -> None:
    (folder / NEWEST / "MANIFEST.json").write_bytes(b"")


def alter_manifest(folder: Path) -> None:
    path = folder / NEWEST / "MANIFEST.json"
    path.write_text(path.read_text().replace('"step": 4', '"step": 3', 1))


@pytest.mark.parametrize(
    ("row", "case", "damage"),
    [
        (28, "the newest", cut),
        (29, "the newest", flip),
        (30, "", zero),
        (31, "missing", remove),
        (32, "manifest", empty_manifest),
        (32, "manifest", alter_manifest),
    ],
)
def test_a_damaged_checkpoint(
    runs: RunsHere, straight: Ended, shows: Shows, row: int, case: str, damage: Callable[[Path], None]
) -> None:
    """It is named, and the one before it is taken; where that is damaged too, the run does not start."""
    damage(runs.folder / "out")
    found = runs.run()
    assert (same(found, straight), found.resumed_after) == (True, SAVE_STEPS)
    shows(row, case, code=found.code, says=found.warning, steps_lost=lost(found))
    if row == 28:
        for path in (runs.folder / "out" / "checkpoints").glob("step-*/part-00000.safetensors"):
            path.write_bytes(path.read_bytes()[:-100])
        found = runs.run()
        shows(28, "all", code=found.code, says=found.error)


def test_a_foreign_file_and_a_wrong_hint(runs: RunsHere, straight: Ended, shows: Shows) -> None:
    (runs.folder / "out" / NEWEST / "part-00009.safetensors").write_bytes(b"foreign")
    (runs.folder / "out" / "checkpoints" / "LATEST").write_text("step-00000999\n")
    found = runs.run()
    assert same(found, straight)
    shows(31, "foreign", code=found.code, says=found.warning, steps_lost=lost(found) - 1)
    resumed = next(line for line in found.said.splitlines() if line.startswith("resuming from"))
    shows(32, "LATEST", code=found.code, says=resumed, steps_lost=lost(found) - 1)


@pytest.mark.parametrize("damage", ["cut", "half a record more"])
def test_a_torn_log(runs: RunsHere, straight: Ended, shows: Shows, damage: str) -> None:
    log = runs.folder / "out" / "training_log.json"
    text = log.read_text()
    log.write_text(text[:-7] if damage == "cut" else text.rstrip().removesuffix("]") + ', {"type": "train", "st')
    found = runs.run()
    assert same(found, straight)
    shows(33, code=found.code, steps_lost=lost(found) - 1, note=f"{len(found.losses)} steps, each once")


def test_a_damaged_line_of_data(runs: RunsHere, shows: Shows) -> None:
    lines = runs.data.read_bytes().splitlines(keepends=True)
    runs.data.write_bytes(lines[0] + lines[1].replace(b":", b"\x07", 1) + b"".join(lines[2:]))
    found = runs.run("new")
    assert not (runs.folder / "new" / "checkpoints").exists()
    shows(36, code=found.code, says=found.error)


def test_changed_data(runs: RunsHere, shows: Shows) -> None:
    runs.data.write_text(runs.data.read_text() + runs.data.read_text().splitlines()[0] + "\n")
    found = runs.run()
    shows(37, "refused", code=found.code, says=found.error)
    found = runs.run(accept_data_change=True)
    assert len(found.losses) == NUM_STEPS
    shows(37, "accepted", code=found.code, says=found.warning, steps_lost=lost(found) - 1)


def test_a_changed_setting(runs: RunsHere, shows: Shows) -> None:
    found = runs.run(learning_rate=3e-3)
    assert "0.003" in found.error
    assert "0.01" in found.error
    shows(49, "refused", code=found.code, says=found.error)
    found = runs.run(learning_rate=3e-3, resume_override=["learning_rate"])
    assert len(found.losses) == NUM_STEPS
    shows(49, "accepted", code=found.code, steps_lost=lost(found) - 1)
