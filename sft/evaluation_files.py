"""The files of an evaluation: where they go, what is written, and the rows that another evaluation wrote."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft import strict_json
from sft.errors import DataError
from sft.scores import Figures, Row
from sft.sources import stem_of
from sft.storage import storage_errors, write_json, write_text
from sft.values import kind

_NUMBER, _NONE = (int, float), type(None)
_COMPARED: Mapping[str, tuple[type, ...]] = {
    "row": (int,), "question_sha256": (str,), "metrics": (dict,), "loss_sum": (*_NUMBER, _NONE),
    "loss_weight": _NUMBER, "trained_tokens": (int,),
}  # fmt: skip
"""What a comparison takes of a row."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows that an evaluation wrote.

    Raises:
        DataError: there is no such file, or it holds something else.
    """
    remedy = "Name a model, or the file of rows that an evaluation by this version wrote."
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as the rows of an evaluation: {error}. {remedy}") from error
    # Not splitlines: U+2028 and its like stand in answers, and end no line of JSON Lines.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError(f"{path} is empty; it must hold the rows of an evaluation. {remedy}")
    found = []
    for number, line in lines:
        try:
            found.append(_row(line))
        except DataError as error:
            raise DataError(f"{path}:{number} is no row of an evaluation: {str(error).rstrip('.')}. {remedy}") from None
    return found


def settings_beside(path: Path) -> Mapping[str, Any]:
    """How the model was asked whose rows these are, as the figures beside them tell; empty where they do not."""
    settings = _figures_in(path.with_suffix(".json")).get("settings")
    return settings if isinstance(settings, dict) else {}


def _figures_in(path: Path) -> Mapping[str, Any]:
    """Figures that were written earlier; empty where a file holds no such thing, or is not there."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _row(line: str) -> dict[str, Any]:
    row = strict_json.loads(line)
    if not isinstance(row, dict):
        raise DataError(f"it is {kind(row)}")
    for name, types in _COMPARED.items():
        if name not in row:
            raise DataError(f"it has no `{name}`")
        if not isinstance(row[name], types):
            raise DataError(f"its `{name}` is {kind(row[name])}")
    wrong = [name for name, score in row["metrics"].items() if not isinstance(score, (*_NUMBER, _NONE))]
    if wrong:
        raise DataError(f"its score `{wrong[0]}` is {kind(row['metrics'][wrong[0]])}")
    return row


@dataclass(frozen=True)
class Place:
    """Where an evaluation is written."""

    rows: Path
    figures: Path
    data_path: str
    """Absolute, where the data is a file or a folder here."""
    taken_by: str | None
    """Of what the files are that have the data's own name; None where this evaluation has it."""


def place_for(folder: Path, data: str) -> Place:
    """Where the evaluation on some data goes: DATA.jsonl and DATA.json, which an earlier one on the same data may have
    written, or DATA-2, DATA-3, … where these are others' files. The folder is made, and is found to take files.

    Raises:
        StorageError: it cannot be written to.
    """
    stem = stem_of(Path(data)) or "data"
    with storage_errors(folder, "--output"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        name = next(name for name in _names(stem) if _owner(folder, name, data) is None)
        taken_by = _owner(folder, stem, data)
    return Place(folder / f"{name}.jsonl", folder / f"{name}.json", _absolute(data), taken_by)


def _names(stem: str) -> Iterator[str]:
    yield stem
    yield from (f"{stem}-{number}" for number in itertools.count(2))


def _owner(folder: Path, name: str, data: str) -> str | None:
    """Of what the files of this name are, unless there are none, or an evaluation on the same data wrote them."""
    figures, rows = folder / f"{name}.json", folder / f"{name}.jsonl"
    if not figures.exists():
        return "another file" if rows.exists() else None
    found = _figures_in(figures)
    if not isinstance(found.get("data"), str):
        return "another file"
    owner, path = found["data"], str(found.get("data_path") or _absolute(found["data"]))
    has_moved = owner == data and _existing(path) is None
    return None if path == _absolute(data) or has_moved else path


def _absolute(data: str) -> str:
    """Data's path from the root; a hub name as it is."""
    path = _existing(data)
    return data if path is None else f"{Path(path).resolve()}{data.removeprefix(path)}"


def _existing(data: str) -> str | None:
    """The file or folder that data is of, without a split's name; None for a hub name."""
    return next((path for path in (data, data.rpartition("@")[0]) if path and Path(path).exists()), None)


def write_evaluation(place: Place, found: Figures, rows: Sequence[Row]) -> None:
    """Writes rows and figures.

    Raises:
        StorageError: they cannot be written.
    """
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    write_text(place.rows, "".join(f"{line}\n" for line in lines))
    write_json(place.figures, {**found.to_json(), "data_path": place.data_path})
