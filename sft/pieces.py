"""Pieces of weights and of AdamW's means: which rank holds what, and files of them that any other world can read.

A piece is a run of elements of a flattened parameter. Each rank writes its share of what it holds to one safetensors
file, and reads from all files what it holds later, be it under another engine or another number of ranks.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from sft.errors import CheckpointError, NonFiniteError

TensorKind = Literal["weight", "exp_avg", "exp_avg_sq"]
"""A parameter's value in full precision, or one of AdamW's two running means."""
KINDS: tuple[TensorKind, ...] = ("weight", "exp_avg", "exp_avg_sq")
_CHUNK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `start + size` of a flattened tensor, which this rank holds in float32."""

    name: str
    """Of the parameter."""
    kind: TensorKind
    start: int
    size: int
    whole_size: int
    """Elements of the whole parameter."""
    copy: int = 0
    """This rank's number among those that hold the same piece."""
    num_copies: int = 1

    @property
    def share(self) -> slice:
        """What of the piece this rank writes: those that hold the same share the work."""
        return slice(self.size * self.copy // self.num_copies, self.size * (self.copy + 1) // self.num_copies)


def share_sizes(pieces: Sequence[Piece]) -> list[int]:
    """Elements that this rank writes of each piece."""
    return [piece.share.stop - piece.share.start for piece in pieces]


def file_header(pieces: Sequence[Piece]) -> bytes:
    """The beginning of a safetensors file that holds this rank's shares of these pieces, end to end, in float32.

    A tensor of it is called `<kind>/<start in the flattened parameter>/<parameter>`.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for piece, size in zip(pieces, share_sizes(pieces), strict=True):
        if size:
            key = f"{piece.kind}/{piece.start + piece.share.start}/{piece.name}"
            header[key] = {"dtype": "F32", "shape": [size], "data_offsets": [offset, offset + 4 * size]}
            offset += 4 * size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def file_chunks(pieces: Sequence[Piece], values: Tensor) -> Iterator[bytes | memoryview]:
    """A part file, in chunks.

    Args:
        pieces: what this rank holds.
        values: its shares of them, end to end: float32, on the CPU.

    Raises:
        NonFiniteError: a value is infinite or no number; it is told of which parameter.
    """
    yield file_header(pieces)
    for start in range(0, len(values), _CHUNK_ELEMENTS):
        chunk = values[start : start + _CHUNK_ELEMENTS]
        # Least and greatest are NaN if any value is: one pass, and no tensor of flags.
        if not all(bool(torch.isfinite(bound)) for bound in torch.aminmax(chunk)):
            raise _not_finite(pieces, values)
        yield memoryview(chunk.view(torch.uint8).numpy().data)


def _not_finite(pieces: Sequence[Piece], values: Tensor) -> NonFiniteError:
    owned = zip(pieces, torch.split(values, share_sizes(pieces)), strict=True)
    piece = next(piece for piece, own in owned if not torch.isfinite(own).all())
    return NonFiniteError(
        f"the {piece.kind} of {piece.name} has values that are no finite numbers; a checkpoint must be finite, and is "
        "not written. Lower learning_rate, or look at the rows of the last steps."
    )


class PartFiles:
    """The files of a checkpoint, mapped: only what is asked for is read."""

    def __init__(self, files: Sequence[Path]) -> None:
        """
        Args:
            files: all of a checkpoint's, written as `file_chunks` gives them.

        Raises:
            CheckpointError: one of them is no safetensors file of pieces.
        """
        self._files: list[Any] = []
        self._held: dict[tuple[str, str], list[tuple[int, int, int, str]]] = defaultdict(list)
        for number, path in enumerate(files):
            try:
                opened: Any = safe_open(path, framework="pt")
                self._files.append(opened)
                for key in opened.keys():  # noqa: SIM118  (not a mapping)
                    kind, start, name = key.split("/", 2)
                    (size,) = opened.get_slice(key).get_shape()
                    self._held[kind, name].append((int(start), int(start) + size, number, key))
            except Exception as error:  # safetensors has its own error type per cause
                raise CheckpointError(f"{path} cannot be read: {error}. Remove this checkpoint.") from error

    def read(self, piece: Piece) -> Tensor:
        """The values of a piece: float32, (size,), on the CPU.

        Raises:
            CheckpointError: the files do not hold all of it, or the parameter has another size there.
        """
        held = self._held.get((piece.kind, piece.name), [])
        values = torch.empty(piece.size, dtype=torch.float32)
        end = piece.start + piece.size
        num_found = 0
        for start, stop, number, key in held:
            first, last = max(start, piece.start), min(stop, end)
            if first < last:
                values[first - piece.start : last - piece.start] = self._files[number].get_slice(key)[
                    first - start : last - start
                ]
                num_found += last - first
        whole_size = max((stop for _, stop, _, _ in held), default=0)
        if num_found != piece.size or whole_size != piece.whole_size:
            raise CheckpointError(
                f"the checkpoint has {whole_size} elements of the {piece.kind} of {piece.name}, {num_found} of the "
                f"{piece.size} that this rank needs; it must have {piece.whole_size}. It is of another model."
            )
        return values
