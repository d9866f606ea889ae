"""Weights & Biases, MLflow and Trackio, each behind `sft.tracking`."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sft.errors import StoppedError
from sft.tracking import LibraryTracker, Step, Tracker, is_reachable
from strict_settings import Problem, SettingsError

_PROJECT = "cleansft"
_STOPPED = (StoppedError.exit_code, 130)
"""Exit codes of attempts that somebody ended: a signal, or Ctrl-C."""
_METRICS_PER_CALL, _PARAMS_PER_CALL = 1000, 100
"""MLflow takes no more at once."""


class _RunTracker(LibraryTracker):
    """A library that hands out a run, which takes scalars step by step."""

    _run: Any

    def _log(self, steps: Sequence[Step]) -> None:
        for step, scalars in steps:
            self._run.log(scalars, step=step)

    def _finish(self, exit_code: int) -> None:
        self._run.finish()


class WandbTracker(_RunTracker):
    """A run of Weights & Biases. Without its key or a network it writes to `wandb/` in the output directory, for
    `wandb sync`."""

    def __init__(self, output_dir: Path, name: str, settings: Mapping[str, Any]) -> None:
        """
        Args:
            output_dir: the run directory.
            name: of the run.
            settings: shown beside it.

        Raises:
            SettingsError: wandb does not start.
        """
        import wandb

        super().__init__(output_dir, "wandb")
        run_id = self.keep_id(self.id or secrets.token_hex(4))
        with _starting("wandb", "Weights & Biases"):
            mode = None if wandb.api.api_key and is_reachable(wandb.setup().settings.base_url) else "offline"
            self._run = wandb.init(
                id=run_id, name=name, dir=str(output_dir), config=dict(settings), resume="allow", mode=mode
            )

    def _finish(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)


class MlflowTracker(LibraryTracker):
    """A run of MLflow, in the store of `MLFLOW_TRACKING_URI`. Without it, or where its server cannot be reached, that
    is `mlflow.db` in the output directory; a server has the whole run once an attempt reaches it."""

    def __init__(self, output_dir: Path, name: str, settings: Mapping[str, Any]) -> None:
        """
        Args:
            output_dir: the run directory.
            name: of the run.
            settings: shown beside it.

        Raises:
            SettingsError: mlflow does not start.
        """
        from mlflow import MlflowClient

        server = _mlflow_server()
        super().__init__(output_dir, f"mlflow {_without_secrets(server)}" if server else "mlflow")
        with _starting("mlflow", "MLflow"):
            local = f"sqlite:///{output_dir.resolve() / 'mlflow.db'}"
            self._client: Any = MlflowClient(tracking_uri=server or local)
            self._run_id = self.id or self._new_run(output_dir, name, settings)
            self._client.update_run(self._run_id, status="RUNNING")

    def _new_run(self, output_dir: Path, name: str, settings: Mapping[str, Any]) -> str:
        from mlflow.entities import Param
        from mlflow.environment_variables import MLFLOW_EXPERIMENT_NAME

        experiment = MLFLOW_EXPERIMENT_NAME.get() or _PROJECT
        known = self._client.get_experiment_by_name(experiment)
        # A server has a place for artifacts; our own file would take the working directory's.
        place = (output_dir.resolve() / "mlflow-artifacts").as_uri() if self.store == "mlflow" else None
        experiment_id = known.experiment_id if known else self._client.create_experiment(experiment, place)
        run_id = self.keep_id(self._client.create_run(experiment_id, run_name=name).info.run_id)
        params = [Param(key, value if isinstance(value, str) else json.dumps(value)) for key, value in settings.items()]
        for some in _in_parts(params, _PARAMS_PER_CALL):
            self._client.log_batch(run_id, params=some)
        return run_id

    def _log(self, steps: Sequence[Step]) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [
            Metric(name, float(value), now_ms, step) for step, scalars in steps for name, value in scalars.items()
        ]
        for some in _in_parts(metrics, _METRICS_PER_CALL):
            self._client.log_batch(self._run_id, metrics=some, synchronous=True)

    def _finish(self, exit_code: int) -> None:
        status = "KILLED" if exit_code in _STOPPED else "FAILED" if exit_code else "FINISHED"
        self._client.set_terminated(self._run_id, status)


class TrackioTracker(_RunTracker):
    """A run of Trackio, on this machine (`TRACKIO_DIR`), or where `TRACKIO_SPACE_ID` or `TRACKIO_SERVER_URL` say."""

    def __init__(self, output_dir: Path, name: str, settings: Mapping[str, Any]) -> None:
        """
        Args:
            output_dir: the run directory.
            name: of the run.
            settings: shown beside it.

        Raises:
            SettingsError: trackio does not start.
        """
        import trackio

        super().__init__(output_dir, "trackio")
        # Trackio finds a run again by its name, which another run may have too.
        run_id = self.keep_id(self.id or f"{name}-{secrets.token_hex(4)}")
        with _starting("trackio", "Trackio"):
            self._run = trackio.init(
                project=_PROJECT,
                name=run_id,
                config=dict(settings),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )


class Trackers:
    """Several, one after the other."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def take(self, records: Sequence[Mapping[str, Any]]) -> None:
        for each in self._trackers:
            each.take(records)

    def close(self, exit_code: int) -> None:
        for each in self._trackers:
            each.close(exit_code)


LIBRARIES: dict[str, Callable[[Path, str, Mapping[str, Any]], Tracker]] = {
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
    "trackio": TrackioTracker,
}
"""Name in the settings, of the package and of the extra → what uses it."""


def trackers(names: Iterable[str], output_dir: Path, run_name: str, settings: Mapping[str, Any]) -> Tracker:
    """The trackers of these names as one.

    Args:
        names: of `LIBRARIES`.
        output_dir: the run directory.
        run_name: of the run.
        settings: shown beside it.

    Raises:
        SettingsError: one does not start; those before it are closed.
    """
    begun: list[Tracker] = []
    try:
        for name in names:
            begun.append(LIBRARIES[name](output_dir, run_name, settings))
    except SettingsError as error:
        Trackers(begun).close(error.exit_code)
        raise
    return Trackers(begun)


def require_trackers(names: Iterable[str]) -> None:
    """
    Args:
        names: of `LIBRARIES`.

    Raises:
        SettingsError: packages that are not installed.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        problems = ((name, f"come with the package {name}", f"pip install 'cleansft[{name}]'") for name in missing)
        raise SettingsError([Problem("report_to", *problem) for problem in problems])


@contextlib.contextmanager
def _starting(name: str, title: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a library raises many kinds; its own words are the best there are
        raise SettingsError(Problem("report_to", name, f"start {title}", f"{error}")) from error


def _mlflow_server() -> str | None:
    """Where MLFLOW_TRACKING_URI says; None without it, or where nothing listens there."""
    import mlflow

    if not mlflow.is_tracking_uri_set():
        return None
    uri = str(mlflow.get_tracking_uri())
    found = urlsplit(uri)
    if found.scheme not in ("http", "https") or not found.hostname:
        return uri
    return uri if is_reachable(uri) else None


def _without_secrets(uri: str) -> str:
    """The address without user, password and what stands behind a question mark."""
    found = urlsplit(uri)
    return f"{found.scheme}://{found.netloc.rpartition('@')[2]}{found.path}"


def _in_parts(values: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
