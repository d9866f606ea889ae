"""Weights & Biases: one run over several attempts, no step twice, and nothing of it imported unasked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_args, write_conversations

from sft.history import History
from sft.trackers import WandbTracker
from sft.train import train_with
from sft.train_imports import import_libraries
from strict_settings import SettingsError


class FakeRun:
    """Remembers what it was told."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.is_finished = False

    def log(self, scalars: dict[str, Any], step: int) -> None:
        self.logged.append((step, scalars))

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """The runs that a stand-in for the library has begun."""
    import types

    begun: list[FakeRun] = []

    def init(**options: Any) -> FakeRun:
        begun.append(FakeRun(**options))
        return begun[-1]

    library: Any = types.ModuleType("wandb")
    library.init, library.api = init, types.SimpleNamespace(api_key=None)
    library.__spec__ = types.SimpleNamespace(name="wandb")
    monkeypatch.setitem(sys.modules, "wandb", library)
    return begun


def attempt(folder: Path, steps: range, *, first_step: int, dies: bool = False) -> None:
    """One attempt that logs these steps."""
    history = History(
        folder, 10, is_main=True, tensorboard=False, tracker=lambda: WandbTracker(folder, "run", {"seed": 42})
    )
    history.start(first_step)
    for step in steps:
        history.log_step({"step": step, "loss": 1 / step, "tokens_per_s": 1.0, "mfu": None})
        history.flush()
        if step % 2 == 0:
            history.log_eval({"step": step, "eval_loss": 2 / step})
    if not dies:
        history.__exit__(None, None, None)


def test_three_attempts_are_one_run_without_a_step_twice(tmp_path: Path, runs: list[FakeRun]) -> None:
    attempt(tmp_path, range(1, 5), first_step=0, dies=True)
    attempt(tmp_path, range(3, 8), first_step=2, dies=True)
    attempt(tmp_path, range(6, 11), first_step=5)
    assert len({run.options["id"] for run in runs}) == 1
    assert {run.options["mode"] for run in runs} == {"offline"}
    assert [run.is_finished for run in runs] == [False, False, True]
    logged = [(step, name) for run in runs for step, scalars in run.logged for name in scalars]
    assert len(logged) == len(set(logged))
    assert sorted(step for step, name in logged if name == "train/loss") == list(range(1, 11))
    assert (10, "eval/eval_loss") in logged
    assert not any(name.endswith("mfu") for _, name in logged)


def test_ranks_that_only_train_have_none(tmp_path: Path, runs: list[FakeRun]) -> None:
    history = History(tmp_path, 1, is_main=False, tensorboard=False, tracker=lambda: WandbTracker(tmp_path, "r", {}))
    history.start(0)
    assert runs == []


def test_nothing_of_it_is_imported_unasked() -> None:
    code = (
        "import sys, sft.train, sft.history, sft.trackers, sft.loop\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'wandb']"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_without_the_package_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_libraries()  # they look for packages themselves
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    data = write_conversations(tmp_path / "data.jsonl", 2)
    with pytest.raises(SettingsError, match="pip install 'cleansft"):
        train_with(tiny_args(data, tmp_path / "run", report_to="wandb", max_steps=1))


def test_the_library_itself_keeps_a_run_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'cleansft[wandb]'")
    data = write_conversations(tmp_path / "data.jsonl", 4)
    common: dict[str, Any] = {"report_to": "wandb", "save_steps": 2, "resume_override": ["num_steps"]}
    for steps in (2, 4):
        train_with(tiny_args(data, tmp_path / "run", max_steps=steps, **common))
    found = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    kept = json.loads((tmp_path / "run" / "tracker.json").read_text())
    assert len(found) == 2
    assert all(path.name.endswith(kept["wandb_id"]) for path in found)
    assert kept["handed_over"]["train"] == 4
