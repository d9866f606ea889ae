"""What a masker gives, as plain values."""

from __future__ import annotations

from typing import Any

from sft.formats import Conversation
from sft.masking import Document, Masker, MaskError


def outcome(masker: Masker, conversation: Conversation) -> list[Document] | MaskError:
    """The documents, or the refusal."""
    try:
        return masker.documents(conversation)
    except MaskError as error:
        return error


def columns(result: list[Document] | MaskError) -> Any:
    """A result as plain values, to compare: columns may be lists or arrays."""
    if isinstance(result, MaskError):
        return str(result)
    return [[None if column is None else list(column) for column in vars(document).values()] for document in result]


def with_lists(document: Document) -> Document:
    """The document with plain lists: columns may be lists or arrays."""
    weights = None if document.weights is None else [float(weight) for weight in document.weights]
    ids, trained = [int(token_id) for token_id in document.input_ids], [bool(flag) for flag in document.trained]
    return Document(ids, trained, weights, document.notes)
