"""The fast way for conversations of a form that was proven before.

The first conversation of a form (its roles and fields) takes the slow way, which follows every character. What it
shows is kept as a plan: the template's own text, with gaps for what the messages hold, and where the turns stand. A
later conversation of that form is rendered too; only if its text is the plan's with its own contents in the gaps is the
mask taken from the plan. Anything else, and a sample of what fits, takes the slow way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sft.formats import Conversation
from sft.masks.origins import held_by, is_written
from sft.masks.tokens import Tokens
from sft.masks.turns import Rendition

SAMPLE = 256
"""Of so many conversations of a form, one is proven the slow way."""

_FIELDS = {"content": "content", "reasoning_content": "reasoning"}
_STEERING = re.compile(r"</?think|/no_think")
"""What contents hold that templates are known to look for; it belongs to the form."""
_TRIMS: tuple[Callable[[str], str], ...] = (str, str.strip, str.lstrip, str.rstrip)


@dataclass(frozen=True)
class Gap:
    """A place for what a message holds."""

    message: int
    field: str
    trim: Callable[[str], str]

    def fill(self, conversation: Conversation) -> str:
        """What stands there for a conversation."""
        return self.trim(conversation.messages[self.message][self.field])


@dataclass(frozen=True)
class Anchor:
    """A trained stretch that follows a control token and the header after it, and ends with a control token.

    Ids say what text they stand for, so that the same header after the same control token ends where the header ends.
    """

    opening: int
    """Number of the control token before it, from 0."""
    header: tuple[int, ...]
    """Token ids between that one and the stretch."""
    closing: int
    """Number of the control token that is its last."""

    def edges(self, ids: Sequence[int], controls: NDArray[np.int64]) -> tuple[int | None, int | None]:
        """Its first token, None where the header is another, and that behind its last, in tokens with control tokens at
        these places."""
        begin = int(controls[self.opening]) + 1
        start = begin + len(self.header)
        return (start if tuple(ids[begin:start]) == self.header else None), int(controls[self.closing]) + 1


@dataclass(frozen=True)
class Plan:
    """How one document of a form is made."""

    pieces: tuple[str | Gap, ...]
    spans: tuple[tuple[int, int, int, int, int], ...]
    """(piece and offset where it starts, piece and offset where it ends, message) of each trained turn."""
    num_messages: int
    notes: tuple[str, ...]
    turns: tuple[tuple[int, int], ...]
    """(piece, offset in it) where each user's turn begins."""
    anchors: tuple[Anchor, ...] = field(compare=False)
    """Where the trained stretches are in its tokens, by the control tokens around them; none: by characters."""
    num_control_tokens: int = field(compare=False)
    """Control tokens among its tokens: more of them come from data, fewer from a tokenizer that joined some."""

    def fill(self, conversation: Conversation) -> Filled:
        """The text of a conversation, and what stands where."""
        texts = [piece if isinstance(piece, str) else piece.fill(conversation) for piece in self.pieces]
        starts, position = [], 0
        for text in texts:
            starts.append(position)
            position += len(text)
        starts.append(position)
        spans = [(starts[a] + i, starts[b] + j, message) for a, i, b, j, message in self.spans]
        return Filled(self, "".join(texts), spans, [starts[piece] + offset for piece, offset in self.turns])


@dataclass(frozen=True)
class Filled:
    """A plan with the contents of a conversation."""

    plan: Plan
    text: str
    spans: list[tuple[int, int, int]]
    """Start, end and message of each trained stretch."""
    turns: list[int]
    """Where each user's turn begins."""


def form_of(conversation: Conversation, weights: Sequence[float]) -> Hashable | None:
    """What conversations of one form have in common; None if the fast way is not for it."""
    if conversation.tools or conversation.template_kwargs:
        return None
    form: list[Hashable] = []
    for message, weight in zip(conversation.messages, weights, strict=True):
        for name, value in message.items():
            if name == "role":
                form.append(value)
            elif name not in _FIELDS or not isinstance(value, str) or not value or value.isspace():
                return None
            else:
                steering = frozenset(_STEERING.findall(value)) if "/" in value else None
                form.append((name, steering or None))
        form.append(weight > 0)
    return tuple(form)


def plan_of(
    rendition: Rendition,
    conversation: Conversation,
    turns: Sequence[int],
    notes: tuple[str, ...],
    anchors: tuple[Anchor, ...],
    num_control_tokens: int,
) -> Plan | None:
    """The plan that a proven text shows; None if it holds anything but the template's text and whole contents."""
    if rendition.prompt_length is not None:
        return None
    pieces: list[str | Gap] = []
    edges: list[int] = []
    for start, end in _runs(rendition.origins):
        text = rendition.text[start:end]
        piece = text if is_written(rendition.origins[start]) else _gap(text, rendition.origins[start], conversation)
        if piece is None:
            return None
        pieces.append(piece)
        edges.append(start)
    spans = []
    for span in rendition.spans:
        start_at, end_at = _position(edges, pieces, span.start), _position(edges, pieces, span.end)
        if start_at is None or end_at is None:
            return None
        spans.append((*start_at, *end_at, span.message))
    begins = [at for position in turns if (at := _position(edges, pieces, position)) is not None]
    return Plan(tuple(pieces), tuple(spans), rendition.num_messages, notes, tuple(begins), anchors, num_control_tokens)


def anchors_of(
    tokens: Tokens, is_control: NDArray[np.bool_], stretches: Sequence[tuple[int, int]]
) -> tuple[Anchor, ...]:
    """The anchors of all trained stretches of a proven text; none if one of them has none.

    Args:
        tokens: of the text.
        is_control: for each token id whether it is a control token.
        stretches: characters that are trained.
    """
    controls = np.flatnonzero(is_control[np.asarray(tokens.ids)])
    starts = {start: index for index, (start, _) in reversed(list(enumerate(tokens.offsets)))}
    ends = {end: index for index, (_, end) in enumerate(tokens.offsets)}
    anchors = []
    for start, end in stretches:
        first, last = starts.get(start), ends.get(end)
        if first is None or last is None or not is_control[tokens.ids[last]]:
            return ()
        opening = int(np.searchsorted(controls, first)) - 1
        if opening < 0:
            return ()
        before = int(controls[opening])
        if tokens.offsets[first - 1][1] != start:  # white space between them that no token covers
            return ()
        closing = int(np.searchsorted(controls, last))
        anchors.append(Anchor(opening, tuple(tokens.ids[before + 1 : first]), closing))
    return tuple(anchors)


def _runs(origins: str) -> list[tuple[int, int]]:
    """Stretches of the template's own text, and of one and the same field."""
    runs: list[tuple[int, int]] = []
    for match in re.finditer(r"(.)\1*", origins, re.DOTALL):
        joins = runs and is_written(match.group(1)) and is_written(origins[runs[-1][0]])
        if joins:
            runs[-1] = (runs[-1][0], match.end())
        else:
            runs.append(match.span())
    return runs


def _gap(text: str, code: str, conversation: Conversation) -> Gap | None:
    for message, held in enumerate(conversation.messages):
        for name, kind in _FIELDS.items():
            if name in held and held_by(message, kind) == code:
                trim = next((trim for trim in _TRIMS if trim(held[name]) == text), None)
                return Gap(message, name, trim) if trim is not None else None
    return None


def _position(edges: Sequence[int], pieces: Sequence[str | Gap], position: int) -> tuple[int, int] | None:
    """(piece, offset in it) of a character; None if it stands within a content."""
    for index in range(len(edges) - 1, -1, -1):
        if edges[index] <= position:
            offset = position - edges[index]
            if offset == 0 or isinstance(pieces[index], str):
                return index, offset
            is_last = index == len(edges) - 1
            return (index + 1, 0) if is_last else None
    return None
