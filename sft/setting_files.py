"""Which settings name files, and which files they name. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path


def looks_like_a_path(value: str) -> bool:
    """True for what can be no hub name: those are `name` or `owner/name`, perhaps with `@split`, and no suffix; nor one
    in a folder of runs."""
    of_data = (".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".csv", ".tsv", ".txt", ".gz", ".zst")
    of_settings = (".jinja", ".yaml", ".yml")
    name = value.rpartition("@")[0] or value
    is_path = value.startswith((".", "/", "~")) or value.count("/") > 1 or name.endswith(of_data + of_settings)
    return is_path or _holds_runs(Path(name).parent)


def _holds_runs(folder: Path) -> bool:
    """Whether runs of ours are in a folder that a name begins with: `runs/nope` is then no hub name."""
    try:
        return folder != Path() and any((each / "arguments.json").is_file() for each in folder.iterdir())
    except OSError:
        return False


def found_file(value: str) -> Path | None:
    """The file or folder of a setting, also where `@split` follows it; None if there is none."""
    names = (value, value.rpartition("@")[0])
    return next((Path(name) for name in names if os.path.exists(name)), None)  # an unreadable folder is no error here
