"""Where a rendered conversation holds what an assistant would have to write: text, before any token.

At inference a model sees the prompt: the messages before its turn, rendered with the generation prompt. It writes
what follows, up to the token that ends its turn. A render of a whole conversation trains a turn exactly if it begins
with that turn's prompt and goes on as the render that ends with the turn does. Templates that rewrite what came
earlier break this for some turns; those are trained in a render that ends earlier, under their own prompt.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sft.errors import MaskError
from sft.formats import Conversation, Message
from sft.templating import ChatTemplate, TemplateError
from sft.tracking import (
    HEADER_FIELDS,
    KINDS,
    MAX_MESSAGES,
    OUTSIDE,
    codes_of,
    held_by,
    is_data,
    lost,
    message_of,
    named_by,
    written,
)

Mismatch = Literal["as_rendered", "unroll", "refuse"]


@dataclass(frozen=True)
class Span:
    """The characters of one assistant turn that are trained: `text[start:end]`."""

    start: int
    end: int
    message: int


@dataclass(frozen=True)
class Rendition:
    """One text to train on."""

    text: str
    origins: str
    """Where each character comes from; see `sft.tracking`."""
    spans: tuple[Span, ...]
    notes: tuple[str, ...] = ()
    num_messages: int = 0
    """It is the render of so many messages of the conversation."""
    prompt_length: int | None = None
    """So many characters are the turn's prompt, and tokenized apart from the rest, as at inference; None: a render."""


@dataclass
class _Render:
    """The render of the first messages of a conversation."""

    text: str
    origins: str
    num_messages: int

    def first(self, *codes: str) -> int | None:
        """Where the first character of one of these origins stands."""
        found = [position for code in codes if (position := self.origins.find(code)) >= 0]
        return min(found, default=None)

    def last(self, *codes: str) -> int | None:
        """Where the last character of one of these origins stands."""
        return max((position for code in codes if (position := self.origins.rfind(code)) >= 0), default=None)


@dataclass
class _Prompt:
    """What the model sees before a turn: the history and, as its end, the generation prompt."""

    text: str
    history_length: int

    @property
    def history(self) -> str:
        return self.text[: self.history_length]

    @property
    def generation_prompt(self) -> str:
        return self.text[self.history_length :]


@dataclass(frozen=True)
class _Placed:
    """A turn in one render."""

    span: Span
    is_exact: bool
    """What stands before it is its prompt."""
    has_history: bool
    """What stands before its header is its prompt's history."""
    has_header: bool
    """Its header is the generation prompt, whole."""
    has_stop: bool


@dataclass(frozen=True)
class ControlTokens:
    """The strings that a tokenizer makes control tokens of."""

    pattern: re.Pattern[str]
    """Finds them; the longest first."""
    ends: frozenset[str]
    """Those that are known to end a turn: the end-of-text token and the model's own list."""
    tags: frozenset[str]
    """Those that mark up what an assistant says, such as `<think>`, in pairs; they end no turn."""


class Turns:
    """Finds the turns of conversations for one template."""

    def __init__(self, template: ChatTemplate, control: ControlTokens) -> None:
        self._template = template
        self._control = replace(control, ends=control.ends | _ends_in_next_header(template, control))

    def renditions(
        self,
        conversation: Conversation,
        wanted: Sequence[int],
        *,
        exact_history: bool = True,
        mismatch: Mismatch = "as_rendered",
    ) -> list[Rendition]:
        """The texts that train the wanted turns, each of them in exactly one.

        Args:
            conversation: its messages, tools and variables.
            wanted: indices of assistant messages.
            exact_history: train turns that the whole render rewrites under their own prompt.
            mismatch: what happens to turns that do not continue their generation prompt.

        Raises:
            MaskError: the template does not render the conversation, leaves out what someone said, or it cannot be
                proven where a turn stands.
        """
        if len(conversation.messages) > MAX_MESSAGES:
            raise MaskError(
                f"the conversation has {len(conversation.messages)} messages; it must have at most {MAX_MESSAGES}."
            )
        return _Analysis(self._template, self._control, conversation).renditions(wanted, exact_history, mismatch)


_PROBE = ("user", "assistant", "user", "assistant")


def _ends_in_next_header(template: ChatTemplate, control: ControlTokens) -> set[str]:
    """The token that ends an assistant's turn where the template writes it before the next user message: what stands
    there and not before the first one."""
    messages = [{"role": role, "content": f"probe{index}"} for index, role in enumerate(_PROBE)]
    try:
        traced = template.trace(messages)
    except TemplateError:
        return set()
    text, origins = str.__str__(traced), traced.origins
    first, second = (
        text[origins.find(written(index)) : origins.find(held_by(index))] if written(index) in origins else ""
        for index in (0, 2)
    )
    before = second.removesuffix(first).strip() if first and second != first and second.endswith(first) else ""
    match = control.pattern.match(before)
    return {match.group()} if match else set()


@dataclass(frozen=True)
class _Choice:
    """How a turn is trained: in which render, where, and what is to be known of it."""

    num_messages: int
    placed: _Placed
    note: str | None = None


class _Analysis:
    """One conversation's renders, each made once."""

    def __init__(self, template: ChatTemplate, control: ControlTokens, conversation: Conversation) -> None:
        self.template = template
        self.control = control
        self.messages: Sequence[Message] = conversation.messages
        self.tools = conversation.tools
        self.variables: Mapping[str, Any] = conversation.template_kwargs
        self._renders: dict[int, _Render] = {}
        self._prompts: dict[int, _Prompt | None] = {}

    def renditions(self, wanted: Sequence[int], exact_history: bool, mismatch: Mismatch) -> list[Rendition]:
        whole = self.render(len(self.messages))
        self._require_all_said(whole)
        together: dict[int, list[_Choice]] = {}
        apart: list[_Choice] = []
        for turn in wanted:
            choice = self._choose(turn, sorted(together, reverse=True), exact_history)
            if choice.note == MISMATCH and mismatch == "refuse":
                raise MaskError(f"messages[{turn}]: {MISMATCH}.")
            if choice.note == UNROLLED or (choice.note == MISMATCH and mismatch == "unroll"):
                apart.append(replace(choice, note=UNROLLED))
            else:
                together.setdefault(choice.num_messages, []).append(choice)
        shared = [self._rendition(self.render(count), choices) for count, choices in sorted(together.items())]
        return [*shared, *map(self._unrolled, apart)]

    def _rendition(self, render: _Render, choices: list[_Choice]) -> Rendition:
        """A render with the turns that are trained in it."""
        notes = {choice.note for choice in choices if choice.note is not None}
        if render.num_messages < len(self.messages):
            notes.add(REWRITTEN)
        notes |= {NO_STOP for choice in choices if not choice.placed.has_stop}
        spans = tuple(choice.placed.span for choice in choices)
        return Rendition(
            render.text, render.origins, spans, (*self._notes(render), *sorted(notes)), render.num_messages
        )

    def _unrolled(self, choice: _Choice) -> Rendition:
        """A turn after its prompt, where no render holds the two together."""
        span = choice.placed.span
        render, prompt = self.render(choice.num_messages), self._prompt_render(span.message)
        notes = [UNROLLED] if choice.placed.has_stop else [UNROLLED, NO_STOP]
        start, end = len(prompt.text), len(prompt.text) + span.end - span.start
        return Rendition(
            prompt.text + render.text[span.start : span.end],
            prompt.origins + render.origins[span.start : span.end],
            (Span(start, end, span.message),),
            (*self._notes(render), *notes),
            span.message,
            start,
        )

    # What the template renders

    def render(self, num_messages: int) -> _Render:
        """The first messages, without a generation prompt."""
        if num_messages not in self._renders:
            traced = self.template.trace(self.messages[:num_messages], self.tools, variables=self.variables)
            self._renders[num_messages] = _Render(str.__str__(traced), traced.origins, num_messages)
        return self._renders[num_messages]

    def _prompt_render(self, turn: int) -> _Render:
        traced = self.template.trace(
            self.messages[:turn], self.tools, add_generation_prompt=True, variables=self.variables
        )
        return _Render(str.__str__(traced), traced.origins, turn)

    def prompt(self, turn: int) -> _Prompt | None:
        """What the model sees before its turn; None if the template renders no such thing."""
        if turn not in self._prompts:
            self._prompts[turn] = self._make_prompt(turn)
        return self._prompts[turn]

    def _make_prompt(self, turn: int) -> _Prompt | None:
        try:
            prompt = self._prompt_render(turn)
        except TemplateError:
            return None
        try:
            history = self.render(turn).text
        except TemplateError:
            history = ""
        if history and prompt.text.startswith(history) and history != prompt.text:
            return _Prompt(prompt.text, len(history))
        # The generation prompt is what the template writes after the last message.
        tail = prompt.origins.rstrip(written(OUTSIDE))
        if not history or len(tail) < len(prompt.text):
            return _Prompt(prompt.text, len(tail))
        return _Prompt(prompt.text, self._boundary(prompt.text, _shared_prefix(prompt.text, history)))

    # Where a turn stands in a render

    def _choose(self, turn: int, used: Sequence[int], exact_history: bool) -> _Choice:
        """The whole render where it is right, then one that other turns are trained in already, then the render that
        ends with the turn, then its prompt and what follows it there."""
        whole = len(self.messages)
        placed = self.place(self.render(whole), turn)
        own = self._own_render(turn)
        if not exact_history or own is None:
            return _Choice(whole, placed, None if placed.is_exact else MISMATCH)
        placed_in_own = placed if turn + 1 == whole else self.place(own, turn)
        inexact: _Choice | None = None
        for count in (whole, *(count for count in used if turn < count < whole)):
            render = self.render(count)
            here = placed if count == whole else self.place(render, turn)
            if not self._goes_on(render, here, own, placed_in_own):
                continue
            if here.is_exact:
                return _Choice(count, here)
            if here.has_history and inexact is None:
                inexact = _Choice(count, here, MISMATCH)
        if placed_in_own.is_exact:
            return _Choice(turn + 1, placed_in_own)
        if placed_in_own.has_header and not placed_in_own.has_history:
            return _Choice(turn + 1, placed_in_own, UNROLLED)
        return inexact or _Choice(turn + 1, placed_in_own, MISMATCH)

    def _own_render(self, turn: int) -> _Render | None:
        try:
            return self.render(turn + 1)
        except TemplateError:
            return None

    @staticmethod
    def _goes_on(render: _Render, here: _Placed, own: _Render, there: _Placed) -> bool:
        """Whether a render has the turn as the render that ends with it has."""
        found = render.text[here.span.start : here.span.end]
        expected = own.text[there.span.start : there.span.end]
        # The end of turn may be written by what follows only.
        return found == expected or (here.has_stop and not there.has_stop and found.startswith(expected))

    def place(self, render: _Render, turn: int) -> _Placed:
        """The turn in a render.

        Raises:
            MaskError: the template leaves the turn out, or weaves it into other text.
        """
        prompt = self.prompt(turn)
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
        return _Placed(Span(start, end, turn), is_exact, has_history, has_header, has_stop)

    def _start(self, render: _Render, turn: int, prompt: _Prompt | None, first: int | None) -> tuple[int, bool]:
        """(where the turn begins, after its header; whether the header is the generation prompt, whole)."""
        text = render.text
        if prompt is None:
            if first is None:
                raise MaskError(f"messages[{turn}]: it cannot be told where this turn, which says nothing, begins.")
            return first, False
        if text.startswith(prompt.text):
            return len(prompt.text), True
        begin = render.first(*codes_of(turn))
        if text.startswith(prompt.history) and prompt.history_length:
            begin = prompt.history_length
        if begin is None:
            raise MaskError(f"messages[{turn}]: the chat template leaves this turn out.")
        header = prompt.generation_prompt
        if text.startswith(header, begin):
            return begin + len(header), True
        limit = len(text) if first is None else first
        shared = _shared_prefix(header, text[begin:limit])
        rest = _MARKUP.match(text, begin + shared, limit)
        if rest is not None:
            # Where the template leaves out a part in the middle, such as an opened think block, the end still stands.
            ends = (end for end in range(rest.end(), rest.start(), -1) if header.endswith(text[rest.start() : end]))
            end = next(ends, rest.start())
            if text[rest.start() : end].strip():
                return end, False
        if first is not None and begin + shared == first:
            # What the turn itself holds may repeat the end of the generation prompt.
            repeated = _MARKUP.match(text, first)
            shared += _shared_prefix(header[shared:], repeated.group() if repeated else "")
        return self._boundary(text, begin + shared, begin), False

    def _boundary(self, text: str, position: int, lowest: int = 0) -> int:
        """The last place up to a position that is not within a control token, a tag or a word."""
        for match in self.control.pattern.finditer(text, max(lowest, position - 100)):
            if match.start() < position < match.end():
                position = match.start()
        while position > lowest and text[position - 1] not in "\n\t >]:}":
            if any(text.endswith(end, 0, position) for end in self.control.ends):
                break
            position -= 1
        return max(position, lowest)

    def _end(self, render: _Render, turn: int, content_end: int) -> tuple[int, bool]:
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
        match = self.control.pattern.match(text, tail_end + blank)
        if match and match.end() <= written_end and match.group() in self.control.ends:
            return match.end(), True
        return content_end + len(text[content_end:tail_end].rstrip()), False

    def _stop(self, text: str, start: int, end: int) -> int | None:
        """The end of the token that ends a turn, in what the template writes after the turn's content: the first that
        is known to end turns, else the last control token that is no tag."""
        found = [match for match in self.control.pattern.finditer(text, start, end) if match.end() <= end]
        for match in found:
            if match.group() in self.control.ends:
                return match.end()
        others = [match for match in found if match.group() not in self.control.tags]
        # What more text follows belongs to the turn itself, such as the end of a call.
        return others[-1].end() if others and not text[others[-1].end() : end].strip() else None

    def _require_only(self, render: _Render, start: int, end: int, turn: int, first: int | None) -> None:
        """Refuses a stretch that holds what somebody else wrote, or leaves out what the turn says."""
        for code in set(render.origins[start:end]):
            if is_data(code) and message_of(code) != turn:
                whose = "a tool's schema" if message_of(code) == OUTSIDE else f"messages[{message_of(code)}]"
                raise MaskError(f"messages[{turn}]: the chat template writes text of {whose} into this turn.")
        if first is not None and first < start and not _MARKUP.fullmatch(render.text, first, start):
            raise MaskError(f"messages[{turn}]: the chat template writes part of this turn before its header.")

    # What the template leaves out

    def _require_all_said(self, whole: _Render) -> None:
        """Refuses a conversation of which the template drops what somebody said."""
        for index, message in enumerate(self.messages):
            is_reply = message["role"] == "assistant"
            shown = (self._own_render(index) or whole) if is_reply else whole
            where = f"messages[{index}]: the chat template leaves out"
            content, calls = message.get("content"), message.get("tool_calls") or ()
            if _said(content) and not self._shows(shown, index, content, is_reply):
                raise MaskError(f"{where} a part of this {message['role']} message.")
            if not all(_count(shown, text) >= times for text, times in Counter(_texts(calls)).items()):
                raise MaskError(f"{where} a part of its tool calls.")

    @staticmethod
    def _shows(shown: _Render, index: int, content: Any, is_reply: bool) -> bool:
        """Whether a message's content stands in a render; of a reply's, reasoning may be left out."""
        if not isinstance(content, str):
            return held_by(index) in shown.origins
        said = content.rpartition("</think>")[2] if is_reply else content
        num_shown = shown.origins.count(held_by(index)) + shown.origins.count(lost(index))
        return num_shown >= len(said.strip()) > 0 or (not said.strip() and num_shown > 0)

    def _notes(self, render: _Render) -> list[str]:
        """What the template adds and leaves out, in words that are the same for like conversations."""
        notes = []
        begin = next((i for i, code in enumerate(render.origins) if code != written(OUTSIDE)), len(render.text))
        added = self.control.pattern.sub("\n", render.text[:begin]).strip()
        if not self.tools and len(added.split()) > 2:
            notes.append(f"the template adds a text of its own: {_shortened(added)!r}")
        names = [str(tool.get("function", tool).get("name")) for tool in self.tools]
        if not all(name in render.text for name in names):
            notes.append("the template does not show the tools")
        for index, message in enumerate(self.messages[: render.num_messages]):
            thought = message["role"] == "assistant" and message.get("reasoning_content")
            if thought and held_by(index, "reasoning") not in render.origins:
                notes.append("the template leaves out reasoning")
                break
        return notes


_MARKUP = re.compile(r"(?:\s|<[^<>]*>|\[/?[A-Z_]+\])+")
"""White space and tags, such as a think block that the generation prompt opens."""

REWRITTEN = "a turn has a document of its own, as the template renders it differently once more turns follow"
NO_STOP = "no stop token ends the turn in this template"
MISMATCH = (
    "what the template renders for the turn does not begin with what it gives as the generation prompt; "
    "trained as rendered"
)
UNROLLED = "a turn is put after its prompt, which the template renders nowhere together with it"


def _texts(value: Any) -> Iterator[str]:
    """The names and texts in tool calls."""
    if isinstance(value, str) and value.strip():
        yield value.strip()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in ("type", *HEADER_FIELDS) or (key == "name" and "arguments" in value):
                yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _count(shown: _Render, text: str) -> int:
    """How often a text of a tool call stands in a render, as it is or as JSON writes it."""
    forms = {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
    return max(shown.text.count(form) for form in forms)


def _shared_prefix(one: str, other: str) -> int:
    """How many characters two texts share from their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def _said(content: Any) -> bool:
    """Whether there is something to see in a message's content."""
    if isinstance(content, str):
        return bool(content.strip())
    return bool(content)


def _shortened(text: str, limit: int = 80) -> str:
    words = " ".join(text.split())
    return words if len(words) <= limit else words[: limit - 1] + "…"
