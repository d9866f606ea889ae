"""JSON files that are either whole or absent. Standard library only: every rank imports this."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str, mode: int = 0o600, *, is_synced: bool = True) -> None:
    """Writes the file under a temporary name, then fsync and rename: readers never see half of it.

    Args:
        path: of the file.
        text: all of it.
        mode: of the file, whatever the umask.
        is_synced: False for what is soon written again: after a power cut it may be empty.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            if mode & 0o077:  # the umask of all commands takes these bits away
                os.fchmod(descriptor, mode)
            file.write(text)
            file.flush()
            if is_synced:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any, *, is_synced: bool = True) -> None:
    """`value` as ASCII JSON, which also holds bytes that are no UTF-8 (as lone surrogates)."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n", is_synced=is_synced)


@contextlib.contextmanager
def telling_failure() -> Iterator[None]:
    """For last records: a full disk, or one that is gone, is told and does not take the place of the exit code."""
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):
            print(f"error: a record cannot be written: {error}", file=sys.stderr, flush=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in the file, or None where there is no such file or no whole record in it."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read().decode())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def make_directory(path: Path) -> None:
    """The directory and its missing parents, readable by the owner alone where they are new."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
