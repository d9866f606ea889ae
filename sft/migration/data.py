"""Their names of data → ours: a file, a folder, or `owner/name:config@split`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sft.migration.mapping import Idle, Lost, Made, Several

Told = tuple[str, object, Made | Lost | Idle]

BUILDERS = ("json", "csv", "parquet", "arrow")
"""What `datasets` calls files; the files are named beside it."""
RAW_TEXT = "raw text does not say who speaks; rows must hold turns (docs/data-formats.md)"


@dataclass
class Named:
    """What their data is called here."""

    sources: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    """Our column → theirs, where the names differ."""
    told: list[Told] = field(default_factory=list)


def named(path: str, *, files: Any = None, config: str | None = None, split: str | None = None) -> Named:
    """The sources of one dataset of theirs.

    Args:
        path: hub name, folder, file, or one of `BUILDERS`.
        files: files of it: a name, a list, or split → names.
        config: the hub dataset's configuration.
        split: one of its splits.
    """
    found = Named()
    if "://" in path:
        found.told.append(("path", path, Lost("there are files, folders and hub names. Copy the data first")))
        return found
    if isinstance(files, Mapping):
        files = files.get(split or "train")
    listed = [files] if isinstance(files, str) else list(files or [])
    if path in BUILDERS:
        found.sources = [str(file) for file in listed]
        return found
    if listed and path.count("/") == 1 and not path.startswith((".", "~", "/")):
        reason = "single files of a hub dataset cannot be named. Download them, and name them as train_files"
        found.told.append(("data_files", listed, Lost(reason)))
        return found
    if listed:
        found.sources = [f"{path.rstrip('/')}/{file}" for file in listed]
        return found
    suffix = f":{config}" if config else ""
    if split and split.replace("_", "").isalnum():
        suffix += f"@{split}" if split != "train" else ""
    elif split:
        found.told.append(("split", split, Lost("a split is taken whole; max_train_samples takes the first rows")))
    found.sources = [path + suffix]
    return found


def renamed(columns: Mapping[str, Any]) -> dict[str, str]:
    """Our column → theirs, without those that have the same name and those that are null."""
    return {ours: str(name) for ours, name in columns.items() if name and name != ours}


def training_data(parts: Sequence[Named], key: str) -> Several:
    """`train_file`, or `train_files` where there are several, each once in an epoch; and the columns."""
    sources = [source for part in parts for source in part.sources]
    told = [
        (f"{key}[{number}].{name}" if len(parts) > 1 else f"{key}.{name}", value, what)
        for number, part in enumerate(parts)
        for name, value, what in part.told
    ]
    settings: dict[str, Any] = {}
    if len(sources) == 1:
        settings["train_file"] = sources[0]
    elif sources:
        settings["train_files"] = dict.fromkeys(sources, 1)
    columns = [part.columns for part in parts if part.sources]
    if columns and any(columns):
        if all(other == columns[0] for other in columns):
            settings["columns"] = columns[0]
        else:
            reason = "columns holds for all files. Rename them in the data, so that all files have the same"
            told.append((f"{key}.columns", columns, Lost(reason)))
    return Several(Made(settings), told)


def held_out_data(parts: Sequence[Named], key: str) -> Several:
    """`eval_file`: the first source."""
    sources = [source for part in parts for source in part.sources]
    told = [(f"{key}.{name}", value, what) for part in parts for name, value, what in part.told]
    told += [(key, source, Lost("there is one eval_file. Put the rows into one file")) for source in sources[1:]]
    return Several(Made({"eval_file": sources[0]} if sources else {}), told)
