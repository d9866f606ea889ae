"""Saving beside the training: what is written, what happens when the disk does not take it, what is never written."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from crash_points import FakeEngine, checkpoints_of, held
from safetensors.torch import load_file, save_file

from sft.agreement import await_all
from sft.checkpoint import SAVE_POINTS, Checkpoints, RunState
from sft.checkpoint_write import CheckpointWrite, part_name
from sft.commit import checkpoints_in
from sft.errors import CheckpointError, NonFiniteError, StorageError
from sft.heartbeat import Heartbeat
from sft.manifest import MANIFEST, Manifest
from sft.pieces import PartFiles, Piece, file_chunks, share_sizes
from sft.storage import Written, write_file
from sft.world import World


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    found: Checkpoints = checkpoints_of(tmp_path, held(tmp_path))
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


def failing(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full for the next so many parts."""
    left = iter(range(number))
    original = write_file

    def write(path: Path, chunks: Any) -> Any:
        if path.suffix == ".safetensors" and next(left, None) is not None:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path, chunks)

    monkeypatch.setattr("sft.checkpoint_write.write_file", write)


def test_what_is_saved_is_what_was_when_save_was_called(checkpoints: Checkpoints) -> None:
    engine: Any = FakeEngine(3)
    checkpoints.save(engine, RunState(step=3))
    engine.values.fill_(4.0)
    checkpoints.save(engine, RunState(step=4))
    engine.values.fill_(5.0)
    checkpoints.finish()
    (path,) = checkpoints_in(checkpoints.folder)
    assert path.name == "step-00000004"
    tensors = load_file(path / "part-00000.safetensors")
    assert tensors.keys() == {f"{kind}/0/{name}" for kind in ("weight", "exp_avg", "exp_avg_sq") for name in "ab"}
    assert all(tensor.tolist() == [4.0] * 700 for tensor in tensors.values())
    manifest = Manifest.read(path / MANIFEST)
    assert (manifest.step, manifest.epoch, manifest.position, manifest.token) == (4, 0, 4, 1)


def test_each_point_of_a_save_is_told(checkpoints: Checkpoints) -> None:
    told: list[tuple[str, int]] = []
    checkpoints._at = lambda point, step: told.append((point, step))
    checkpoints.save(FakeEngine(3), RunState(step=3))
    checkpoints.finish()
    assert {point for point, _ in told} == set(SAVE_POINTS)
    assert told[-2:] == [("save_commit", 3), ("save_committed", 3)]


def test_an_error_at_a_point_is_told_by_the_next_save(checkpoints: Checkpoints) -> None:
    def full(point: str, step: int) -> None:
        if (point, step) == ("save_commit", 3):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if (point, step) == ("save_part", 5):
            raise RuntimeError("a mistake of ours")

    checkpoints._at = full
    checkpoints.save(FakeEngine(3), RunState(step=3))
    checkpoints.save(FakeEngine(4), RunState(step=4))
    checkpoints.save(FakeEngine(5), RunState(step=5))
    assert names(checkpoints.folder) == ["step-00000004"]
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        checkpoints.finish()
    assert names(checkpoints.folder) == ["step-00000004"]


def test_a_step_is_saved_once(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save(FakeEngine(3), RunState(step=3))
    checkpoints.finish()
    failing(9, monkeypatch)
    checkpoints.save(FakeEngine(3), RunState(step=3))
    checkpoints.finish()


def test_a_full_disk_is_told_and_tried_again(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    checkpoints._say = said.append
    checkpoints.save(FakeEngine(1), RunState(step=1))
    checkpoints.finish()
    failing(1, monkeypatch)
    checkpoints.save(FakeEngine(2), RunState(step=2))
    checkpoints.save(FakeEngine(3), RunState(step=3))
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert "The checkpoint of step 2 is not written; it is tried once more." in said[0]
    assert "step-00000001" in names(checkpoints.folder)
    checkpoints.finish()
    assert names(checkpoints.folder) == ["step-00000003"]


@pytest.mark.parametrize("failing_file", ["part-00000.safetensors", ".part-00000.json", MANIFEST])
def test_what_was_half_written_goes_at_once_so_that_others_find_room(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, failing_file: str
) -> None:
    original = write_file

    def write(path: Path, chunks: Any) -> Any:
        if path.name == failing_file:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(path, chunks)

    for module in ("sft.checkpoint_write", "sft.commit"):
        monkeypatch.setattr(f"{module}.write_file", write)
    checkpoints.save(FakeEngine(2), RunState(step=2))
    assert checkpoints._writing is not None
    checkpoints._writing.join(60)  # and nobody has asked yet how it went
    assert [path for path in checkpoints.folder.rglob("*") if path.is_file()] == []


def test_two_failures_in_a_row_end_the_run_and_the_old_checkpoint_stays(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.save(FakeEngine(1), RunState(step=1))
    checkpoints.finish()
    failing(2, monkeypatch)
    checkpoints.save(FakeEngine(2), RunState(step=2))
    checkpoints.save(FakeEngine(3), RunState(step=3))
    with pytest.raises(StorageError, match="No space left on device") as caught:
        checkpoints.save(FakeEngine(4), RunState(step=4))
    assert caught.value.exit_code == 13
    assert names(checkpoints.folder) == ["step-00000001"]
    assert checkpoints.find("auto") == checkpoints.path(1)


def test_the_best_checkpoint_is_the_one_that_is_tried_again(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(1, monkeypatch)
    checkpoints.save(FakeEngine(2), RunState(step=2, best_step=2))
    checkpoints.save(FakeEngine(3), RunState(step=3, best_step=2))
    checkpoints.finish()
    assert names(checkpoints.folder) == ["step-00000002", "step-00000003"]
    engine: Any = FakeEngine(3)
    checkpoints.load_best(RunState(step=3, best_step=2), engine)
    assert engine.values.tolist() == [2.0] * 700


def test_a_best_checkpoint_that_was_never_written_is_told(checkpoints: Checkpoints) -> None:
    said: list[str] = []
    checkpoints._say = said.append
    engine: Any = FakeEngine(4)
    checkpoints.load_best(RunState(step=4, best_step=3), engine)
    (line,) = said
    assert "step-00000003, of the best evaluation, is not there; the model is that of step 4." in line
    assert engine.values.tolist() == [4.0] * 700
    checkpoints.load_best(RunState(step=4), engine)
    checkpoints.load_best(RunState(step=4, best_step=4), engine)
    assert len(said) == 1


@pytest.mark.parametrize("number", [1, 2])
def test_the_last_checkpoint_is_tried_twice(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    failing(number, monkeypatch)
    checkpoints.save(FakeEngine(2), RunState(step=2))
    if number == 1:
        checkpoints.finish()
        assert names(checkpoints.folder) == ["step-00000002"]
    else:
        with pytest.raises(StorageError):
            checkpoints.finish()
        assert names(checkpoints.folder) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_never_a_checkpoint(checkpoints: Checkpoints, value: float) -> None:
    checkpoints.save(FakeEngine(1), RunState(step=1))
    engine: Any = FakeEngine(2)
    engine.values[699] = value
    checkpoints.save(engine, RunState(step=2))
    with pytest.raises(NonFiniteError, match="the weight of a has values that are no finite numbers"):
        checkpoints.finish()
    assert names(checkpoints.folder) == ["step-00000001"]


def test_a_run_directory_that_is_gone_is_not_made_again(checkpoints: Checkpoints, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path)
    checkpoints.save(FakeEngine(1), RunState(step=1))
    with pytest.raises(StorageError):
        checkpoints.finish()
    assert not tmp_path.exists()
    tmp_path.mkdir()


def test_room_is_looked_for_before_the_first_step(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Any = FakeEngine(0)
    one = 6 * 700 * 4
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=3 * one - 1, f_frsize=1))
    checkpoints.begin(engine, 0, 2)
    with pytest.raises(
        StorageError, match=r"has 0\.1 MB free; 4 checkpoints of 0\.0 MB need 0\.1 MB more\. Free space there"
    ) as e:
        checkpoints.begin(engine, 0, 4)
    assert e.value.exit_code == 13
    checkpoints.begin(engine, 0, 0)


def test_rank_0_does_not_wait_for_a_part_that_failed(tmp_path: Path) -> None:
    committed: list[Any] = []
    writing = CheckpointWrite(
        tmp_path / "t" / "step.tmp", 0, lambda: [b"part"], num_parts=2, commits=committed.append, timeout_s=60
    )
    writing.start()
    assert writing.part_done.wait(10)
    assert writing.is_alive()
    writing.give_up.set()
    writing.join(10)
    assert not writing.is_alive()
    assert (committed, writing.part_error, writing.commit_error) == ([], None, None)


class Beats(Heartbeat):
    """Counts them."""

    num_beats = 0

    def again(self) -> None:
        self.num_beats += 1


def test_a_part_that_takes_long_is_no_hang_while_bytes_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = Beats()
    monkeypatch.setattr("sft.agreement.ROUND_S", 0.01)
    checkpoints = checkpoints_of(tmp_path, held(tmp_path))
    checkpoints._world = replace(checkpoints._world, heartbeat=beats)
    seen: list[bool] = []

    def write(path: Path, chunks: Any) -> Any:
        if path.suffix != ".safetensors":
            return write_file(path, chunks)
        last = beats.num_beats
        for number, _ in enumerate(chunks):
            if number:  # the one before is written, which must be told before this one is
                deadline = time.monotonic() + 20
                while beats.num_beats == last and time.monotonic() < deadline:
                    time.sleep(0.001)
                seen.append(beats.num_beats > last)
            last = beats.num_beats
        return Written(0, "")

    monkeypatch.setattr("sft.checkpoint_write.write_file", write)
    monkeypatch.setattr("sft.pieces._CHUNK_ELEMENTS", 500)
    checkpoints.save(FakeEngine(2), RunState(step=2))
    with pytest.raises(StorageError):  # nothing was written
        checkpoints.finish()
    assert len(seen) > 10
    assert all(seen)


def test_a_disk_that_is_stuck_is_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds in which no byte is written pass without a sign of life."""
    beats, done = Beats(), threading.Event()
    written = iter([10, 10, 10, 20, 20])

    def num_bytes() -> int:
        if (found := next(written)) == 20:
            done.set()
        return found

    monkeypatch.setattr("sft.agreement.ROUND_S", 0.001)
    await_all(World(0, 0, 1, torch.device("cpu"), heartbeat=beats), done, num_bytes)
    assert next(written, None) is None
    assert beats.num_beats == 2


def test_a_rank_that_is_ready_shows_that_it_lives_while_another_writes() -> None:
    class Slower(World):
        """A second rank that writes 10 bytes in each of five rounds."""

        def sum(self, *values: float) -> list[float]:
            rounds.append(values)
            return [values[0] + (len(rounds) < 5), values[1] + 10 * len(rounds)]

    rounds: list[tuple[float, ...]] = []
    beats, done = Beats(), threading.Event()
    done.set()
    await_all(Slower(0, 0, 2, torch.device("cpu"), heartbeat=beats), done, lambda: 50)
    assert rounds == [(0.0, 50.0)] * 5
    assert beats.num_beats == 5


def test_a_large_file_reaches_the_disk_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("sft.storage.SYNC_BYTES", 100)
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    write_file(tmp_path / "a", [b"x" * 60] * 5)
    assert synced == [120, 240]


def test_a_part_that_never_comes_or_is_cut_is_a_storage_error(tmp_path: Path) -> None:
    def run(name: str, prepare: Callable[[Path], None]) -> BaseException | None:
        (tmp_path / name).mkdir()
        prepare(tmp_path / name)
        writing = CheckpointWrite(
            tmp_path / name, 0, lambda: [b"part"], num_parts=2, commits=lambda _: None, timeout_s=0.1
        )
        writing.run()
        return writing.commit_error

    def cut(folder: Path) -> None:
        (folder / part_name(1)).write_bytes(b"pa")
        (folder / "part-00001.json").write_text('{"size": 4, "sha256": ""}')

    assert "part-00001.json is not there after 0 s. Is rank 1 alive, and" in str(run("late", lambda _: None))
    assert "part-00001.safetensors has 2 bytes; it must have 4." in str(run("cut", cut))


def test_parts_of_other_hosts_are_seen_on_nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS keeps in mind that a name was not there, and the size that a listing told, until it looks again."""
    original_stat, original_listdir = os.stat, os.listdir
    unknown: set[str] = set()

    def stat(path: Any, **options: Any) -> os.stat_result:
        try:
            if str(path) in unknown:
                raise FileNotFoundError(path)
            found = original_stat(path, **options)
        except FileNotFoundError:
            unknown.add(str(path))
            raise
        if Path(path).name == part_name(1):
            return os.stat_result((*found[:6], 0, *found[7:]))  # as it was when rank 1 had made it
        return found

    def listdir(path: Any) -> list[str]:
        found = original_listdir(path)
        unknown.clear()
        if part_name(1) not in found:
            (path / part_name(1)).write_bytes(b"part")
            (path / "part-00001.json").write_text('{"size": 4, "sha256": "x"}')
        return found

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(os, "listdir", listdir)
    committed: list[Any] = []
    folder = tmp_path / "t" / "step.tmp"
    writing = CheckpointWrite(folder, 0, lambda: [b"part"], num_parts=2, commits=committed.append, timeout_s=60)
    writing.run()
    assert (writing.part_error, writing.commit_error) == (None, None)
    assert [sorted(parts) for parts in committed] == [[part_name(0), part_name(1)]]


def written_by(num_ranks: int, whole: torch.Tensor, folder: Path, *, replicated: bool) -> list[Path]:
    """The files of ranks that hold all of a parameter, or a part each."""
    files = []
    for rank in range(num_ranks):
        start, stop = (0, 10) if replicated else (10 * rank // num_ranks, 10 * (rank + 1) // num_ranks)
        copy = (rank, num_ranks) if replicated else (0, 1)
        pieces = [Piece("a.b/c", "weight", start, stop - start, 10, *copy)]
        own = whole[start:stop][pieces[0].share]
        assert share_sizes(pieces) == [len(own)]
        files.append(folder / f"{rank}")
        write_file(files[-1], file_chunks(pieces, own.contiguous()))
    return files


@pytest.mark.parametrize("replicated", [True, False])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 13])
def test_parts_of_any_number_of_ranks_are_read_by_any_other(tmp_path: Path, num_ranks: int, replicated: bool) -> None:
    whole = torch.arange(10.0)
    files = PartFiles(written_by(num_ranks, whole, tmp_path, replicated=replicated))
    for start in range(10):
        for size in range(11 - start):
            assert torch.equal(files.read(Piece("a.b/c", "weight", start, size, 10)), whole[start : start + size])
    with pytest.raises(CheckpointError, match=r"has 10 elements of the weight of a\.b/c, 10 of the 10"):
        files.read(Piece("a.b/c", "weight", 0, 10, 20))
    with pytest.raises(CheckpointError, match="has 0 elements of the weight of z"):
        files.read(Piece("z", "weight", 0, 10, 10))


def test_a_missing_part_and_a_foreign_file_are_told(tmp_path: Path) -> None:
    files = written_by(3, torch.arange(10.0), tmp_path, replicated=False)
    with pytest.raises(CheckpointError, match="7 of the 10 that this rank needs"):
        PartFiles([files[0], files[2]]).read(Piece("a.b/c", "weight", 0, 10, 10))
    save_file({"weight": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="foreign cannot be read"):
        PartFiles([tmp_path / "foreign"])
