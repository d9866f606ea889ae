"""What the template makes of one conversation: renders of its beginnings, and the prompts of its turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft.formats import Conversation, Message
from sft.masks.control import ControlTokens
from sft.masks.origins import OUTSIDE, written
from sft.masks.sandbox import TemplateError
from sft.masks.template import ChatTemplate


@dataclass(frozen=True)
class Render:
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


@dataclass(frozen=True)
class Prompt:
    """What the model sees before a turn: the history and, as its end, the generation prompt."""

    text: str
    history_length: int

    @property
    def history(self) -> str:
        return self.text[: self.history_length]

    @property
    def generation_prompt(self) -> str:
        return self.text[self.history_length :]


class Renders:
    """Each made once."""

    def __init__(self, template: ChatTemplate, control: ControlTokens, conversation: Conversation) -> None:
        self.messages: Sequence[Message] = conversation.messages
        self.tools = conversation.tools
        self._template = template
        self._control = control
        self._variables: Mapping[str, Any] = conversation.template_kwargs
        self._renders: dict[int, Render] = {}
        self._prompts: dict[int, Prompt | None] = {}

    @property
    def whole(self) -> Render:
        """All messages."""
        return self.render(len(self.messages))

    def render(self, num_messages: int) -> Render:
        """The first messages, without a generation prompt."""
        if num_messages not in self._renders:
            self._renders[num_messages] = self._make_render(num_messages)
        return self._renders[num_messages]

    def _make_render(self, num_messages: int) -> Render:
        if num_messages < len(self.messages):
            # Usually the whole begins with it; to follow each beginning would take the square of the number of turns.
            text = self._text(num_messages)
            if self.whole.text.startswith(text):
                return Render(text, self.whole.origins[: len(text)], num_messages)
        traced = self._template.trace(self.messages[:num_messages], self.tools, variables=self._variables)
        return Render(str.__str__(traced), traced.origins, num_messages)

    def prompt_render(self, turn: int) -> Render:
        """The messages before a turn, with the generation prompt."""
        traced = self._template.trace(
            self.messages[:turn], self.tools, add_generation_prompt=True, variables=self._variables
        )
        return Render(str.__str__(traced), traced.origins, turn)

    def prompt(self, turn: int) -> Prompt | None:
        """What the model sees before its turn; None if the template renders no such thing."""
        if turn not in self._prompts:
            self._prompts[turn] = self._make_prompt(turn)
        return self._prompts[turn]

    def _text(self, num_messages: int, *, add_generation_prompt: bool = False) -> str:
        return self._template.render(
            self.messages[:num_messages],
            self.tools,
            add_generation_prompt=add_generation_prompt,
            variables=self._variables,
        )

    def _make_prompt(self, turn: int) -> Prompt | None:
        try:
            text = self._text(turn, add_generation_prompt=True)
        except TemplateError:
            return None
        try:
            history = self._text(turn)
        except TemplateError:
            history = ""
        if history and text.startswith(history) and history != text:
            return Prompt(text, len(history))
        # The generation prompt is what the template writes after the last message.
        tail = self.prompt_render(turn).origins.rstrip(written(OUTSIDE))
        if not history or len(tail) < len(text):
            return Prompt(text, len(tail))
        if history == text:
            return Prompt(text, len(history))
        return Prompt(text, boundary(self._control, text, shared_prefix(text, history)))

    def own_render(self, turn: int) -> Render | None:
        """The conversation up to a turn; None if the template does not render that."""
        try:
            return self.render(turn + 1)
        except TemplateError:
            return None


def boundary(control: ControlTokens, text: str, position: int, lowest: int = 0) -> int:
    """The last place up to a position that is not within a control token, a tag or a word."""
    for match in control.pattern.finditer(text, max(lowest, position - 100)):
        if match.start() < position < match.end():
            position = match.start()
    while position > lowest and text[position - 1] not in "\n\t >]:}":
        if any(text.endswith(end, 0, position) for end in control.ends | control.learned_ends):
            break
        position -= 1
    return max(position, lowest)


def shared_prefix(one: str, other: str) -> int:
    """How many characters two texts share from their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def shared_words(one: str, other: str) -> tuple[int, int]:
    """How many characters of each of two texts agree from their beginning, where white space makes no difference."""
    i, j = 0, 0
    while i < len(one) and j < len(other):
        if one[i] == other[j]:
            i, j = i + 1, j + 1
        elif one[i].isspace():
            i += 1
        elif other[j].isspace():
            j += 1
        else:
            break
    return i, j
