"""What is known of runs that have ended, so that a list of a thousand need not read their ten files each again.

A row counts as long as the run's folders are as they were: whatever resumes, requeues or replaces a run changes one.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from launch.records import make_directory, read_json, write_json

_VERSION = 1


class RowCache:
    """Rows by run directory, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        found = read_json(path) or {}
        self._rows: dict[str, Any] = found["rows"] if found.get("version") == _VERSION else {}
        self._is_changed = False

    def get(self, run_dir: str) -> dict[str, Any] | None:
        """The row of a run that is as it was when it was put here; None for any other."""
        entry = self._rows.get(run_dir)
        if entry is None or entry["key"] != key_of(run_dir, entry["row"]["attempt"]):
            return None
        row: dict[str, Any] = entry["row"]
        return row

    def put(self, run_dir: str, row: dict[str, Any], key: list[int]) -> None:
        """Keeps the row of a run that has ended.

        Args:
            run_dir: of the run.
            row: with its `attempt`.
            key: `key_of` before the run was read.
        """
        self._rows[run_dir] = {"key": key, "row": row}
        self._is_changed = True

    def save(self) -> None:
        """Writes the file where something is new, without runs that are gone; a full disk is no matter."""
        if self._is_changed:
            rows = {run_dir: entry for run_dir, entry in self._rows.items() if os.path.isdir(run_dir)}
            with contextlib.suppress(OSError):
                make_directory(self._path.parent)
                write_json(self._path, {"version": _VERSION, "rows": rows}, is_synced=False)


def key_of(run_dir: str, attempt: int | None) -> list[int]:
    """When the folders of a run last changed (mtime_ns)."""
    return [_changed_at(f"{run_dir}{name}") for name in ("", "/claims", "/exit", f"/exit/{attempt}")]


def _changed_at(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
