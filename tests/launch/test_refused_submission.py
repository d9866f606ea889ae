"""What a submission that is refused, or a resumption, leaves behind: what was there before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from made_runs import end_run, made_run, write

from launch import resuming
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
