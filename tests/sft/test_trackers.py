"""Weights & Biases, MLflow and Trackio: one run over several attempts, no step twice, nothing imported unasked."""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import TOKENIZER, tiny_args, write_conversations

from sft.arguments import load_args
from sft.errors import StoppedError
from sft.history import History
from sft.trackers import LIBRARIES, MlflowTracker, Trackers, TrackioTracker, WandbTracker, trackers
from sft.tracking import LibraryTracker, Step, Tracker
from sft.train import train_with
from sft.train_imports import import_libraries
from strict_settings import Problem, SettingsError


class FakeRun:
    """Remembers what it was told."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.exit_code: int | None = None

    def log(self, scalars: dict[str, Any], step: int) -> None:
        self.logged.append((step, scalars))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """The runs that a stand-in for the library has begun."""
    begun: list[FakeRun] = []

    def init(**options: Any) -> FakeRun:
        begun.append(FakeRun(**options))
        return begun[-1]

    library: Any = types.ModuleType("wandb")
    library.init, library.api = init, types.SimpleNamespace(api_key=None)
    library.__spec__ = types.SimpleNamespace(name="wandb")
    monkeypatch.setitem(sys.modules, "wandb", library)
    return begun


def attempt(
    folder: Path,
    steps: range,
    *,
    first_step: int,
    dies: bool = False,
    library: Callable[[Path, str, dict[str, Any]], Tracker] = WandbTracker,
) -> None:
    """One attempt that logs these steps."""
    settings = {"seed": 42, "run_name": "first", "lora": {"r": 16}, "bf16": None}
    history = History(folder, 10, is_main=True, tensorboard=False, tracker=lambda: library(folder, "run", settings))
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
    assert [run.exit_code for run in runs] == [None, None, 0]
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
        "import sys, sft.train, sft.history, sft.trackers, sft.loop, sft.device_check\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('wandb', 'mlflow', 'trackio')]"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", LIBRARIES)
def test_without_the_package_the_remedy_is_told_before_data_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import_libraries()  # they look for packages themselves
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "data.jsonl").write_text("no JSON")
    with pytest.raises(SettingsError, match=f"come with the package {name}. pip install 'cleansft.{name}.'") as told:
        train_with(tiny_args(tmp_path / "data.jsonl", tmp_path / "run", report_to=[name], max_steps=1))
    assert len(told.value.problems) == 1


def test_several_are_named_in_a_list_and_unknown_ones_are_told(tmp_path: Path) -> None:
    common = ["--model_config={model_type: qwen3}", f"--tokenizer_name={TOKENIZER}"]
    common.append(f"--train_file={write_conversations(tmp_path / 'data.jsonl', 1)}")
    for words in (["--report_to=wandb,mlflow"], ["--report_to", "[wandb, mlflow]"]):
        args = load_args([*common, *words])
        assert (args.reports, args.trackers) == (("wandb", "mlflow"), ("wandb", "mlflow"))
    assert load_args(common).reports == ("tensorboard",)
    assert load_args([*common, "--report_to=none"]).trackers == ()
    for words, rule in (("mlflaw", "Did you mean 'mlflow'"), ("none,wandb", "beside none"), ("[]", "at least one")):
        with pytest.raises(SettingsError, match=rule):
            load_args([*common, f"--report_to={words}"])


class Failing(LibraryTracker):
    """A library that takes the first records only."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "failing")
        self.had: list[int] = []

    def _log(self, steps: Sequence[Step]) -> None:
        if self.had:
            raise RuntimeError("the server is gone")
        self.had += [step for step, _ in steps]

    def _finish(self, exit_code: int) -> None:
        raise RuntimeError("the server is still gone")


def test_a_library_that_fails_ends_no_run_and_hinders_no_other(
    tmp_path: Path, runs: list[FakeRun], capsys: pytest.CaptureFixture[str]
) -> None:
    failing = Failing(tmp_path)
    both: Callable[..., Tracker] = lambda *words: Trackers([failing, WandbTracker(*words)])  # noqa: E731
    attempt(tmp_path, range(1, 6), first_step=0, library=both)
    assert failing.had == [1]
    assert [step for step, scalars in runs[0].logged if "train/loss" in scalars] == [1, 2, 3, 4, 5]
    said = capsys.readouterr().out
    assert said.count("the server is gone") == 1
    assert "still gone" in said
    assert json.loads((tmp_path / "tracker.json").read_text()).keys() == {"failing", "wandb"}


ENDS: list[tuple[BaseException | None, int]] = [
    (None, 0),
    (StoppedError("saved"), 10),
    (KeyboardInterrupt(), 130),
    (ValueError("crashed"), 1),
]


@pytest.mark.parametrize(("error", "code"), ENDS)
def test_how_an_attempt_ended_is_told(
    tmp_path: Path, runs: list[FakeRun], error: BaseException | None, code: int
) -> None:
    history = History(tmp_path, 4, is_main=True, tensorboard=False, tracker=lambda: WandbTracker(tmp_path, "r", {}))
    with contextlib.suppress(Exception, KeyboardInterrupt), history:
        history.start(0)
        if error is not None:
            raise error
    assert [run.exit_code for run in runs] == [code]


def test_mlflow_is_told_so_in_its_own_words(tmp_path: Path) -> None:
    tracker, told = MlflowTracker.__new__(MlflowTracker), list[Any]()
    tracker._run_id = "id"
    tracker._client = types.SimpleNamespace(set_terminated=lambda *words: told.append(words))
    for _, code in ENDS:
        tracker.close(code)
    assert told == [("id", status) for status in ("FINISHED", "KILLED", "KILLED", "FAILED")]


def test_where_one_does_not_start_those_before_it_are_closed(
    tmp_path: Path, runs: list[FakeRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Tracker:
        raise SettingsError(Problem("report_to", "mlflow", "start MLflow"))

    monkeypatch.setitem(LIBRARIES, "mlflow", fails)
    with pytest.raises(SettingsError, match="start MLflow"):
        trackers(["wandb", "mlflow"], tmp_path, "run", {})
    assert [run.exit_code for run in runs] == [2]


@pytest.mark.parametrize(
    ("listens", "proxy", "bypassed", "mode"),
    [
        (True, None, "", None),
        (False, None, "", "offline"),
        (False, "http://proxy:1", "", None),
        (False, "http://proxy:1", "127.0.0.1", "offline"),
    ],
)
def test_the_server_that_is_asked_for_is_tried_and_none_behind_a_proxy(
    tmp_path: Path, runs: list[FakeRun], monkeypatch: pytest.MonkeyPatch, listens: bool, proxy: str | None,
    bypassed: str, mode: str | None,
) -> None:  # fmt: skip
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    if proxy is not None:
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.setenv("no_proxy", bypassed)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # a port that nobody else has; without listen() it refuses
        if listens:
            server.listen()
        library: Any = sys.modules["wandb"]
        library.api.api_key = "key"
        library.setup = lambda: types.SimpleNamespace(
            settings=types.SimpleNamespace(base_url=f"http://127.0.0.1:{server.getsockname()[1]}")
        )
        WandbTracker(tmp_path, "run", {})
    assert runs[0].options["mode"] == mode


def three_attempts(folder: Path, library: Callable[[Path, str, dict[str, Any]], Tracker]) -> None:
    """Each goes on from a step before the last one that had been logged."""
    attempt(folder, range(1, 5), first_step=0, library=library)
    attempt(folder, range(3, 8), first_step=2, library=library)
    attempt(folder, range(6, 11), first_step=5, library=library)


@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_one_run_of_three_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'cleansft[mlflow]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")  # nobody listens there
    three_attempts(tmp_path, MlflowTracker)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert [each.step for each in client.get_metric_history(run.info.run_id, "train/loss")] == list(range(1, 11))
    assert [each.step for each in client.get_metric_history(run.info.run_id, "eval/eval_loss")] == [2, 4, 6, 8, 10]
    assert run.data.params["seed"] == "42"
    assert run.data.params["lora"] == '{"r": 16}'
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    kept = json.loads((tmp_path / "tracker.json").read_text())
    assert kept == {"mlflow": {"id": run.info.run_id, "handed_over": {"train": 10, "eval": 10}}}


@pytest.mark.filterwarnings("ignore")
def test_trackio_has_one_run_of_three_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read once, when it is imported
    pytest.importorskip("trackio", reason="trackio is not installed: pip install 'cleansft[trackio]'")
    import trackio.utils

    three_attempts(tmp_path, TrackioTracker)
    name = json.loads((tmp_path / "tracker.json").read_text())["trackio"]["id"]
    with sqlite3.connect(Path(trackio.utils.TRACKIO_DIR) / "cleansft.db") as database:
        found = database.execute("SELECT run_id, step, metrics FROM metrics WHERE run_name = ?", [name]).fetchall()
    assert len({run_id for run_id, _, _ in found}) == 1
    losses = sorted(step for _, step, metrics in found if "train/loss" in json.loads(metrics))
    assert losses == list(range(1, 11))


def test_the_library_itself_keeps_a_run_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'cleansft[wandb]'")
    data = write_conversations(tmp_path / "data.jsonl", 4)
    common: dict[str, Any] = {"report_to": "wandb", "save_steps": 2, "resume_override": ["num_steps"]}
    for steps in (2, 4):
        train_with(tiny_args(data, tmp_path / "run", max_steps=steps, **common))
    found = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    kept = json.loads((tmp_path / "run" / "tracker.json").read_text())
    assert len(found) == 2
    assert all(path.name.endswith(kept["wandb"]["id"]) for path in found)
    assert kept["wandb"]["handed_over"]["train"] == 4
