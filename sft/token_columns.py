"""Documents as columns: one array of token ids for all of them, memory-mapped from files where they are many.

ids.bin        uint16 or uint32, one per token
trained.bin    uint8, one per token
weights.bin    float32, one per token; only where some are neither 0 nor 1
lengths.bin    int32, tokens of each document
num_trained.bin  int32, trained tokens of each document
total_weights.bin  float64, sum of each document's weights; its number of trained tokens where it has none
offsets.bin    int64, where each document begins
rows.bin       int64, the row of the source that each comes from
manifest.json  sizes, and what was counted on the way
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sft.documents import Document
from sft.errors import StorageError
from sft.storage import storage_errors, write_json

MANIFEST = "manifest.json"
_COPIED_BYTES = 1 << 24
_PER_DOCUMENT = {
    "lengths": np.int32,
    "num_trained": np.int32,
    "total_weights": np.float64,
    "offsets": np.int64,
    "rows": np.int64,
}


@dataclass(frozen=True)
class TokenColumns(Sequence[Document]):
    """Documents in the order of their rows."""

    ids: NDArray[Any]
    trained: NDArray[np.uint8]
    weights: NDArray[np.float32] | None
    lengths: NDArray[np.int32]
    num_trained: NDArray[np.int32]
    total_weights: NDArray[np.float64]
    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, documents: Sequence[Document], rows: Sequence[int]) -> TokenColumns:
        """Columns in memory.

        Args:
            documents: in order.
            rows: the source's row of each.
        """

        def column(values: Iterable[Any], dtype: Any) -> NDArray[Any]:
            return np.concatenate([np.zeros(0, dtype), *(np.asarray(each, dtype) for each in values)])

        lengths = np.array([len(document) for document in documents], dtype=np.int32)
        weighted = any(document.weights is not None for document in documents)
        weights = (document.trained if document.weights is None else document.weights for document in documents)
        return cls(
            column((document.input_ids for document in documents), np.uint32),
            column((document.trained for document in documents), np.uint8),
            column(weights, np.float32) if weighted else None,
            lengths,
            np.array([document.num_trained_tokens for document in documents], dtype=np.int32),
            np.array([document.total_weight for document in documents], dtype=np.float64),
            np.cumsum(lengths, dtype=np.int64) - lengths,
            np.array(rows, dtype=np.int64),
        )

    @classmethod
    def open(cls, folder: Path) -> TokenColumns:
        """Columns of a folder, memory-mapped: opening takes the same time for any size.

        Raises:
            StorageError: a file has not the size that the manifest says.
        """
        manifest = read_manifest(folder)
        with _reading(folder):

            def column(name: str, dtype: Any) -> NDArray[Any]:
                path, size = folder / f"{name}.bin", manifest["bytes"][name]
                if path.stat().st_size != size:
                    raise StorageError(
                        f"{path}: has {path.stat().st_size} bytes; it must have {size}. Delete {folder}."
                    )
                return np.memmap(path, dtype=dtype, mode="r") if size else np.zeros(0, dtype=dtype)

            weights = column("weights", np.float32) if "weights" in manifest["bytes"] else None
            rest = [column(name, dtype) for name, dtype in _PER_DOCUMENT.items()]
            return cls(column("ids", manifest["ids"]), column("trained", np.uint8), weights, *rest)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Document:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = int(self.offsets[index]), int(self.offsets[index]) + int(self.lengths[index])
        weights = None if self.weights is None else np.array(self.weights[start:end])
        return Document(self.ids[start:end].astype(np.int32), self.trained[start:end].astype(bool), weights)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the manifest of a folder of columns holds.

    Raises:
        StorageError: it cannot be read.
    """
    with _reading(folder):
        found: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return found


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise StorageError(f"{folder} cannot be read: {reason}. Delete it; it is made anew.") from error


def write_columns(folder: Path, parts: Iterable[TokenColumns], vocabulary_size: int, info: Mapping[str, Any]) -> None:
    """Writes the columns of all parts, one after the other, to a folder that is there and empty; the manifest last.

    Args:
        folder: a temporary one; the caller gives it its name when it is complete.
        parts: in order; only one is in memory at a time.
        vocabulary_size: one more than the greatest token id.
        info: goes into the manifest.

    Raises:
        StorageError: the disk does not take it.
    """
    dtype = np.dtype(np.uint16 if vocabulary_size <= 1 << 16 else np.uint32)
    num_tokens = 0
    weighted = False
    with storage_errors(folder, "dataset_cache_dir"):
        names = ("ids", "trained", "weights", *_PER_DOCUMENT)
        files = {name: (folder / f"{name}.bin").open("wb") for name in names}
        try:
            for part in parts:
                if part.weights is not None and not weighted:
                    weighted = True
                    _write_trained_as_weights(folder, files)
                if weighted:
                    (part.trained if part.weights is None else part.weights).astype(np.float32).tofile(files["weights"])
                part.ids.astype(dtype).tofile(files["ids"])
                part.trained.tofile(files["trained"])
                for name in ("lengths", "num_trained", "total_weights", "rows"):
                    getattr(part, name).tofile(files[name])
                (part.offsets + num_tokens).tofile(files["offsets"])
                num_tokens += len(part.ids)
        finally:
            for file in files.values():
                file.close()
        if not weighted:
            (folder / "weights.bin").unlink()
        sizes = {path.stem: path.stat().st_size for path in folder.glob("*.bin")}
    write_json(folder / MANIFEST, {"ids": dtype.name, "bytes": sizes, **info})


def _write_trained_as_weights(folder: Path, files: Mapping[str, BinaryIO]) -> None:
    """Catches up with the weights of what is written already, none of which had any of its own."""
    files["trained"].flush()
    with (folder / "trained.bin").open("rb") as written:
        while flags := written.read(_COPIED_BYTES):
            np.frombuffer(flags, dtype=np.uint8).astype(np.float32).tofile(files["weights"])
