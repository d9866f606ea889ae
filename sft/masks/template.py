"""Chat templates: conversation → text, as `tokenizer.apply_chat_template` renders it, plain or tracked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from sft.masks.origins import OUTSIDE, held_by
from sft.masks.sandbox import Clock, Sandbox, TemplateError, refusals
from sft.masks.tracked import Tracked
from sft.masks.tracked_sandbox import TrackedSandbox


class ChatTemplate:
    """One chat template with its variables."""

    def __init__(self, source: str, variables: Mapping[str, Any], date: str | None = None) -> None:
        """
        Args:
            source: the template.
            variables: the tokenizer's special tokens and whatever else the template reads.
            date: `YYYY-MM-DD` for templates that ask for today's.

        Raises:
            TemplateError: it is no valid template.
        """
        self.source = source
        self._variables = dict(variables)
        self._clock = Clock(date)
        try:
            self._plain = Sandbox(self._clock).from_string(source)
        except jinja2.exceptions.TemplateError as error:
            raise TemplateError(f"the chat template cannot be read: {error}") from error
        self._tracked: tuple[TrackedSandbox, jinja2.Template] | None = None

    @property
    def has_asked_for_date(self) -> bool:
        """Whether a rendering so far contains the date, so that its tokens change from day to day."""
        return self._clock.was_read

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of the conversation.

        Raises:
            TemplateError: the template raises, or goes over the limits.
        """
        context = {**self._variables, **(variables or {}), "add_generation_prompt": add_generation_prompt}
        with refusals():
            return self._plain.render(messages=prepared(messages), tools=tools or None, documents=None, **context)

    def trace(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> Tracked:
        """The same text with the origin of each character.

        Raises:
            TemplateError: the template raises or goes over the limits, or its tracked text is another one.
        """
        true = self.render(messages, tools, add_generation_prompt=add_generation_prompt, variables=variables)
        if self._tracked is None:
            environment = TrackedSandbox(self._clock)
            template = environment.from_string(self.source)
            template.root_render_func.__globals__["LoopContext"] = environment.loop_context
            self._tracked = environment, template
        environment, template = self._tracked
        tracker = environment.tracker
        tracker.start()
        context = {**self._variables, **(variables or {})}
        with refusals():
            found = template.render(
                messages=tracker.conversation(prepared(messages)),
                tools=tracker.data(list(tools), held_by(OUTSIDE)) if tools else None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{name: tracker.variable(value) for name, value in context.items()},
            )
        if not isinstance(found, Tracked) or str.__ne__(found, true):
            again = self.render(messages, tools, add_generation_prompt=add_generation_prompt, variables=variables)
            if again != true:
                raise TemplateError("the chat template renders the same conversation differently each time.")
            raise TemplateError("the chat template does something to its text that cannot be followed.")
        return found


def prepared(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages as transformers hands them to templates: no null values, reasoning under both of its names."""
    result = []
    for message in messages:
        plain = {key: value for key, value in message.items() if value is not None}
        names = ("reasoning_content", "thinking", "reasoning")
        reasoning = next((plain[name] for name in names if name in plain), None)
        if reasoning is not None:
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        result.append(plain)
    return result
