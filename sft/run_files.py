"""What a run directory tells: its records, its evaluations, its attempts. Read only; what is missing is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def records_of(run: Path) -> list[Record]:
    """The records of training_log.json, in order; none where there is no such file, or no whole one."""
    found = _json(run / "training_log.json")
    return [each for each in found if isinstance(each, dict) and "type" in each] if isinstance(found, list) else []


def evaluations_of(run: Path) -> list[Record]:
    """The figures that `evaluate` wrote to the run's `evaluation/`, by name."""
    found = (_json(path) for path in sorted((run / "evaluation").glob("*.json")))
    return [each for each in found if isinstance(each, dict) and "figures" in each]


def attempts_of(run: Path) -> list[Record]:
    """What the launcher wrote down of each attempt: how it began and ended, in order; none without a launcher."""
    folders = [path for path in (run / "exit").glob("*") if path.name.isdigit()]
    found = []
    for folder in sorted(folders, key=lambda path: int(path.name)):
        begun, ended = _json(folder / "attempt.json"), _json(folder / "end.json")
        if isinstance(begun, dict):
            # The step of the end is another key than that of the beginning.
            of_end = {name: value for name, value in (ended or {}).items() if name != "step"}
            found.append({"attempt": int(folder.name), **begun, **of_end})
    return found


def settings_of(run: Path) -> dict[str, Any]:
    """The settings of a run; none where they are not there."""
    found = _json(run / "arguments.json")
    return found if isinstance(found, dict) else {}


def data_of(run: Path) -> Record:
    """What training counted of its data, under `train` and `eval`; nothing where it is not there."""
    found = _json(run / "data.json")
    return found if isinstance(found, dict) else {}


def series(records: list[Record], kind: str, name: str) -> tuple[list[float], list[float]]:
    """(steps, values) of one thing that was logged.

    Args:
        records: of a run.
        kind: `train` or `eval`.
        name: of the value.
    """
    pairs = [
        (record["step"], record[name]) for record in records if record["type"] == kind and record.get(name) is not None
    ]
    return [float(step) for step, _ in pairs], [float(value) for _, value in pairs]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
