"""A file, a folder or a hub name → its rows, one at a time, each with its place; and its conversations."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from sft.errors import DataError
from sft.formats import Columns, Conversation, conversation
from sft.rows import BadRow, BadRows, Line, Row
from sft.setting_files import looks_like_a_path
from sft.table_rows import arrow_rows, hub_rows, parquet_rows
from sft.text_rows import csv_rows, json_rows, opened, parsed_line, reason

__all__ = ["BadRow", "BadRows", "Row", "read_conversations", "read_rows", "source_files"]

_KINDS = {
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet",
    ".arrow": "arrow", ".feather": "arrow", ".csv": "csv", ".tsv": "tsv",
}  # fmt: skip
"""Suffix of a file, `.gz` and `.zst` taken off → what it holds."""
_COMPRESSED = (".gz", ".zst", ".zstd")
_NO_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""What `datasets` writes beside its data."""
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Word in the name of a folder's file → the split that it belongs to."""
_FOREIGN = (
    (b"version https://git-lfs", "a pointer of Git LFS and not the file itself", "Fetch it with `git lfs pull`."),
    (b"PK\x03\x04", "a ZIP archive (also .xlsx, .npz and PyTorch files are)", "Unpack or export it."),
    (b"\xff\xfe", "text in UTF-16 and not UTF-8", "Save the file as UTF-8."),
    (b"\xfe\xff", "text in UTF-16 and not UTF-8", "Save the file as UTF-8."),
    (b"%PDF", "a PDF document", "Export its rows as JSON Lines."),
    (b"SQLite format 3", "a SQLite database", "Export its rows as JSON Lines."),
    (b"\x89HDF", "an HDF5 file", "Export its rows as JSON Lines."),
    (b"BZh", "compressed with bzip2", "Take gzip or Zstandard."),
    (b"\xfd7zXZ", "compressed with xz", "Take gzip or Zstandard."),
    *(
        (b"\x80" + bytes([number]), "a pickle, which could run code", "Export its rows as JSON Lines.")
        for number in range(2, 6)
    ),
)
"""First bytes → what such a file is, and what to do about it."""
_log = logging.getLogger(__name__)

Unparsed = Line | Row | BadRow
"""A row as its file's reader gives it."""


def read_conversations(
    name: str, columns: Mapping[str, str] | None = None, max_rows: int | None = None
) -> Iterator[Conversation | BadRow]:
    """The conversations of a source in the order of its rows, and the rows that are none in their places.

    Args:
        name: a file, a folder or a hub name, as `read_rows` takes it.
        columns: our column → the source's.
        max_rows: take only the first rows; what comes after them is not read.

    Raises:
        DataError: the source cannot be read.
    """
    names = Columns(columns)
    for row in itertools.islice(unparsed_rows(name), max_rows):
        yield conversation_or_bad(row, names)


def conversation_or_bad(row: Unparsed, columns: Columns) -> Conversation | BadRow:
    """The conversation that a row is, or why it is none."""
    row = parsed(row)
    if isinstance(row, BadRow):
        return row
    try:
        return conversation(row.value, row.source, columns)
    except DataError as error:
        return BadRow(row.source, str(error))


def read_rows(name: str) -> Iterator[Row | BadRow]:
    """The rows of a source, as `unparsed_rows` has them."""
    return map(parsed, unparsed_rows(name))


def parsed(row: Unparsed) -> Row | BadRow:
    """A row, where it was only a line."""
    return parsed_line(row) if isinstance(row, Line) else row


def unparsed_rows(name: str) -> Iterator[Unparsed]:
    """The rows of a source; lines of JSON Lines as they are, so that another process may parse them.

    Only JSON that is one value is loaded whole; everything else is streamed.

    Args:
        name: a file (JSON, JSON Lines, CSV and TSV, also .gz and .zst; Parquet; Arrow), a folder of such files, or what
            `datasets.load_dataset` takes; for the last two, `name@split` chooses another split than train.

    Raises:
        DataError: there is no such source, or it cannot be read (to its end).
    """
    files = source_files(name)
    if not files:
        yield from hub_rows(name)
    for path in files:
        yield from _file_rows(path)


def source_files(name: str) -> list[Path]:
    """The files that a source consists of, in the order in which they are read; none for a hub name.

    Raises:
        DataError: a path that is not there, or a folder without data.
    """
    base, _, split = name.rpartition("@")
    for path, wanted in ((Path(name), ""), (Path(base), split)):
        try:
            if path == Path() or not os.path.lexists(path):
                continue
            if path.is_dir():
                return _files_of_folder(path, wanted)
            path.stat()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {reason(error)}.") from error
        if not path.is_file():
            raise DataError(f"{path}: is neither a file nor a folder. Save the data to a file.")
        if wanted:
            raise DataError(f"{name}: a file has no splits; name {path} alone, or a folder of files.")
        return [path]
    if looks_like_a_path(name):
        raise DataError(f"{name}: no such file or folder.")
    return []


def _files_of_folder(folder: Path, wanted: str) -> list[Path]:
    """The data files below a folder, sorted: those of one split where their names tell splits apart, else all."""
    found = sorted(Path(base, name) for base, _, names in os.walk(folder, onerror=_refuse) for name in names)
    files = [path for path in found if _kind(path) and _is_data(path.relative_to(folder))]
    if not files:
        raise DataError(f"{folder}: the folder holds no data; it must hold {', '.join(_KINDS)} files, or these as .gz.")
    splits = {path: _split(path.relative_to(folder)) for path in files}
    there = sorted({split for split in splits.values() if split})
    if wanted:
        wanted = _SPLITS.get(wanted, wanted)
        files = [path for path in files if splits[path] == wanted]
        if not files:
            raise DataError(f"{folder}@{wanted}: the folder has no such split; it has {', '.join(there) or 'none'}.")
    elif "train" in there or len(there) > 1 or (there and None in splits.values()):
        taken = [path for path in files if splits[path] in ("train", None)]
        if not taken:
            raise DataError(f"{folder}: the folder has the splits {', '.join(there)}. Choose one: {folder}@{there[0]}.")
        if len(taken) < len(files):
            left = ", ".join(str(path.relative_to(folder)) for path in files if path not in taken)
            _log.warning("%s: held-out splits are left out: %s. Name one with %s@split.", folder, left, folder)
        files = taken
    return files


def _refuse(error: OSError) -> NoReturn:
    raise error


def stem_of(path: Path) -> str:
    """The name of a file without the suffixes that say what it holds: `test.v1` of `test.v1.jsonl.gz`."""
    name = Path(path.stem) if path.suffix.lower() in _COMPRESSED else path
    return name.stem if name.suffix.lower() in _KINDS else name.name


def _is_data(path: Path) -> bool:
    return path.name not in _NO_DATA and not any(part.startswith((".", "_")) for part in path.parts)


def _split(path: Path) -> str | None:
    words = re.split(r"[^a-z]+", "/".join(path.parts).lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), None)


def _kind(path: Path) -> str | None:
    name = Path(path.stem) if path.suffix.lower() in _COMPRESSED else path
    return _KINDS.get(name.suffix.lower())


def _file_rows(path: Path) -> Iterator[Unparsed]:
    """The rows of one file: what it is, its first bytes say where they can, else its name."""
    with opened(path) as file:
        head = file.read(512)
    if head.startswith(b"PAR1"):
        return parquet_rows(path)
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return arrow_rows(path)
    for magic, what, remedy in _FOREIGN:
        if head.startswith(magic):
            raise DataError(f"{path}: is {what}; it must be JSON, JSON Lines, CSV, Parquet or Arrow. {remedy}")
    if 0 < head[:4].count(0) < 4:
        raise DataError(f"{path}: is text in UTF-16 or UTF-32 and not UTF-8. Save the file as UTF-8.")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] == b"<" and re.match(rb"<(!doctype|html|head|body|\?xml)", text, re.IGNORECASE):
        raise DataError(f"{path}: is a web page (HTML or XML), perhaps of a failed download. Download the file itself.")
    if head[257:262] == b"ustar":
        raise DataError(f"{path}: is a tar archive. Unpack it.")
    kind = _kind(path)
    if kind in ("parquet", "arrow") and head:
        raise DataError(f"{path}: is no {kind.capitalize()} file, whatever its name says.")
    if kind in ("csv", "tsv"):
        return csv_rows(path, "," if kind == "csv" else "\t")
    if kind is None and text[:1] not in (b"{", b"["):
        raise DataError(f"{path}: is no data file that is known; it must be JSON, JSON Lines, CSV, Parquet or Arrow.")
    return json_rows(path, lines_expected=kind == "jsonl")
