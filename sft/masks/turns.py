"""Where a rendered conversation holds what an assistant would have to write: text, before any token.

At inference a model sees the prompt: the messages before its turn, rendered with the generation prompt. It writes
what follows, up to the token that ends its turn. A render of a whole conversation trains a turn exactly if it begins
with that turn's prompt and goes on as the render that ends with the turn does. Templates that rewrite what came
earlier break this for some turns; those are trained in a render that ends earlier, under their own prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sft.errors import MaskError
from sft.formats import Conversation
from sft.masks.completeness import notes_of, require_all_said, words_added
from sft.masks.control import ControlTokens
from sft.masks.origins import MAX_MESSAGES, held_by, message_of, written
from sft.masks.placing import Placed, Placing, Span
from sft.masks.renders import Render, Renders
from sft.masks.sandbox import LimitError, TemplateError
from sft.masks.template import ChatTemplate

Mismatch = Literal["as_rendered", "unroll", "refuse"]

REWRITTEN = "a turn has a document of its own, as the template renders it differently once more turns follow"
NO_STOP = "no stop token ends the turn in this template"
STOP_IN_NEXT = "no stop token ends the last turn: the template writes it only before the next message"
NO_PROMPT = "the template has no generation prompt; a turn's header counts as its prompt"
STOP_WITHIN = "a token that seems to end turns stands within one too"
MISMATCH = (
    "what the template renders for the turn does not begin with what it gives as the generation prompt; "
    "trained as rendered"
)
UNROLLED = "a turn is put after its prompt, which the template renders nowhere together with it"


@dataclass(frozen=True)
class Rendition:
    """One text to train on."""

    text: str
    origins: str
    """Where each character comes from; see `sft/masks/origins.py`."""
    spans: tuple[Span, ...]
    notes: tuple[str, ...] = ()
    num_messages: int = 0
    """It is the render of so many messages of the conversation."""
    prompt_length: int | None = None
    """So many characters are the turn's prompt, and tokenized apart from the rest, as at inference; None: a render."""


class Turns:
    """Finds the turns of conversations for one template."""

    def __init__(self, template: ChatTemplate, control: ControlTokens) -> None:
        self._template = template
        self._habits = _habits(template, control)
        self._control = replace(control, learned_ends=self._habits.end_in_next | self._habits.closing_tag)

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
        renders = Renders(self._template, self._control, conversation)
        analysis = _Analysis(renders, self._control, self._habits)
        return analysis.renditions(wanted, exact_history, mismatch)


@dataclass(frozen=True)
class _Habits:
    """What a template does with every conversation, as a made-up one shows it."""

    end_in_next: frozenset[str] = frozenset()
    """The token that ends an assistant's turn where it is written before the next user message: what stands there and
    not before the first one."""
    closing_tag: frozenset[str] = frozenset()
    """The tag that ends an assistant's turn, such as `</turn>`: it stands after a plain content, and no other control
    token does."""
    silent_header: str = ""
    """The header of an assistant's turn in a template whose generation prompt is empty."""


def _habits(template: ChatTemplate, control: ControlTokens) -> _Habits:
    roles = ("user", "assistant", "user", "assistant")
    messages = [{"role": role, "content": f"probe{index}"} for index, role in enumerate(roles)]
    try:
        traced = template.trace(messages)
        generation_prompt = template.render(messages[:1], add_generation_prompt=True) != template.render(messages[:1])
    except LimitError:
        raise  # every row would take as long
    except TemplateError:
        return _Habits()
    text, origins = str.__str__(traced), traced.origins
    headers = [
        text[origins.find(written(index)) : origins.find(held_by(index))]
        if 0 <= origins.find(written(index)) < origins.find(held_by(index))
        else ""
        for index in range(len(roles))
    ]
    first, second = headers[0], headers[2]
    before = second.removesuffix(first).strip() if first and second.endswith(first) else ""
    match = control.pattern.match(before)
    tail_begin = origins.rfind(held_by(1)) + 1
    tail = text[tail_begin : tail_begin + len(origins[tail_begin:]) - len(origins[tail_begin:].lstrip(written(1)))]
    closing = control.pattern.findall(tail)[-1:] if tail_begin else []
    silent_header = headers[1] if not generation_prompt and headers[1].strip() else ""
    return _Habits(
        frozenset([match.group()] if match else []),
        frozenset(closing) & control.tags,
        silent_header,
    )


@dataclass(frozen=True)
class _Choice:
    """How a turn is trained: in which render, where, and what is to be known of it."""

    num_messages: int
    placed: Placed
    note: str | None = None


class _Analysis:
    """One conversation."""

    def __init__(self, renders: Renders, control: ControlTokens, habits: _Habits) -> None:
        self._renders = renders
        self._control = control
        self._habits = habits
        self._placing = Placing(renders, control, habits.silent_header)

    def renditions(self, wanted: Sequence[int], exact_history: bool, mismatch: Mismatch) -> list[Rendition]:
        require_all_said(self._renders)
        together: dict[int, list[_Choice]] = {}
        apart: list[_Choice] = []
        for turn in wanted:
            choice = self._choose(turn, sorted(together, reverse=True), exact_history)
            if choice.placed.end_within is not None:
                what = f"{choice.placed.end_within}, which ends turns, before the end of this turn"
                raise MaskError(f"messages[{turn}]: the chat template writes {what}.")
            if choice.note == MISMATCH and mismatch == "refuse":
                raise MaskError(f"messages[{turn}]: {MISMATCH}.")
            if choice.note == UNROLLED or (choice.note == MISMATCH and mismatch == "unroll"):
                apart.append(replace(choice, note=UNROLLED))
            else:
                together.setdefault(choice.num_messages, []).append(choice)
        shared = [self._rendition(self._renders.render(count), choices) for count, choices in sorted(together.items())]
        return [*shared, *map(self._unrolled, apart)]

    def _rendition(self, render: Render, choices: list[_Choice]) -> Rendition:
        """A render with the turns that are trained in it."""
        notes = {choice.note for choice in choices if choice.note is not None}
        if self._habits.silent_header:
            notes.add(NO_PROMPT)
        if render.num_messages < len(self._renders.messages):
            notes.add(REWRITTEN)
        spans = tuple(choice.placed.span for choice in choices)
        for choice in choices:
            notes |= {*self._stop_note(choice), *words_added(self._renders, render, choice.placed.span, self._control)}
        return Rendition(
            render.text,
            render.origins,
            spans,
            (*notes_of(self._renders, render, self._control), *sorted(notes)),
            render.num_messages,
        )

    def _unrolled(self, choice: _Choice) -> Rendition:
        """A turn after its prompt, where no render holds the two together."""
        span = choice.placed.span
        render, prompt = self._renders.render(choice.num_messages), self._renders.prompt_render(span.message)
        notes = [UNROLLED, *self._stop_note(choice), *words_added(self._renders, render, span, self._control)]
        start, end = len(prompt.text), len(prompt.text) + span.end - span.start
        return Rendition(
            prompt.text + render.text[span.start : span.end],
            prompt.origins + render.origins[span.start : span.end],
            (Span(start, end, span.message),),
            (*notes_of(self._renders, render, self._control), *notes),
            span.message,
            start,
        )

    def _stop_note(self, choice: _Choice) -> list[str]:
        """What is to be known of where a turn stops."""
        if choice.placed.has_stop:
            return [STOP_WITHIN] if choice.placed.repeats_stop else []
        is_last = choice.placed.span.message + 1 == choice.num_messages
        return [STOP_IN_NEXT if is_last and self._habits.end_in_next else NO_STOP]

    def _choose(self, turn: int, used: Sequence[int], exact_history: bool) -> _Choice:
        """The whole render where it is right, then one that other turns are trained in already, then the render that
        ends with the turn, then its prompt and what follows it there."""
        whole = len(self._renders.messages)
        placed = self._placing.place(self._renders.render(whole), turn)
        own = self._renders.own_render(turn)
        if not exact_history or own is None:
            return _Choice(whole, placed, None if placed.is_exact else MISMATCH)
        placed_in_own = placed if turn + 1 == whole else self._placing.place(own, turn)
        inexact: _Choice | None = None
        for count in (whole, *(count for count in used if turn < count < whole)):
            render = self._renders.render(count)
            here = placed if count == whole else self._placing.place(render, turn)
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

    @staticmethod
    def _goes_on(render: Render, here: Placed, own: Render, there: Placed) -> bool:
        """Whether a render has the turn as the render that ends with it has."""
        found = render.text[here.span.start : here.span.end]
        expected = own.text[there.span.start : there.span.end]
        # The end of turn may be written by what follows only.
        return found == expected or (here.has_stop and not there.has_stop and found.startswith(expected))


def everything(template: ChatTemplate, conversation: Conversation) -> Rendition:
    """The whole render, every character of it trained."""
    traced = template.trace(conversation.messages, conversation.tools, variables=conversation.template_kwargs)
    origins = traced.origins
    edges = [i for i in range(len(origins)) if i == 0 or message_of(origins[i]) != message_of(origins[i - 1])]
    spans = (
        Span(start, end, message_of(origins[start]))
        for start, end in zip(edges, [*edges[1:], len(origins)], strict=True)
    )
    return Rendition(str.__str__(traced), origins, tuple(spans), (), len(conversation.messages))


def generation_prompt(template: ChatTemplate, conversation: Conversation) -> Rendition:
    """What a model is given to go on from after these messages; nothing of it is trained."""
    kwargs, messages = conversation.template_kwargs, conversation.messages
    traced = template.trace(messages, conversation.tools, add_generation_prompt=True, variables=kwargs)
    return Rendition(str.__str__(traced), traced.origins, (), (), len(messages))
