"""Faults 24 to 26, 41 and 42: a disk that is full, read-only or gone. Real file systems: mounting needs root."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.__main__ import main as launch

from .recording import Shows
from .runs_here import RunsHere

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="file systems are mounted, which needs root")
SIZE_MIB = 24


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def runs(disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> RunsHere:
    """Runs on the small file system, whose data lies elsewhere."""
    return RunsHere(tmp_path, capsys, monkeypatch, output=disk)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[tuple[str, int], Callable[[], None]]], None]:
    """Lets something happen at points of a run: (point, step) → what."""

    def install(actions: dict[tuple[str, int], Callable[[], None]]) -> None:
        def act(point: str, step: int, rank: int) -> None:
            action = actions.pop((point, step), None)
            if action is not None:
                action()

        for module in ("sft.loop", "sft.resuming"):
            monkeypatch.setattr(f"{module}.fault_at", act)

    return install


def mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


def fill(disk: Path, spare: int = 0) -> None:
    """Leaves so many bytes free."""
    status = os.statvfs(disk)
    descriptor = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        os.truncate(descriptor, 0)
        os.posix_fallocate(descriptor, 0, status.f_bavail * status.f_frsize - spare)
    finally:
        os.close(descriptor)
    assert os.statvfs(disk).f_bavail * status.f_frsize <= spare


def clear(disk: Path) -> None:
    (disk / "filler").unlink()


def resumes_after(runs: RunsHere, step: int) -> bool:
    """Whether the run, called again, ends well, from the checkpoint of this step."""
    found = runs.run()
    assert (found.code, found.resumed_after) == (0, step), found.said
    return True


def test_too_little_room_is_told_before_the_first_step(runs: RunsHere, disk: Path, shows: Shows) -> None:
    fill(disk, 200_000)
    found = runs.run()
    assert not (disk / "out" / "training_log.json").exists()
    shows(24, code=found.code, says=found.error)


@pytest.mark.parametrize("case", ["once", "for good"])
def test_a_disk_that_fills_up_in_a_save(
    runs: RunsHere, disk: Path, at: Callable[..., None], shows: Shows, case: str
) -> None:
    actions = {("save_part", 4): lambda: fill(disk)}
    if case == "once":
        actions["save_copied", 6] = lambda: clear(disk)
    at(actions)
    found = runs.run()
    assert not [name for name in found.checkpoints if ".tmp-" in name]
    if case == "once":
        assert found.checkpoints == [f"step-{step:08d}" for step in (2, 6, 8)] or "LATEST" in found.checkpoints
        assert len(found.losses) == 8
        shows(25, case, code=found.code, says=found.warning, steps_lost=0)
        return
    shows(25, case, code=found.code, says=found.error)
    clear(disk)
    assert resumes_after(runs, 2)


def test_a_log_that_finds_no_room_is_written_later(
    runs: RunsHere, disk: Path, at: Callable[..., None], shows: Shows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sft.history._FLUSH_INTERVAL_S", 0.0)
    monkeypatch.setattr("sft.history._PATIENCE_S", 60.0)
    log = disk / "out" / "training_log.json"
    between: list[int] = []
    at(
        {
            ("step", 4): lambda: fill(disk),
            ("step", 6): lambda: between.append(len(json.loads(log.read_text()))),
            ("step", 7): lambda: clear(disk),
        }
    )
    found = runs.run(save_steps=0)
    assert between == [3]  # a whole log, of the steps before
    assert "The log is kept in memory until it can be written" in found.warning
    assert len(found.losses) == 8
    shows(26, code=found.code, says=found.warning, steps_lost=0)


@pytest.mark.parametrize("lora", [{}, {"lora": {"r": 2}}], ids=["whole", "adapter"])
def test_a_final_model_that_finds_no_room(
    runs: RunsHere, disk: Path, at: Callable[..., None], lora: dict[str, object]
) -> None:
    at({("step", 4): lambda: fill(disk)})
    found = runs.run(max_steps=4, save_steps=3, **lora)
    assert found.code == 13
    assert "cannot be written: No space left on device" in found.error
    assert not list((disk / "out").glob("*.safetensors"))
    assert not list((disk / "out").glob(".*tmp*"))
    clear(disk)
    found = runs.run(max_steps=4, save_steps=3, **lora)
    assert (found.code, found.resumed_after) == (0, 3), found.said


def set_read_only(folder: Path) -> None:
    mount("--bind", str(folder), str(folder))
    mount("-o", "remount,bind,ro", str(folder))


@pytest.mark.parametrize("case", ["at the start", "in the middle"])
def test_a_read_only_run_directory(
    runs: RunsHere, disk: Path, at: Callable[..., None], shows: Shows, case: str
) -> None:
    (disk / "out").mkdir()
    if case == "at the start":
        set_read_only(disk / "out")
    else:
        at({("save_part", 4): lambda: set_read_only(disk / "out")})
    found = runs.run()
    subprocess.run(["umount", "--lazy", str(disk / "out")], check=True)
    shows(41, case, code=found.code, says=found.error)
    assert resumes_after(runs, 0 if case == "at the start" else 2)


def test_a_submission_to_a_read_only_folder(
    disk: Path, shows: Shows, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (disk / "probe.py").write_text("")
    set_read_only(disk)
    monkeypatch.chdir(disk)
    began = time.monotonic()
    code = launch(["submit", "--executor", "local", "--script", "probe.py", "--name", "x"])
    took_s = time.monotonic() - began
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
    shows(41, "at submission", code=code, says=capsys.readouterr().err, found_s=took_s)
    assert not (disk / "runs").exists()


def test_a_run_directory_that_is_moved_away(runs: RunsHere, disk: Path, at: Callable[..., None], shows: Shows) -> None:
    at({("step", 5): lambda: (disk / "out").rename(disk / "away")})
    found = runs.run()
    assert not (disk / "out").exists()
    shows(42, code=found.code, says=found.error)
    (disk / "away").rename(disk / "out")
    assert resumes_after(runs, 4)
