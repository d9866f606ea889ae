"""What takes the scalars of a run besides training_log.json and TensorBoard: a narrow interface, and what the trackers
of all libraries share: a run's id in each store, and how far it was handed over."""

from __future__ import annotations

import json
import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from sft.storage import write_json

_PATIENCE_S = 3.0

Step = tuple[int, dict[str, float]]
"""A step, and its scalars as `train/loss`."""


class Tracker(Protocol):
    """Takes the records of a run, all attempts of which are one run to it. Rank 0 has one."""

    def take(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Takes all records of the run so far, in order; those that it has had before, in an earlier attempt too, are
        left alone."""

    def close(self, exit_code: int) -> None:
        """Hands over what is left, and tells how the attempt ended: with the exit code that it gives."""


class LibraryTracker(ABC):
    """A run in a library's store.

    `tracker.json` keeps, for each store, the run's id and how far each kind of record was handed over. It is written
    before they are: an attempt that is killed in between leaves a gap there, and never the same step twice.
    """

    def __init__(self, output_dir: Path, store: str) -> None:
        """
        Args:
            output_dir: the run directory.
            store: where the library keeps the run, without secrets; a run has one id there.
        """
        self._path, self.store = output_dir / "tracker.json", store
        kept = _kept(self._path).get(store, {})
        self.id: str | None = kept.get("id")
        self._handed_over: dict[str, int] = dict(kept.get("handed_over") or {})
        self._takes_more = True

    def take(self, records: Sequence[Mapping[str, Any]]) -> None:
        new = [record for record in records if self._is_new(record)]
        if not new or not self._takes_more:
            return
        self._keep(self._handed_over | {str(record["type"]): int(record["step"]) for record in new})
        try:
            self._log([(int(record["step"]), _scalars(record)) for record in new])
        except Exception as error:  # each library raises kinds of its own, and none is worth the run
            self._takes_more = False
            print(f"warning: {self.store} takes no more records in this attempt: {error}", flush=True)

    def close(self, exit_code: int) -> None:
        try:
            self._finish(exit_code)
        except Exception as error:
            print(f"warning: {self.store} did not take the end of the run: {error}", flush=True)

    @abstractmethod
    def _log(self, steps: Sequence[Step]) -> None:
        """Hands over scalars."""

    @abstractmethod
    def _finish(self, exit_code: int) -> None:
        """Hands over what is left, and tells that the attempt has ended, and how."""

    def _is_new(self, record: Mapping[str, Any]) -> bool:
        return record["type"] != "summary" and int(record["step"]) > self._handed_over.get(record["type"], 0)

    def keep_id(self, run_id: str) -> str:
        """Keeps and gives back the run's id in the store."""
        self.id = run_id
        self._keep(self._handed_over)
        return run_id

    def _keep(self, handed_over: dict[str, int]) -> None:
        write_json(self._path, _kept(self._path) | {self.store: {"id": self.id, "handed_over": handed_over}})
        self._handed_over = handed_over


def is_reachable(address: str) -> bool:
    """Whether something listens at an http(s) address, found out within seconds. Where a proxy stands between, which
    alone can tell, it is taken to be so."""
    found = urlsplit(address)
    host = str(found.hostname)
    if {found.scheme, "all"} & getproxies().keys() and not proxy_bypass(host):
        return True
    try:
        port = found.port or (443 if found.scheme == "https" else 80)
        socket.create_connection((host, port), timeout=_PATIENCE_S).close()
    except OSError:
        return False
    return True


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{record['type']}/{name}": value
        for name, value in record.items()
        if name not in ("type", "step") and isinstance(value, int | float)
    }


def _kept(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {store: kept for store, kept in found.items() if isinstance(kept, dict)}
