"""Stretches of characters → tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

from sft.errors import MaskError
from sft.formats import Conversation
from sft.masks.origins import codes_of, is_data, message_of
from sft.masks.turns import Rendition


def token_edge(encoding: Any, position: int, num_tokens: int) -> int | None:
    """The token that begins at a character; None if none does."""
    token = encoding.char_to_token(position)
    if token is None:
        return num_tokens if num_tokens and encoding.token_to_chars(num_tokens - 1)[1] == position else None
    return int(token) if encoding.token_to_chars(token)[0] == position else None


def token_weights(offsets: Sequence[tuple[int, int]], rendition: Rendition, weights: Sequence[float]) -> list[float]:
    """For each token its loss weight: that of the turn in whose span it lies, 0 outside.

    A token that reaches over a span's edge, as the tokenizer joins what stands on both sides, belongs to the side
    that says something; white space alone does not.

    Raises:
        MaskError: it joins what two messages say.
    """
    values = [0.0] * len(offsets)
    spans = iter(rendition.spans)
    span = next(spans, None)
    for index, (start, end) in enumerate(offsets):
        while span is not None and start >= span.end:
            span = next(spans, None)
        if span is None:
            break
        if end <= span.start:
            continue
        if start < span.start or end > span.end:
            inside = rendition.text[max(start, span.start) : min(end, span.end)]
            if not inside.strip():
                continue
            outside = rendition.origins[start : span.start] + rendition.origins[span.end : end]
            if any(is_data(code) and message_of(code) != span.message for code in outside):
                raise MaskError(
                    f"messages[{span.message}]: the tokenizer joins the turn with what another message says "
                    f"in one token ({rendition.text[start:end]!r})."
                )
        values[index] = weights[span.message] if span.message >= 0 else 1.0
    return values


def joins_prompt(offsets: Sequence[tuple[int, int]], rendition: Rendition) -> bool:
    """Whether a token reaches over the beginning of a trained turn: at inference its prompt is tokenized by itself."""
    starts = [start for start, _ in offsets]
    before = (bisect_left(starts, span.start) - 1 for span in rendition.spans)
    return any(at >= 0 and offsets[at][1] > span.start for at, span in zip(before, rendition.spans, strict=True))


def turn_positions(origins: str, messages: Iterable[int]) -> list[int]:
    """Where each of these messages begins in a text, its header included."""
    found = (min((at for code in codes_of(index) if (at := origins.find(code)) >= 0), default=-1) for index in messages)
    return sorted(position for position in found if position >= 0)


def turn_starts(offsets: Sequence[tuple[int, int]], positions: Sequence[int]) -> tuple[int, ...]:
    """The first token at or after each position."""
    starts = [start for start, _ in offsets]
    return tuple(sorted({bisect_left(starts, position) for position in positions}))


def user_turns(conversation: Conversation) -> list[int]:
    """Indices of the users' messages."""
    return [index for index, message in enumerate(conversation.messages) if message["role"] == "user"]
