"""What a submission that is refused, or a resumption, leaves behind: what was there before."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from made_runs import end_run, made_run, write

from launch import attempts, resuming
from launch.__main__ import main
from launch.errors import LaunchError
from launch.spec import JobSpec

MakeSpec = Callable[..., JobSpec]


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("names", [(), ("notes.txt",), ("code/mine.py", "logs/old.txt", "manifest.json", "exit/0/x")])
def test_only_what_the_submission_made_is_removed(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_text(name)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="a bad row"):
        _submit_in_vain(tmp_path / "x")
    assert contents(tmp_path) == before
    assert (tmp_path / "x").exists() == bool(names)


def _submit_in_vain(folder: Path) -> None:
    with resuming.claimed(folder):
        for name in ("job.json", "submit.sh", "plan.txt", "submitit/1.pkl"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("new")
        raise ValueError("a bad row")


def test_a_refused_resumption_leaves_a_cancelled_run_cancelled(tmp_path: Path, make_spec: MakeSpec) -> None:
    run = made_run(tmp_path / "x", make_spec, executor="local")
    end_run(run, 10)
    write(run.path / "cancelled.json", {"by": "launch cancel"})
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="refused"), resuming.claimed_again(run):
        raise ValueError("refused")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_copied_or_renamed_run_is_not_resumed(
    tmp_path: Path, make_spec: MakeSpec, capsys: pytest.CaptureFixture[str], is_gone: bool
) -> None:
    run = made_run(tmp_path / "x", make_spec, executor="local")
    end_run(run, 10)
    shutil.copytree(run.path, tmp_path / "y")
    if is_gone:
        shutil.rmtree(run.path)
    before = contents(tmp_path)
    assert main(["resume", str(tmp_path / "y")]) == 2
    assert f"{tmp_path / 'y'} was copied or renamed; it must be where it was submitted" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_disk_without_room_is_told_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "claims"))

    monkeypatch.chdir(tmp_path)
    (tmp_path / "probe.py").write_text("")
    monkeypatch.setattr("launch.resuming.make_claim", full)
    assert main(["submit", "--executor", "local", "--script", "probe.py"]) == 13
    assert f"error: {tmp_path}/claims: No space left on device. Make room there" in capsys.readouterr().err


SUBMIT = ["submit", "--executor", "local", "--script", "probe.py", "--dry-run"]


@pytest.fixture
def linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output directory that is a link, and a script."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "probe.py").write_text("")
    (tmp_path / "disk" / "out").mkdir(parents=True, mode=0o700)
    (tmp_path / "runs").mkdir(mode=0o700)
    (tmp_path / "runs" / "x").symlink_to(tmp_path / "disk" / "out")
    return tmp_path / "runs" / "x"


def test_a_run_directory_may_be_a_link(linked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A link's own mode is 0777, which says nothing."""
    assert linked.lstat().st_mode & 0o777 == 0o777
    assert main([*SUBMIT, "--name", "x"]) == 0
    assert attempts.begin(linked, "7", {}) == 0
    linked.parent.joinpath("y").symlink_to(linked.parent / "nothing")
    assert main([*SUBMIT, "--name", "y"]) == 2
    assert f"{linked.parent}/y'; it must not be a link to nothing" in capsys.readouterr().err


def test_a_run_directory_that_others_may_write_is_refused_at_submission(
    linked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    linked.chmod(0o775)  # of what it leads to
    assert main([*SUBMIT, "--name", "x"]) == 2
    said = capsys.readouterr().err
    assert f"the run directory is '{linked}'; it must be yours, and writable by you alone." in said
    assert f"mode 775; it must belong to user {os.geteuid()} and be writable by no other. Use `chmod go-w" in said


def test_a_run_directory_of_another_user_is_refused(linked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: linked.stat().st_uid + 1)
    with pytest.raises(LaunchError, match=rf"belongs to user {linked.stat().st_uid} .* Choose another directory\."):
        attempts.check_owner(linked)
