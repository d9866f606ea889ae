"""A document for the terminal: what is trained in colour, or in brackets where there is none."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from sft.inspection import Inspected, Piece, Refused

MAX_CHARACTERS = 3000
"""Longer documents are shortened in their middle, unless they are wanted in full."""

# Colours of their own for letters and ground: readable on dark and on light terminals.
_STYLES = {
    "trained": "38;5;16;48;5;157",
    "trained control": "1;38;5;18;48;5;117",
    "control": "38;5;67",
    "cut": "2;9",
    "mark": "2",
    "heading": "1",
    "refused": "1;31",
    "note": "33",
}
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]")
"""Characters that are not seen, or that would steer the terminal."""


@dataclass(frozen=True)
class Brush:
    """How things are shown: with colours or with marks."""

    has_color: bool

    def __call__(self, text: str, style: str) -> str:
        """The text in a style. It is ended before each line break, or terminals paint the rest of the line."""
        if not self.has_color or style not in _STYLES:
            return text
        lines = (f"\x1b[{_STYLES[style]}m{line}\x1b[0m" if line else line for line in text.split("\n"))
        return "\n".join(lines)


def legend(brush: Brush) -> str:
    """How to read what follows."""
    if not brush.has_color:
        return "⟦trained⟧  not trained  ⟦×0.5 trained with this weight⟧  ✂⟨cut off⟩  ↵ line break"
    return "  ".join(
        [
            brush(" trained ", "trained"),
            brush(" trained control token ", "trained control"),
            "not trained",
            brush("control token", "control"),
            brush("cut off", "cut"),
            brush("↵", "mark") + " line break",
        ]
    )


def painted(view: Inspected | Refused, pieces: Sequence[Piece], brush: Brush, *, is_full: bool) -> str:
    """The document with a heading and its notes; for a refused row the reason."""
    if isinstance(view, Refused):
        heading = brush(f"── {view.source} · row {view.row}", "heading")
        return f"{heading}\n{brush('refused:', 'refused')} {visible(view.reason)}\n"
    return "\n".join(
        [brush(_heading(view), "heading"), _body(pieces, brush, is_full).rstrip("\n"), *_remarks(view, brush), ""]
    )


def _heading(view: Inspected) -> str:
    num_tokens = len(view.document)
    kept = f"{len(view.kept):,} of {num_tokens:,} tokens" if view.is_truncated else f"{num_tokens:,} tokens"
    share = view.num_trained_tokens / max(len(view.kept), 1)
    row = f"row {view.row}" + (f", document {view.number}" if view.number else "")
    return f"── {view.source} · {row} · {view.form} · {kept}, {view.num_trained_tokens:,} trained ({share:.0%})"


def _remarks(view: Inspected, brush: Brush) -> Iterator[str]:
    if view.cut:
        yield brush(f"   {view.cut}", "note")
    for note in view.document.notes:
        yield brush(f"   note: {visible(note)}", "note")


def visible(text: str) -> str:
    """The text with a sign for each character that is not seen or would steer the terminal."""
    return _UNSEEN.sub(lambda match: _sign(match[0]), text).replace("\t", "⇥\t")


def _sign(character: str) -> str:
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else f"\\u{code:04x}"


def _body(pieces: Sequence[Piece], brush: Brush, is_full: bool) -> str:
    stretches = _shortened(list(_stretches(pieces, brush)), MAX_CHARACTERS if not is_full else None)
    return "".join(_stretch(stretch, brush) for stretch in stretches)


def _stretches(pieces: Sequence[Piece], brush: Brush) -> Iterator[Piece]:
    """Neighbours that look alike as one piece; brackets go around text and control tokens together."""

    def look(piece: Piece) -> tuple[object, ...]:
        if not piece.is_kept:
            return (False,)
        return (True, piece.is_trained, piece.weight, brush.has_color and piece.is_control)

    for _, group in groupby(pieces, key=look):
        members = list(group)
        yield replace(members[0], text="".join(piece.text for piece in members))


def _shortened(stretches: Sequence[Piece], budget: int | None) -> Iterator[Piece]:
    """The stretches without the middle of what is longer than the budget."""
    total = sum(len(piece.text) for piece in stretches)
    if budget is None or total <= budget:
        yield from stretches
        return
    hidden, position, is_marked = range(budget // 2, total - budget // 2), 0, False
    for piece in stretches:
        start, end = hidden.start - position, hidden.stop - position
        position += len(piece.text)
        head, tail = piece.text[: max(start, 0)], piece.text[max(end, 0) :]
        if start >= len(piece.text) or end <= 0:
            yield piece
            continue
        if head:
            yield replace(piece, text=head)
        if not is_marked:
            left_out = f"\n… {len(hidden):,} characters; --full prints them …\n"
            yield Piece(left_out, piece.index, (), False, 0.0, False, True)
            is_marked = True
        if tail:
            yield replace(piece, text=tail)


def _stretch(piece: Piece, brush: Brush) -> str:
    text = visible(piece.text)
    if not brush.has_color:
        text = text.replace("\n", "↵\n") if piece.ids else text
        if not piece.is_kept:
            return f"✂⟨{text}⟩"
        weight = f"×{piece.weight:g} " if piece.weight != 1.0 else ""
        return f"⟦{weight}{text}⟧" if piece.is_trained else text
    style = "cut"
    if piece.is_kept:
        style = " ".join(
            word for word, holds in (("trained", piece.is_trained), ("control", piece.is_control)) if holds
        )
    weight = brush(f"×{piece.weight:g}", "note") if piece.is_trained and piece.weight != 1.0 else ""
    if not piece.ids:
        return brush(text, "mark")
    mark = brush("↵", "mark") if style != "trained" else brush("↵", "trained")
    return weight + f"{mark}\n".join(brush(line, style) for line in text.split("\n"))
