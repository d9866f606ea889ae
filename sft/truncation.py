"""Documents that are too long: cut, or dropped, with the reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from sft.documents import Document

Truncation = Literal["right", "left", "drop"]

TRUNCATED = "truncated"
TOO_LONG = "dropped: longer than max_length"
NOTHING_LEFT = "dropped: nothing trained within max_length"


def fitted(document: Document, max_length: int, truncation: Truncation) -> tuple[Document | None, str | None]:
    """(the document with at most `max_length` tokens, or None if it is dropped; what was done, for counting).

    What stands after the last trained token is never computed, and taken off first: it makes no document too long.

    Args:
        document: with turn starts, where they are to be cut from the left.
        max_length: tokens.
        truncation: `right` cuts the end, `left` whole turns from the beginning (what stands before the first user's
            turn stays) and then the end, `drop` drops.
    """
    document = without_tail(document)
    if len(document) <= max_length:
        return document, None
    if truncation == "drop":
        return None, TOO_LONG
    if truncation == "left":
        document = _without_first_turns(document, max_length)
    document = without_tail(_part(document, np.arange(min(len(document), max_length))))
    return (document, TRUNCATED) if document.num_trained_tokens else (None, NOTHING_LEFT)


def without_tail(document: Document) -> Document:
    """The document up to its last trained token."""
    trained = np.flatnonzero(document.trained)
    end = int(trained[-1]) + 1 if len(trained) else 0
    if end == len(document):
        return document
    starts = tuple(start for start in document.turn_starts if start < end)
    return replace(_part(document, np.arange(end)), turn_starts=starts)


def _without_first_turns(document: Document, max_length: int) -> Document:
    """As many whole turns from its end as there is room for, after what stands before the first; at least the last."""
    starts = document.turn_starts
    if len(starts) < 2:
        return document
    prefix = starts[0]
    begin = next((start for start in starts[1:] if prefix + len(document) - start <= max_length), starts[-1])
    return _part(document, np.concatenate([np.arange(prefix), np.arange(begin, len(document))]))


def _part(document: Document, tokens: np.ndarray) -> Document:
    """The document with some of its tokens."""
    ids, trained = np.asarray(document.input_ids)[tokens], np.asarray(document.trained)[tokens]
    weights = None if document.weights is None else np.asarray(document.weights)[tokens]
    return Document(ids, trained, weights, document.notes)
