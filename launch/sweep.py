"""Sweeps: a run for each combination of values, below one folder; what they are, and what came of each."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.errors import LaunchError
from launch.progress import read_log
from launch.records import read_json
from launch.runs import Run

MAX_RUNS = 1000
LOG_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_BRACKETS = {"[": "]", "{": "}", "(": ")"}


@dataclass(frozen=True)
class Axis:
    """A setting, and the values that it takes."""

    name: str
    values: tuple[str, ...]


def axes_of(words: Sequence[str]) -> list[Axis]:
    """The axes in `learning_rate=1e-5,2e-5 seed=1,2,3`.

    Raises:
        LaunchError: a word is no axis, or names one twice; a value is there twice; there are too many combinations.
    """
    axes: list[Axis] = []
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise LaunchError(f"the axis is {word!r}; it must be NAME=VALUE,VALUE,… with a setting of the trainer.")
        values = tuple(_values(text))
        if name in (axis.name for axis in axes):
            raise LaunchError(f"the axis {name} is given twice; it must be given once. Join their values.")
        if len(set(values)) < len(values) or "" in values:
            raise LaunchError(f"the axis {name} is {text!r}; its values must differ, and none be empty.")
        axes.append(Axis(name, values))
    if not axes:
        raise LaunchError("no axis is given; there must be one, as learning_rate=1e-5,2e-5.")
    count = len(points_of(axes))
    if count > MAX_RUNS:
        raise LaunchError(f"the sweep has {count} runs; it must have at most {MAX_RUNS}.")
    return axes


def _values(text: str) -> list[str]:
    """Split at commas that stand in no brackets: `[a,b],[c]` is two values."""
    found, depth = [""], 0
    for character in text:
        depth += (character in _BRACKETS) - (character in _BRACKETS.values())
        if character == "," and depth <= 0:
            found.append("")
        else:
            found[-1] += character
    return [value.strip() for value in found]


def points_of(axes: Sequence[Axis]) -> list[dict[str, str]]:
    """Every combination; the last axis changes fastest."""
    names = [axis.name for axis in axes]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(axis.values for axis in axes))]


def covering(axes: Sequence[Axis]) -> list[int]:
    """The fewest points, by their numbers, among which each value of each axis is: enough to check them all."""
    points = points_of(axes)
    longest = max(len(axis.values) for axis in axes)
    wanted = [{axis.name: axis.values[k % len(axis.values)] for axis in axes} for k in range(longest)]
    return [points.index(point) for point in wanted]


def find_sweep(name: str, working_dir: Path, run_dirs: Sequence[Path], *, record: str = "sweep.json") -> Path | None:
    """The folder of a sweep by its name or path, also of one that was started elsewhere; None where there is none.

    Args:
        name: as it was given.
        working_dir: where paths begin.
        run_dirs: of all runs that are known.
        record: the file by which such a folder is known.
    """
    near = [working_dir / name, working_dir / "runs" / name]
    known = dict.fromkeys(path.parent for path in reversed(run_dirs) if path.parent.name == name)
    return next((path.resolve() for path in (*near, *known) if (path / record).is_file()), None)


def runs_of(folder: Path) -> list[tuple[Run, Mapping[str, str]]]:
    """The runs of a sweep, each with its values, in order."""
    record = read_json(folder / "sweep.json") or {}
    pairs = enumerate(record.get("points", ()))
    return [
        (Run(folder / str(number)), point) for number, point in pairs if (folder / str(number) / "job.json").is_file()
    ]


def task_id(array_id: str, run_dir: Path) -> str:
    """The job of a run of a sweep that is an array: `7_3`. Pure."""
    return f"{array_id}_{run_dir.name}"


def result_of(run: Run) -> dict[str, Any]:
    """What came of a run: its best `eval_loss`, the last `loss` and `step`; None for what was not logged."""
    records = read_log(run.path / "training_log.json", LOG_BYTES)
    evaluated = [record["eval_loss"] for record in records if record["type"] == "eval"]
    trained = [record for record in records if record["type"] == "train"]
    return {
        "eval_loss": min((loss for loss in evaluated if loss is not None), default=None),
        "loss": trained[-1].get("loss") if trained else None,
        "step": trained[-1]["step"] if trained else None,
    }


def sorted_results(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows by evaluation loss, where they have none by the last loss, and those without either at the end."""

    def key(row: Mapping[str, Any]) -> tuple[bool, bool, float]:
        value = row["eval_loss"] if row["eval_loss"] is not None else row["loss"]
        return row["eval_loss"] is None, value is None, value or 0.0

    return sorted(rows, key=key)


def free_folder(runs_dir: Path, stem: str, when: str) -> Path:
    """A folder for a sweep that is not there yet."""
    base = f"{stem}-{when}"
    number, path = 1, runs_dir / base
    while os.path.lexists(path):
        number += 1
        path = runs_dir / f"{base}-{number}"
    return path
