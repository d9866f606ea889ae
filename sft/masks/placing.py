"""Where a turn stands in a render: after its header, up to the token that ends it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sft.errors import MaskError
from sft.masks.control import ControlTokens
from sft.masks.origins import KINDS, OUTSIDE, codes_of, held_by, is_data, lost, message_of, named_by, written
from sft.masks.renders import Prompt, Render, Renders, boundary, shared_prefix

_MARKUP = re.compile(r"(?:\s|<[^<>]*>|\[/?[A-Z_]+\])+")
"""White space and tags, such as a think block that the generation prompt opens."""


@dataclass(frozen=True)
class Span:
    """The characters of one assistant turn that are trained: `text[start:end]`."""

    start: int
    end: int
    message: int


@dataclass(frozen=True)
class Placed:
    """A turn in one render."""

    span: Span
    is_exact: bool
    """What stands before it is its prompt."""
    has_history: bool
    """What stands before its header is its prompt's history."""
    has_header: bool
    """Its header is the generation prompt, whole."""
    has_stop: bool


class Placing:
    """Places the turns of one conversation."""

    def __init__(self, renders: Renders, control: ControlTokens, silent_header: str) -> None:
        """
        Args:
            renders: what the template makes of the conversation.
            control: the control tokens.
            silent_header: the header of a turn, where the template's generation prompt is empty.
        """
        self._renders = renders
        self._control = control
        self._silent_header = silent_header

    def place(self, render: Render, turn: int) -> Placed:
        """The turn in a render.

        Raises:
            MaskError: the template leaves the turn out, or weaves it into other text.
        """
        prompt = self._renders.prompt(turn)
        held = [held_by(turn, kind) for kind in KINDS]
        first = render.first(*held)
        if first is None:
            first = render.first(lost(turn))
        last = render.last(*held, lost(turn))
        is_exact = prompt is not None and render.text.startswith(prompt.text)
        has_history = prompt is not None and render.text.startswith(prompt.history)
        start, has_header = self._start(render, turn, prompt, first)
        content_end = start if last is None else max(start, last + 1)
        end, has_stop = self._end(render, turn, content_end)
        self._require_only(render, start, end, turn, first)
        return Placed(Span(start, end, turn), is_exact, has_history, has_header, has_stop)

    def _start(self, render: Render, turn: int, prompt: Prompt | None, first: int | None) -> tuple[int, bool]:
        """(where the turn begins, after its header; whether the header is the generation prompt, whole)."""
        text = render.text
        if prompt is None:
            if first is None:
                raise MaskError(f"messages[{turn}]: it cannot be told where this turn, which says nothing, begins.")
            return first, False
        if text.startswith(prompt.text):
            start = len(prompt.text)
            if not prompt.generation_prompt and text.startswith(self._silent_header, start):
                start += len(self._silent_header)
            return start, True
        begin = render.first(*codes_of(turn))
        if text.startswith(prompt.history) and prompt.history_length:
            begin = prompt.history_length
        if begin is None:
            raise MaskError(f"messages[{turn}]: the chat template leaves this turn out.")
        if written(turn) not in render.origins and not text.startswith(prompt.history):
            raise MaskError(f"messages[{turn}]: it cannot be told where the header of this turn ends.")
        header = prompt.generation_prompt or self._silent_header
        if text.startswith(header, begin):
            return begin + len(header), True
        limit = len(text) if first is None else first
        cut = boundary(self._control, text, begin + shared_prefix(header, text[begin:limit]), begin)
        rest = _MARKUP.match(text, cut, limit)
        if rest is not None:
            # Where the template leaves out a part in the middle, such as an opened think block, the end still stands.
            ends = (end for end in range(rest.end(), cut, -1) if header.endswith(text[cut:end]))
            end = next(ends, cut)
            if text[cut:end].strip():
                return end, False
        if cut == first:
            # What the turn itself holds may repeat the end of the generation prompt.
            repeated = _MARKUP.match(text, first)
            cut += shared_prefix(header[cut - begin :], repeated.group() if repeated else "")
        return boundary(self._control, text, cut, begin), False

    def _end(self, render: Render, turn: int, content_end: int) -> tuple[int, bool]:
        """(where the turn ends, its stop token included, whether it has one)."""
        text, origins = render.text, render.origins
        own = (written(turn), named_by(turn), lost(turn))
        tail_end = content_end
        while tail_end < len(text) and origins[tail_end] in own:
            tail_end += 1
        written_end = tail_end
        while written_end < len(text) and not is_data(origins[written_end]):
            written_end += 1
        stop = self._stop(text, content_end, tail_end)
        if stop is not None:
            return stop, True
        # Some templates write the end of turn only when they come to the next message, or after the last.
        following = text[tail_end:written_end]
        blank = len(following) - len(following.lstrip())
        match = self._control.pattern.match(text, tail_end + blank)
        if match and match.end() <= written_end and match.group() in self._control.ends:
            return match.end(), True
        return content_end + len(text[content_end:tail_end].rstrip()), False

    def _stop(self, text: str, start: int, end: int) -> int | None:
        """The end of the token that ends a turn, in what the template writes after the turn's content: the first that
        is known to end turns, else the last control token that is no tag."""
        found = [match for match in self._control.pattern.finditer(text, start, end) if match.end() <= end]
        for match in found:
            if match.group() in self._control.ends:
                return match.end()
        others = [match for match in found if match.group() not in self._control.tags]
        # What more text follows belongs to the turn itself, such as the end of a call.
        return others[-1].end() if others and not text[others[-1].end() : end].strip() else None

    def _require_only(self, render: Render, start: int, end: int, turn: int, first: int | None) -> None:
        """Refuses a stretch that holds what somebody else wrote, or leaves out what the turn says."""
        for code in set(render.origins[start:end]):
            if is_data(code) and message_of(code) != turn:
                whose = "a tool's schema" if message_of(code) == OUTSIDE else f"messages[{message_of(code)}]"
                raise MaskError(f"messages[{turn}]: the chat template writes text of {whose} into this turn.")
        if first is not None and first < start and not _MARKUP.fullmatch(render.text, first, start):
            raise MaskError(f"messages[{turn}]: the chat template writes part of this turn before its header.")
