"""Where a rendered conversation holds what an assistant would have to write: text, before any token.

At inference a model sees the prompt: the messages before its turn, rendered with the generation prompt. It writes
what follows, up to the token that ends its turn. A render of a whole conversation trains a turn exactly if it begins
with that turn's prompt and goes on as the render that ends with the turn does. Templates that rewrite what came
earlier break this for some turns; those are trained in a render that ends earlier, under their own prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sft.errors import MaskError
from sft.formats import Conversation, Message
from sft.templating import ChatTemplate, TemplateError
from sft.tracking import KINDS, MAX_MESSAGES, OUTSIDE, codes_of, held_by, is_data, lost, message_of, named_by, written

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
        chosen: dict[int, list[tuple[_Placed, str | None]]] = {}
        for turn in wanted:
            num_messages, placed, note = self._choose(turn, sorted(chosen, reverse=True), exact_history)
            if note is not None and mismatch == "refuse":
                raise MaskError(f"messages[{turn}]: {note}")
            chosen.setdefault(num_messages, []).append((placed, note))
        result = []
        for num_messages in sorted(chosen):
            result += self._documents(self.render(num_messages), chosen[num_messages], mismatch)
        return result

    def _documents(
        self, render: _Render, turns: list[tuple[_Placed, str | None]], mismatch: Mismatch
    ) -> list[Rendition]:
        """A rendition for the turns that share a render, and one for each that is put under its own prompt."""
        together = [(placed, note) for placed, note in turns if note is None or mismatch != "unroll"]
        apart = [placed for placed, note in turns if note is not None and mismatch == "unroll"]
        result = []
        if together:
            notes = {note for _, note in together if note is not None}
            if render.num_messages < len(self.messages):
                notes.add(REWRITTEN)
            notes |= {NO_STOP for placed, _ in together if not placed.has_stop}
            spans = tuple(placed.span for placed, _ in together)
            result.append(
                Rendition(
                    render.text, render.origins, spans, (*self._notes(render), *sorted(notes)), render.num_messages
                )
            )
        for placed in apart:
            prompt = self.prompt(placed.span.message)
            assert prompt is not None
            start, end, message = placed.span.start, placed.span.end, placed.span.message
            prompt_render = self._prompt_render(message)
            size = len(prompt.text)
            notes = {UNROLLED} if placed.has_stop else {UNROLLED, NO_STOP}
            result.append(
                Rendition(
                    prompt.text + render.text[start:end],
                    prompt_render.origins + render.origins[start:end],
                    (Span(size, size + end - start, message),),
                    (*self._notes(render), *sorted(notes)),
                    message,
                )
            )
        return result

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

    def _choose(self, turn: int, used: Sequence[int], exact_history: bool) -> tuple[int, _Placed, str | None]:
        """(number of messages of the render that trains the turn, the turn in it, what is not exact about it).

        The whole render is taken where it is right, then one that other turns are trained in already, then the render
        that ends with the turn.
        """
        whole = len(self.messages)
        placed = self.place(self.render(whole), turn)
        if not exact_history:
            return whole, placed, None if placed.is_exact else MISMATCH
        own = self._own_render(turn)
        if own is None:
            return whole, placed, None if placed.is_exact else MISMATCH
        placed_in_own = placed if turn + 1 == whole else self.place(own, turn)
        candidates = [whole, *(count for count in used if turn < count < whole)]
        inexact: tuple[int, _Placed] | None = None
        for count in candidates:
            render = self.render(count)
            here = placed if count == whole else self.place(render, turn)
            goes_on = self._goes_on(render, here, own, placed_in_own)
            if here.is_exact and goes_on:
                return count, here, None
            if here.has_history and goes_on and inexact is None:
                inexact = count, here
        if placed_in_own.is_exact:
            return turn + 1, placed_in_own, None
        return (*(inexact or (turn + 1, placed_in_own)), MISMATCH)

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
        start = len(prompt.text) if prompt is not None and is_exact else self._start(render, turn, prompt, first)
        content_end = start if last is None else max(start, last + 1)
        end, has_stop = self._end(render, turn, content_end)
        self._require_only(render, start, end, turn, first, is_exact)
        return _Placed(Span(start, end, turn), is_exact, has_history, has_stop)

    def _start(self, render: _Render, turn: int, prompt: _Prompt | None, first: int | None) -> int:
        """Where the turn begins in a render that does not begin with its prompt: after its header, which is as much of
        the generation prompt as stands there."""
        begin = render.first(*codes_of(turn))
        if prompt is not None and render.text.startswith(prompt.history) and prompt.history_length:
            begin = prompt.history_length
        if begin is None:
            raise MaskError(f"messages[{turn}]: the chat template leaves this turn out.")
        if prompt is None:
            if first is None:
                raise MaskError(f"messages[{turn}]: it cannot be told where this turn, which says nothing, begins.")
            return first
        header = prompt.generation_prompt
        if render.text.startswith(header, begin):
            return begin + len(header)
        limit = len(render.text) if first is None else first
        shared = _shared_prefix(header, render.text[begin:limit])
        return self._boundary(render.text, begin + shared, begin)

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

    def _require_only(
        self, render: _Render, start: int, end: int, turn: int, first: int | None, is_exact: bool
    ) -> None:
        """Refuses a stretch that holds what somebody else wrote, or leaves out what the turn holds."""
        for code in set(render.origins[start:end]):
            if is_data(code) and message_of(code) != turn:
                whose = "a tool's schema" if message_of(code) == OUTSIDE else f"messages[{message_of(code)}]"
                raise MaskError(f"messages[{turn}]: the chat template writes text of {whose} into this turn.")
        if first is not None and first < start and not is_exact:
            raise MaskError(f"messages[{turn}]: the chat template writes part of this turn before its header.")

    # What the template leaves out

    def _require_all_said(self, whole: _Render) -> None:
        """Refuses a conversation of which the template drops what somebody said."""
        for index, message in enumerate(self.messages):
            shown = whole if message["role"] != "assistant" else self._own_render(index) or whole
            lost_characters = shown.origins.count(lost(index))
            for kind, said in (("content", _said(message.get("content"))), ("call", bool(message.get("tool_calls")))):
                if said and not shown.origins.count(held_by(index, kind)) and not lost_characters:
                    what = "tool calls" if kind == "call" else "content"
                    raise MaskError(
                        f"messages[{index}]: the chat template leaves out the {what} of this {message['role']} message."
                    )
            content = message.get("content")
            is_plain = isinstance(content, str) and message["role"] != "assistant" and not lost_characters
            if is_plain and shown.origins.count(held_by(index)) < len(str(content).strip()):
                raise MaskError(f"messages[{index}]: the chat template leaves out a part of this message.")

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


REWRITTEN = "a turn has a document of its own, as the template renders it differently once more turns follow"
NO_STOP = "no stop token ends the turn in this template"
MISMATCH = (
    "what the template renders for the turn does not begin with what it gives as the generation prompt; "
    "trained as rendered"
)
UNROLLED = "put under the generation prompt, which the template does not render before the turn"


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
