"""Rows of data → what would be trained of each: tokens with their texts, for painting, or plain values for programs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sft.documents import Document
from sft.encoding import documents_of
from sft.formats import Conversation
from sft.masking import Masker
from sft.rows import BadRow
from sft.sources import read_conversations
from sft.truncation import Truncation, fitted

ROWS_PER_BATCH = 64
_MAX_PENDING = 8
"""So many tokens may make up one character."""


@dataclass(frozen=True)
class Refused:
    """A row of which nothing is trained."""

    row: int
    """Its number in the data, from 0."""
    source: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"row": self.row, "source": self.source, "refused": self.reason}


@dataclass(frozen=True)
class Inspected:
    """One document of a row."""

    row: int
    """The row's number in the data, from 0."""
    number: int
    """The document's among those of the row, from 0."""
    source: str
    form: str
    """The form that the row was read as."""
    document: Document
    """As it was encoded, whole."""
    kept: tuple[int, ...]
    """Positions of the tokens that are trained or read; the others are cut off."""
    cut: str | None
    """What was done to a document that is too long."""

    @property
    def is_truncated(self) -> bool:
        """Whether it was cut or dropped because of its length."""
        return self.cut is not None

    @property
    def num_trained_tokens(self) -> int:
        """Tokens with a loss, after truncation."""
        return sum(bool(self.document.trained[index]) for index in self.kept[1:])

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        kept, weights = list(self.kept), self.document.weights
        return {
            "row": self.row,
            "document": self.number,
            "source": self.source,
            "format": self.form,
            "input_ids": [int(self.document.input_ids[index]) for index in kept],
            "trained": [int(self.document.trained[index]) for index in kept],
            "weights": None if weights is None else [float(weights[index]) for index in kept],
            "notes": list(self.document.notes),
            "truncated": self.is_truncated,
            **({"dropped": self.cut} if self.cut and not kept else {}),
        }


def inspected(
    sources: Iterable[str],
    masker: Masker,
    *,
    rows: range | None = None,
    columns: Mapping[str, str] | None = None,
    max_length: int | None = None,
) -> Iterator[Inspected | Refused]:
    """The documents of rows, in order, and the refused rows in their places.

    Args:
        sources: files; their rows are numbered on from one to the next.
        masker: tokenizer, template, what is trained, and how longer documents are truncated.
        rows: which rows; by default all.
        columns: our column → the source's.
        max_length: tokens of a document; by default none is cut.

    Raises:
        DataError: a source cannot be read.
    """
    found = itertools.chain.from_iterable(read_conversations(name, columns) for name in sources)
    numbered = enumerate(found)
    chosen = itertools.islice(numbered, rows.start, rows.stop) if rows is not None else numbered
    while batch := list(itertools.islice(chosen, ROWS_PER_BATCH)):
        yield from _of_batch(batch, masker, max_length)


def _of_batch(
    batch: Sequence[tuple[int, Conversation | BadRow]], masker: Masker, max_length: int | None
) -> Iterator[Inspected | Refused]:
    for (number, row), made in zip(batch, documents_of([row for _, row in batch], masker), strict=True):
        if isinstance(made, BadRow):
            yield Refused(number, made.source, made.reason)
            continue
        assert isinstance(row, Conversation)
        for index, document in enumerate(made):
            kept, cut = _kept(document, max_length, masker.options.truncation)
            yield Inspected(number, index, row.source, row.format, document, kept, cut)


def _kept(document: Document, max_length: int | None, truncation: Truncation) -> tuple[tuple[int, ...], str | None]:
    """(positions of the tokens that are left, what was done)."""
    everything = tuple(range(len(document)))
    if max_length is None or len(document) <= max_length:
        return everything, None
    # The positions take the place of the tokens, and tell where each of those that are left has stood.
    numbered = replace(document, input_ids=np.arange(len(document), dtype=np.int32))
    left, what = fitted(numbered, max_length, truncation)
    if what is None:
        return everything, None
    return (() if left is None else tuple(int(index) for index in left.input_ids)), what


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens that make up whole characters; usually one token."""

    text: str
    index: int
    """Position of the first token."""
    ids: tuple[int, ...]
    is_trained: bool
    weight: float
    is_control: bool
    """A control token, and no text."""
    is_kept: bool


def pieces(view: Inspected, masker: Masker) -> list[Piece]:
    """The document's text, cut at its tokens. All texts together are the text that the ids decode to."""
    document, kept = view.document, frozenset(view.kept)
    ids = [int(token_id) for token_id in document.input_ids]
    found: list[Piece] = []
    before, start = 0, 0  # first token of the piece before, and of this one
    for index in range(len(ids)):
        known = masker.decode(ids[before:start])
        text = masker.decode(ids[before : index + 1])
        is_open = text.endswith("\ufffd") and index + 1 - start < _MAX_PENDING and index + 1 < len(ids)
        if is_open and _alike(document, kept, index, index + 1) and not masker.is_control(ids[index + 1]):
            continue
        weight = 1.0 if document.weights is None else float(document.weights[index])
        found.append(
            Piece(
                text[len(known) :] if text.startswith(known) else masker.decode(ids[start : index + 1]),
                start,
                tuple(ids[start : index + 1]),
                bool(document.trained[index]),
                weight if document.trained[index] else 0.0,
                masker.is_control(ids[index]),
                index in kept,
            )
        )
        before, start = start, index + 1
    return found


def _alike(document: Document, kept: Set[int], first: int, second: int) -> bool:
    """Whether what is shown of one token holds for the other too."""
    same_trained = bool(document.trained[first]) == bool(document.trained[second])
    return same_trained and (first in kept) == (second in kept)
