"""Parquet and Arrow files and hub datasets → rows with their index, a batch in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft.errors import DataError
from sft.rows import Row
from sft.text_rows import DAMAGED, reason

_BATCH_ROWS = 1000


def parquet_rows(path: Path) -> Iterator[Row]:
    """
    Raises:
        DataError: it is no Parquet file, or a damaged one.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield from _rows(path, file.iter_batches(batch_size=_BATCH_ROWS))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {reason(error)}. {DAMAGED}") from error


def arrow_rows(path: Path) -> Iterator[Row]:
    """The rows of an Arrow file of either kind: with a footer (`.arrow`, Feather) or a stream, as `datasets` writes it.

    Raises:
        DataError: it is neither, or a damaged one.
    """
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as file:
            if file.read(6) == b"ARROW1":
                reader = pyarrow.ipc.open_file(file)
                batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            else:
                file.seek(0)
                batches = iter(pyarrow.ipc.open_stream(file))
            yield from _rows(path, batches)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Arrow: {reason(error)}. {DAMAGED}") from error


def hub_rows(name: str) -> Iterator[Row]:
    """The rows of a dataset that the `datasets` library finds: `owner/name`, `owner/name:config`, either with `@split`.

    Raises:
        DataError: it cannot be loaded, in the library's own words.
    """
    import datasets

    repository, _, split = name.partition("@")
    repository, _, config = repository.partition(":")
    try:
        table = datasets.load_dataset(repository, config or None, split=split or "train")
    except Exception as error:  # the library raises many kinds; its own words are the best there are
        raise DataError(f"{name}: neither a file nor a dataset that could be loaded: {reason(error)}.") from error
    for index, row in enumerate(table):
        yield Row(without_nulls(row), f"{name}[{index}]")


def _rows(path: Path, batches: Iterator[Any]) -> Iterator[Row]:
    index = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            for row in batch.slice(start, _BATCH_ROWS).to_pylist(maps_as_pydicts="lossy"):
                yield Row(without_nulls(row), f"{path}[{index}]")
                index += 1


def without_nulls(value: Any) -> Any:
    """The value without the keys that are null: a column of Arrow gives each row the keys of all rows, as null where
    the row had none, so that one row's tool arguments would show up in another's."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value
