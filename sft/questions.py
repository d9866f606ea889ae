"""Rows of data as questions: the prompt before the last trained turn, what that turn says, the documents of a row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sft.documents import Document
from sft.encoding import documents_of
from sft.errors import MaskError
from sft.formats import Conversation
from sft.masking import Masker
from sft.metrics import answer_of
from sft.rows import BadRow
from sft.truncation import TRUNCATED, fitted

ROWS_PER_BATCH = 64

SMALL_TALK = Conversation(
    ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}), "a made-up conversation"
)
"""What shows where turns end in a template."""


@dataclass(frozen=True)
class Question:
    """One row."""

    row: int
    """Its number in the data, from 0."""
    sha256: str
    """Of what the data says in it: the same for every model."""
    source: str
    prompt: str
    """What the model is given, rendered."""
    prompt_ids: tuple[int, ...]
    reference: str
    """What the last trained turn says behind its thoughts; where it calls tools, as it is rendered."""
    documents: tuple[Document, ...]
    """What the trainer would make of the row; none where it is too long."""
    num_truncated: int
    """How many of these were cut to max_length."""
    num_dropped: int
    """How many more there would be, were they not too long."""


def questions_of(
    rows: Sequence[tuple[int, Conversation | BadRow]], masker: Masker, max_length: int
) -> Iterator[Question | BadRow]:
    """Each row as a question, or why it is none.

    Args:
        rows: with their numbers.
        masker: tokenizer, template, what is trained.
        max_length: tokens of a document.
    """
    for start in range(0, len(rows), ROWS_PER_BATCH):
        batch = rows[start : start + ROWS_PER_BATCH]
        made = documents_of([row for _, row in batch], masker)
        for (number, row), documents in zip(batch, made, strict=True):
            if isinstance(documents, BadRow):
                yield documents
                continue
            assert isinstance(row, Conversation)
            try:
                yield _question(number, row, documents, masker, max_length)
            except MaskError as error:
                yield BadRow(row.source, str(error))


def _question(
    number: int, conversation: Conversation, documents: Sequence[Document], masker: Masker, max_length: int
) -> Question:
    weights = conversation.weights or (1.0,) * len(conversation.messages)
    turns = zip(conversation.messages, weights, strict=True)
    last = max(place for place, (message, weight) in enumerate(turns) if message["role"] == "assistant" and weight)
    asked = replace(conversation, messages=conversation.messages[:last], weights=conversation.weights[:last])
    text, ids = masker.prompt(asked)
    turn = conversation.messages[last]
    content = turn.get("content")
    is_plain = isinstance(content, str) and content.strip() and "tool_calls" not in turn
    cut = [fitted(document, max_length, masker.options.truncation) for document in documents]
    kept = tuple(document for document, _ in cut if document is not None)
    return Question(
        number,
        _sha256(conversation),
        conversation.source,
        text,
        tuple(ids),
        answer_of(str(content) if is_plain else _rendered(documents[-1], masker)),
        kept,
        sum(what == TRUNCATED for _, what in cut),
        len(cut) - len(kept),
    )


def _sha256(conversation: Conversation) -> str:
    said = (conversation.messages, conversation.tools, conversation.weights, conversation.template_kwargs)
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def _rendered(document: Document, masker: Masker) -> str:
    """The text of the document's last trained stretch, without the token that ends it."""
    trained = [bool(flag) for flag in document.trained]
    end = len(trained) - trained[::-1].index(True)
    start = end
    while start and trained[start - 1]:
        start -= 1
    ids = [int(token) for token in document.input_ids[start:end]]
    return masker.decode(ids[:-1] if ids[-1] in masker.stop_token_ids else ids).strip()
