"""LLaMA-Factory's names of data, which dataset_info.json explains, → ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.migration.data import Named, held_out_data, named, renamed, training_data
from sft.migration.mapping import Lost, Taken, Theirs

INFO = "dataset_info.json"
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}
_BOTH = {"system": "system", "tools": "tools"}
_TAGS = {
    "role_tag": ("from", "role"),
    "content_tag": ("value", "content"),
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant"),
    "observation_tag": ("observation", "tool", "function_response"),
    "function_tag": ("function_call",),
    "system_tag": ("system",),
}
"""What a tag may be, since turns are read in either spelling."""


def dataset(value: Any, theirs: Theirs) -> Taken:
    """The datasets, each once in an epoch."""
    return training_data(_all(value, theirs), "dataset")


def eval_dataset(value: Any, theirs: Theirs) -> Taken:
    """The first of them."""
    return held_out_data(_all(value, theirs), "eval_dataset")


def _all(value: Any, theirs: Theirs) -> list[Named]:
    names = value if isinstance(value, list) else str(value).split(",")
    folder = str(theirs.get("dataset_dir", "data"))
    if folder == "ONLINE":
        return [named(name.strip()) for name in names]
    place = theirs.path(f"{folder}/{INFO}")
    info = _read(place) if place is not None else None
    return [_dataset(name.strip(), info, place) for name in names]


def _dataset(name: str, info: Mapping[str, Any] | None, place: Path | None) -> Named:
    entry = info.get(name) if info is not None else None
    if not isinstance(entry, Mapping) or place is None:
        where = f"{INFO} does not have it" if info is not None else f"there is no {INFO} in dataset_dir"
        return Named(told=[("name", name, Lost(f"{where}. Name the file or hub dataset: train_file"))])
    if "file_name" in entry:
        found = named(str(place.parent / str(entry["file_name"])))
    elif "hf_hub_url" in entry:
        found = named(str(entry["hf_hub_url"]), config=entry.get("subset"), split=entry.get("split"))
    else:
        reason = "there are files, folders and hub names. Download the data, and name the file: train_file"
        return Named(told=[("name", name, Lost(reason))])
    if entry.get("ranking"):
        return Named(told=[("ranking", True, Lost("pairs of better and worse answers are not trained here"))])
    for key in ("folder", "num_samples"):
        if entry.get(key) is not None:
            found.told.append((key, entry[key], Lost("the data is taken whole")))
    found.columns = _columns(entry, found)
    return found


def _columns(entry: Mapping[str, Any], found: Named) -> dict[str, str]:
    given = entry.get("columns", {})
    tags = entry.get("tags", {})
    for name, tag in tags.items():
        if tag not in _TAGS.get(name, ()):
            reason = "turns have role and content, or from and value, with the usual words. Rename it in the data"
            found.told.append((f"tags.{name}", tag, Lost(reason)))
    for name in ("images", "videos", "audios", "chosen", "rejected", "kto_tag"):
        if given.get(name):
            found.told.append((f"columns.{name}", given[name], Lost("it is not read here")))
    named_too = {ours: given.get(theirs) for theirs, ours in _BOTH.items()}
    if entry.get("formatting", "alpaca") == "alpaca":
        return renamed({**{ours: given.get(theirs) for theirs, ours in _ALPACA.items()}, **named_too})
    turns = given.get("messages")
    return renamed({"messages": None if turns in ("messages", "conversations") else turns, **named_too})


def _read(place: Path) -> Mapping[str, Any] | None:
    try:
        info = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return info if isinstance(info, Mapping) else None
