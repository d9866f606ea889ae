"""What a run directory tells: its records, its evaluations, its attempts. Read only; what is missing is left out."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def records_of(run: Path) -> list[Record]:
    """The records of training_log.json, in order; none where there is no such file, or no whole one."""
    found = _json(run / "training_log.json")
    return [each for each in found if isinstance(each, dict) and "type" in each] if isinstance(found, list) else []


def has_whole_log(run: Path) -> bool:
    """Whether training_log.json is there and holds a list, as training writes it."""
    return isinstance(_json(run / "training_log.json"), list)


def evaluations_of(run: Path) -> list[Record]:
    """The figures that `evaluate` wrote to the run's `evaluation/`, by name."""
    found = (_json(path) for path in sorted((run / "evaluation").glob("*.json")))
    return [each for each in found if _is_evaluation(each)]


def _is_evaluation(found: Any) -> bool:
    if not isinstance(found, dict) or not {"figures", "data", "num_rows"} <= found.keys():
        return False
    names = ("value", "low", "high", "num_rows")
    figures = found["figures"].values() if isinstance(found["figures"], dict) else [None]
    return all(
        isinstance(each, dict) and all(isinstance(each.get(name), int | float) for name in names) for each in figures
    )


def attempts_of(run: Path) -> list[Record]:
    """What the launcher wrote down of each attempt: how it began and ended, in order; none without a launcher. The last
    one, where it has no end, has `seen_at` when its log was written last."""
    folders = [path for path in (run / "exit").glob("*") if path.name.isdigit()]
    found = []
    for folder in sorted(folders, key=lambda path: int(path.name)):
        begun, ended = _json(folder / "attempt.json"), _json(folder / "end.json")
        if isinstance(begun, dict):
            # The step of the end is another key than that of the beginning.
            of_end = {name: value for name, value in (ended or {}).items() if name != "step"}
            found.append({"attempt": int(folder.name), **begun, **of_end})
    if found and not found[-1].get("ended_at"):
        with contextlib.suppress(OSError):
            logged_at = (run / "training_log.json").stat().st_mtime
            found[-1]["seen_at"] = max(logged_at, found[-1].get("began_at") or 0.0)
    return found


def end_of(attempt: Record) -> float | None:
    """When an attempt ended, or was seen last; in seconds since 1970. None where nobody knows."""
    return attempt.get("ended_at") or attempt.get("seen_at")


def settings_of(run: Path) -> dict[str, Any]:
    """The settings of a run; none where they are not there."""
    found = _json(run / "arguments.json")
    return found if isinstance(found, dict) else {}


def data_of(run: Path) -> Record:
    """What training counted of its data, under `train` and `eval`; nothing where it is not there."""
    found = _json(run / "data.json")
    return found if isinstance(found, dict) else {}


def has_final_model(run: Path) -> bool:
    """Whether the final model, or adapter, is there whole: its configuration is written before its weights, and where
    these are in several files their index comes last."""
    names = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
    return any((run / name).is_file() for name in names)


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


def tokens_seen(records: list[Record]) -> tuple[int, int] | None:
    """(tokens, trained tokens) of a run up to the last of some of its records: each counts from the run's beginning.
    None where nothing was logged."""
    counted = [record for record in records if record["type"] in ("train", "summary")]
    return (int(counted[-1]["num_tokens"]), int(counted[-1]["num_trained_tokens"])) if counted else None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
