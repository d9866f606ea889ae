"""Where scalars go besides training_log.json and TensorBoard: one narrow interface, and Weights & Biases behind it."""

from __future__ import annotations

import importlib.util
import json
import secrets
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sft.storage import write_json
from strict_settings import Problem, SettingsError

_HOST, _PATIENCE_S = "api.wandb.ai", 3.0


class Tracker(Protocol):
    """Takes the records of a run, all attempts of which are one run to it. Rank 0 has one."""

    def take(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Takes all records of the run so far, in order; those that it has had before, in an earlier attempt too, are
        left alone."""

    def close(self) -> None:
        """Hands over what is left."""


class WandbTracker:
    """A run of Weights & Biases. Without its key or a network it writes to `wandb/` in the output directory, for
    `wandb sync`.

    `tracker.json` keeps its id and how far each kind of record was handed over. It is written before they are: an
    attempt that is killed in between leaves a gap there, and never the same step twice.
    """

    def __init__(self, output_dir: Path, name: str, settings: Mapping[str, Any]) -> None:
        """
        Args:
            output_dir: the run directory.
            name: of the run.
            settings: shown beside it.

        Raises:
            SettingsError: wandb is not installed, or does not start.
        """
        require_wandb()
        import wandb

        self._path = output_dir / "tracker.json"
        kept = _kept(self._path)
        self._id = str(kept.get("wandb_id") or secrets.token_hex(4))
        self._handed_over: dict[str, int] = dict(kept.get("handed_over") or {})
        self._keep()
        mode = None if wandb.api.api_key and _is_reachable() else "offline"
        try:
            self._run: Any = wandb.init(
                id=self._id, name=name, dir=str(output_dir), config=dict(settings), resume="allow", mode=mode
            )
        except Exception as error:  # the library raises many kinds; its own words are the best there are
            raise SettingsError(Problem("report_to", "wandb", "start Weights & Biases", f"{error}")) from error

    def take(self, records: Sequence[Mapping[str, Any]]) -> None:
        new = [record for record in records if self._is_new(record)]
        if not new:
            return
        self._handed_over |= {str(record["type"]): int(record["step"]) for record in new}
        self._keep()
        for record in new:
            scalars = {f"{record['type']}/{name}": value for name, value in record.items() if _is_scalar(name, value)}
            self._run.log(scalars, step=record["step"])

    def close(self) -> None:
        self._run.finish()

    def _is_new(self, record: Mapping[str, Any]) -> bool:
        return record["type"] != "summary" and int(record["step"]) > self._handed_over.get(record["type"], 0)

    def _keep(self) -> None:
        write_json(self._path, {"wandb_id": self._id, "handed_over": self._handed_over})


def require_wandb() -> None:
    """
    Raises:
        SettingsError: wandb is not installed.
    """
    if importlib.util.find_spec("wandb") is None:
        rule = "be tensorboard or none without the package wandb"
        raise SettingsError(Problem("report_to", "wandb", rule, "pip install 'cleansft[wandb]'"))


def _is_scalar(name: str, value: Any) -> bool:
    return name not in ("type", "step") and isinstance(value, int | float)


def _kept(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_reachable() -> bool:
    try:
        socket.create_connection((_HOST, 443), timeout=_PATIENCE_S).close()
    except OSError:
        return False
    return True
