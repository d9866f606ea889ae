"""Where a turn stands in a render: after its header, up to the token that ends it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sft.errors import MaskError
from sft.masks.control import ControlTokens
from sft.masks.origins import (
    KINDS,
    OUTSIDE,
    codes_of,
    held_by,
    is_data,
    is_written,
    lost,
    message_of,
    named_by,
    written,
)
from sft.masks.renders import Prompt, Render, Renders, boundary, shared_prefix, shared_words

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
    end_within: str | None
    """A token that is known to end turns, and stands before the end of this one."""
    repeats_stop: bool
    """A token that seems to end turns stands within it too."""


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
        self._ends = control.ends | control.learned_ends

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
        end, stop = self._end(render, turn, content_end)
        self._require_only(render, start, end, turn, first)
        within = self._written_tokens(render, start, content_end)
        return Placed(
            Span(start, end, turn),
            is_exact,
            has_history,
            has_header,
            stop is not None,
            min(within & self._control.ends, default=None),
            bool(within & (self._control.learned_ends | {stop})),
        )

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
        return self._after_shared(render, turn, header, begin, first), False

    def _after_shared(self, render: Render, turn: int, header: str, begin: int, first: int | None) -> int:
        """Where the turn begins whose header, from `begin`, is not the generation prompt `header`: after what the two
        have in common."""
        text = render.text
        limit = len(text) if first is None else first
        num_header, num_text = shared_words(header, text[begin:limit])
        cut = begin + num_text
        named = render.origins.rfind(named_by(turn), cut, limit)
        if named >= 0:
            # A name that the generation prompt does not have; what follows it there follows it here.
            remainder = header[num_header:].strip()
            after = text.find(remainder, named + 1, limit)
            cut, num_header = (after + len(remainder), len(header)) if after >= 0 else (named + 1, num_header)
        if header.strip() and not header[num_header:].strip():
            # The two differ by the name or by white space only.
            while cut < limit and text[cut].isspace() and render.origins[cut] == written(turn):
                cut += 1
            return cut
        if named >= 0:
            return cut
        if header[num_header : num_header + 1].strip() or text[cut : min(cut + 1, limit)].strip():
            cut = boundary(self._control, text, cut, begin)
        rest = _MARKUP.match(text, cut, limit)
        if rest is not None:
            # Where the template leaves out a part in the middle, such as an opened think block, the end still stands.
            ends = (end for end in range(rest.end(), cut, -1) if header.endswith(text[cut:end]))
            end = next(ends, cut)
            if text[cut:end].strip():
                return end
        if cut == first:
            # What the turn itself holds may repeat the end of the generation prompt.
            repeated = _MARKUP.match(text, first)
            more = shared_prefix(header[num_header:], repeated.group() if repeated else "")
            cut = boundary(self._control, text, cut + more, begin) if more else cut
        return cut

    def _end(self, render: Render, turn: int, content_end: int) -> tuple[int, str | None]:
        """(where the turn ends, its stop token included; that token, None if there is none)."""
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
            return stop.end(), stop.group()
        # Some templates write the end of turn only when they come to the next message, or after the last.
        following = text[tail_end:written_end]
        blank = len(following) - len(following.lstrip())
        match = self._control.pattern.match(text, tail_end + blank)
        if match and match.end() <= written_end and match.group() in self._ends:
            return match.end(), match.group()
        return content_end + len(text[content_end:tail_end].rstrip()), None

    def _stop(self, text: str, start: int, end: int) -> re.Match[str] | None:
        """The token that ends a turn, in what the template writes after the turn's content: the first that is known to
        end turns, else the last control token that is no tag, where it stands first: there the model would stop."""
        found = [match for match in self._control.pattern.finditer(text, start, end) if match.end() <= end]
        for match in found:
            if match.group() in self._ends:
                return match
        others = [match for match in found if match.group() not in self._control.tags]
        # What more text follows belongs to the turn itself, such as the end of a call.
        if not others or text[others[-1].end() : end].strip():
            return None
        return next(match for match in others if match.group() == others[-1].group())

    def _written_tokens(self, render: Render, start: int, end: int) -> set[str]:
        """The control tokens that the template itself writes in a stretch."""
        found = self._control.pattern.finditer(render.text, start, end)
        return {match.group() for match in found if all(map(is_written, render.origins[match.start() : match.end()]))}

    def _require_only(self, render: Render, start: int, end: int, turn: int, first: int | None) -> None:
        """Refuses a stretch that holds what somebody else wrote, or leaves out what the turn says."""
        for code in set(render.origins[start:end]):
            if is_data(code) and message_of(code) != turn:
                whose = "a tool's schema" if message_of(code) == OUTSIDE else f"messages[{message_of(code)}]"
                raise MaskError(f"messages[{turn}]: the chat template writes text of {whose} into this turn.")
        if first is not None and first < start and not _MARKUP.fullmatch(render.text, first, start):
            raise MaskError(f"messages[{turn}]: the chat template writes part of this turn before its header.")
