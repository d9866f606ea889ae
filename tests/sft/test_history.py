"""The log of a run that was interrupted: nothing twice, nothing lost that was on the disk, valid whatever happened."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from sft.errors import FencedError, NonFiniteError, StorageError
from sft.event_file import EventFile, Scalars
from sft.history import History
from sft.storage import write_json


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is written beside the training; here it is waited for, however busy the machine is."""
    monkeypatch.setattr("sft.history._PATIENCE_S", 60.0)


def record(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 1.0 / step, "tokens_per_s": 1.0}


def steps(folder: Path) -> list[int]:
    return [record["step"] for record in json.loads((folder / "training_log.json").read_text())]


def shown(folder: Path) -> list[int]:
    """The steps whose losses TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars("train/loss")]


def run(folder: Path, first_step: int, last_step: int, *, tensorboard: bool = False) -> None:
    with History(folder, 10, is_main=True, tensorboard=tensorboard) as history:
        history.start(first_step)
        for step in range(first_step + 1, last_step + 1):
            history.log_step(record(step))


def test_a_run_that_goes_on_logs_no_step_twice(tmp_path: Path) -> None:
    run(tmp_path, 0, 7)
    run(tmp_path, 5, 10)
    assert steps(tmp_path) == list(range(1, 11))


@pytest.mark.parametrize("damage", ["torn", "half a record more", "zeros", "garbage", "not a list"])
def test_a_damaged_log_is_read_up_to_its_last_whole_record(tmp_path: Path, damage: str) -> None:
    run(tmp_path, 0, 7)
    path = tmp_path / "training_log.json"
    text = path.read_text()
    damaged = {
        "torn": text[:-20],
        "half a record more": f'{text.rstrip().removesuffix("]")},{{"type": "train", "step": 8, "lo',
        "zeros": text[:-20] + "\0" * 20,
        "garbage": text[: text.index('"step": 7')] + "\udcff",
        "not a list": '{"step": 1}',
    }
    path.write_bytes(damaged[damage].encode("utf-8", "surrogateescape"))
    run(tmp_path, 5, 7)
    expected = {"not a list": [6, 7]}
    assert steps(tmp_path) == expected.get(damage, list(range(1, 8)))


def test_a_full_disk_does_not_end_the_run_and_loses_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def refuse(path: Path, value: Any) -> None:
        raise StorageError(f"{path} cannot be written: {os.strerror(errno.ENOSPC)}.")

    monkeypatch.setattr("sft.history._FLUSH_INTERVAL_S", 0.0)
    with History(tmp_path, 10, is_main=True, tensorboard=False, say=said.append) as history:
        history.start(0)
        history.log_step(record(1))
        with monkeypatch.context() as patch:
            patch.setattr("sft.history.write_json", refuse)
            for step in (2, 3):
                history.log_step(record(step))
            assert steps(tmp_path) == [1]
        history.keep()
        assert steps(tmp_path) == [1, 2, 3]
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert "The log is kept in memory" in said[0]


def test_a_disk_that_stands_still_does_not_hold_up_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other ranks wait in the next step, which may take no longer than the watchdog allows."""
    moves, started, has_waited = threading.Event(), threading.Event(), threading.Event()

    def write_late(path: Path, value: Any) -> None:
        started.set()
        if not moves.wait(60):
            has_waited.set()
        write_json(path, value)

    monkeypatch.setattr("sft.history._FLUSH_INTERVAL_S", 0.0)
    monkeypatch.setattr("sft.history._PATIENCE_S", 0.001)
    monkeypatch.setattr("sft.history.write_json", write_late)
    with History(tmp_path, 10, is_main=True, tensorboard=True) as history:
        history.start(0)
        for step in range(1, 5):
            history.log_step(record(step))
        assert started.wait(60)
        assert not has_waited.is_set()
        moves.set()
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert shown(tmp_path) == [1, 2, 3, 4]


def test_an_error_beside_the_training_ends_it_at_the_next_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_fenced = threading.Event()

    def refuse_late() -> None:
        assert is_fenced.wait(60)
        raise FencedError("taken over")

    monkeypatch.setattr("sft.history._PATIENCE_S", 0.001)
    history = History(tmp_path, 1, is_main=True, tensorboard=False, check=refuse_late)
    history.start(0)
    history.log_step(record(1))
    is_fenced.set()
    assert history._flushing is not None
    history._flushing.join(60)
    with pytest.raises(FencedError):
        history.log_step(record(2))


def test_a_full_disk_leaves_no_half_event_and_none_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tensorboard"
    file = EventFile(folder)
    events = [Scalars(step, 0.0, {"train/loss": 1.0}) for step in range(1, 5)]
    original = os.write
    for first in (0, 2):  # with and without a head
        with monkeypatch.context() as patch:
            rooms = iter([10, 0])

            def write(descriptor: int, data: Any, rooms: Any = rooms) -> int:
                if (room := next(rooms)) == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return original(descriptor, data[:room])

            patch.setattr(os, "write", write)
            with pytest.raises(OSError, match="No space left"):
                file.write(events[first : first + 2])
        file.write(events[first : first + 2])
    file.close()
    assert shown(tmp_path) == [1, 2, 3, 4]


def test_a_process_that_was_taken_over_writes_no_log(tmp_path: Path) -> None:
    def refuse() -> None:
        raise FencedError("taken over")

    history = History(tmp_path, 1, is_main=True, tensorboard=False, check=refuse)
    history.start(0)
    with pytest.raises(FencedError):
        history.log_step(record(1))
    with pytest.raises(NonFiniteError), history:
        raise NonFiniteError("what ended the run")
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_cannot_be_written_in_the_end_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    history = History(folder, 1, is_main=True, tensorboard=False, say=lambda _: None)
    history.start(0)
    history.log_step(record(1))
    folder.rename(tmp_path / "moved")
    with pytest.raises(StorageError), history:
        pass
    assert not folder.exists()


def test_tensorboard_shows_each_step_once_after_a_kill(tmp_path: Path) -> None:
    """As a reader of TensorBoard's files sees them: what came after the checkpoint is hidden, what replaces it not."""
    history = History(tmp_path, 10, is_main=True, tensorboard=True)
    history.start(0)
    for step in range(1, 8):
        history.log_step(record(step))
    history.keep()  # as before a checkpoint; the process then dies without closing anything
    run(tmp_path, 5, 10, tensorboard=True)
    assert shown(tmp_path) == list(range(1, 11))
    history._writer.close()
    history._bar.close()
