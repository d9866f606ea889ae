"""JSON Lines, JSON and CSV, plain or compressed → rows with their line."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
import logging
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from sft import strict_json
from sft.errors import DataError
from sft.rows import BadRow, Line, Row
from sft.setting_rules import COLUMNS
from sft.values import kind

MAX_LINE_BYTES = 256 * 2**20
"""A longer line of JSON Lines is no row; it would only fill the memory."""

DAMAGED = "The file is damaged or not complete: copy it again."
"""What to do when a file cannot be read to its end."""

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_NO_VALUE = object()
_BOM = b"\xef\xbb\xbf"
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, decompressed where its first bytes say gzip or Zstandard, whatever its name says.

    Raises:
        DataError: it cannot be opened, or not be read to its end.
    """
    try:
        with path.open("rb") as raw:
            magic = raw.peek(4)
            if magic.startswith(_GZIP):
                with gzip.open(raw) as unzipped:
                    yield cast(BinaryIO, unzipped)
            elif magic.startswith(_ZSTD):
                import pyarrow

                with pyarrow.input_stream(raw, compression="zstd") as stream:
                    yield cast(BinaryIO, io.BufferedReader(stream))
            else:
                yield raw
    except (OSError, EOFError, zlib.error) as error:
        remedy = "" if getattr(error, "errno", None) else f" {DAMAGED}"
        raise DataError(f"{path}: cannot be read: {reason(error)}.{remedy}") from error


def reason(error: Exception) -> str:
    """The error's own words, without the file's name, which messages start with."""
    words = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return words.splitlines()[0].rstrip(".")


def json_rows(path: Path, *, lines_expected: bool) -> Iterator[Line | Row]:
    """The lines of JSON Lines, which are streamed, or the rows of one JSON value, which is loaded.

    Which of the two the file is, its first line says; the log tells when the name says otherwise.

    Args:
        path: the file.
        lines_expected: its name says JSON Lines.

    Raises:
        DataError: one JSON value that cannot be read or holds no rows.
    """
    with opened(path) as file:
        lines = _numbered_lines(path, file)
        head = list(itertools.islice(lines, 2))
        if not head:
            return
        first = _value(head[0][1])
        if isinstance(first, dict):
            has_lines = lines_expected or len(head) == 2
        elif first is _NO_VALUE:
            has_lines = lines_expected and not _opens_a_value(head[0][1])
        else:
            has_lines = lines_expected and not (isinstance(first, list) and len(head) == 1)
        if has_lines != lines_expected:
            found = "one JSON value per line" if has_lines else "one JSON value over the whole file"
            _log.warning("%s: holds %s, unlike its name says; it is read as such.", path, found)
        if has_lines:
            name = str(path)
            for number, line in itertools.chain(head, lines):
                yield Line(name, number, line)
            return
    yield from _rows_of_value(path, lines_expected)


def _numbered_lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank. A line that is too long is cut to one byte more than may be."""
    number = 0
    try:
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
            if (text := line.strip()) and text != _BOM:
                yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}:{number + 1}: cannot be read from here on: {reason(error)}. {DAMAGED}") from error


def _value(line: bytes) -> Any:
    """What a line holds on its own, or `_NO_VALUE`."""
    try:
        return strict_json.loads(line.decode("utf-8-sig"))
    except (strict_json.JsonError, UnicodeDecodeError):
        return _NO_VALUE


def _opens_a_value(line: bytes) -> bool:
    """Whether a line that is no JSON on its own begins a value of several lines: no row begins with `[`."""
    text = line.removeprefix(_BOM).strip()
    return text == b"{" or text.startswith(b"[")


def parsed_line(stated: Line) -> Row | BadRow:
    """The row that a line holds, or why it holds none."""
    source, line = f"{stated.file}:{stated.number}", stated.text
    if len(line) > MAX_LINE_BYTES:
        return BadRow(
            source, f"the line is longer than {MAX_LINE_BYTES >> 20} MiB; a row must be on a line of its own."
        )
    try:
        return Row(strict_json.loads(line.rstrip().decode("utf-8-sig")), source)
    except UnicodeDecodeError as error:
        return BadRow(source, f"byte {error.start} is not UTF-8. Save the file as UTF-8.")
    except strict_json.JsonError as error:
        if b"\0" in line:
            return BadRow(source, "the line holds NUL bytes, as a file does that was not written to its end.")
        place = f"{source}:{error.column}" if error.column else source
        ends_early = "; the file ends in the middle of this row" if not line.endswith(b"\n") else ""
        return BadRow(place, f"{error}{ends_early}.")


def _rows_of_value(path: Path, lines_expected: bool) -> Iterator[Row]:
    """The entries of a list; or of the one list in an object, unless the object is a row itself."""
    with opened(path) as file:
        data = file.read()
    try:
        value = strict_json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from None
    except strict_json.JsonError as error:
        place = f"{path}:{error.line}:{error.column}" if error.line else str(path)
        hint = " A row of JSON Lines stands on one line." if lines_expected else ""
        raise DataError(f"{place}: {error}.{hint}") from None
    if isinstance(value, dict):
        lists = [key for key, item in value.items() if isinstance(item, list)]
        if set(value) & set(COLUMNS):
            value = [value]
        elif len(lists) == 1:
            value = value[lists[0]]
        else:
            found = f"{len(lists)} lists" if lists else "no list"
            remedy = f" Save {' and '.join(map(str, lists))} to files of their own." if lists else ""
            raise DataError(f"{path}: the file holds an object with {found}; it must hold a list of rows.{remedy}")
    if not isinstance(value, list):
        raise DataError(f"{path}: the file holds {kind(value)}; it must hold a list of rows.")
    for index, row in enumerate(value):
        yield Row(row, f"{path}[{index}]")


def csv_rows(path: Path, separator: str) -> Iterator[Row | BadRow]:
    """The rows of a table whose first line names the columns. Every cell is text, an empty one null.

    Raises:
        DataError: it is no UTF-8, or a quote is never closed.
    """
    csv.field_size_limit(sys.maxsize)
    with opened(path) as file:
        table = csv.reader(_text_lines(path, file), delimiter=separator, strict=True)
        number = 1
        try:
            header = next(table, [])
            if len(set(header)) < len(header):
                raise DataError(f"{path}:1: a column's name stands twice; each must be there once.")
            number = table.line_num + 1
            for cells in table:
                if len(cells) == len(header):
                    row = {name: cell or None for name, cell in zip(header, cells, strict=True)}
                    yield Row(row, f"{path}:{number}")
                elif cells:
                    yield BadRow(f"{path}:{number}", f"the row has {len(cells)} cells; it must have {len(header)}.")
                number = table.line_num + 1
        except csv.Error as error:
            raise DataError(f"{path}:{number}: no valid CSV: {error}.") from None


def _text_lines(path: Path, file: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}:{number}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from None
