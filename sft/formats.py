"""Rows of files → Conversation: the one type that everything behind it works on. Pure.

Each row decides for itself which form it has; docs/data-formats.md lists the forms.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sft.errors import DataError
from sft.messages import read_message, read_tools, read_weight
from sft.setting_rules import COLUMNS
from sft.values import check_text, check_texts, kind, parsed, shown

Message = Mapping[str, Any]
"""One turn as chat templates take it: `{"role": …, "content": …}` and whatever else the template reads."""

_RESERVED_KWARGS = ("messages", "tools", "add_generation_prompt", "chat_template", "tokenize", "return_tensors")


@dataclass(frozen=True)
class Conversation:
    """The turns of one row, and where they stand."""

    messages: tuple[Message, ...]
    source: str
    """`train.jsonl:17`, for messages to people."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Function schemas, as the template's `tools`."""
    weights: tuple[float, ...] = ()
    """Loss weight of each message's tokens, the row's own weight multiplied in; 0 for a turn that is not to be trained;
    none: 1 for every message."""
    format: str = "messages"
    """Which form the row had: `messages`, `sharegpt`, `prompt/response`, …"""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """The row's own variables for the chat template."""


Turn = tuple[dict[str, Any], float | None]
"""A message, and the weight that it states itself."""


class Columns:
    """What our columns are called in a source."""

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        """
        Args:
            names: our column → the source's, for those that have another name there.
        """
        self.mapped = dict(names or {})
        self._ours = {ours: ours for ours in COLUMNS if ours not in self.mapped}
        self._ours.update({name: ours for ours, name in self.mapped.items()})

    def of(self, row: Mapping[str, Any]) -> _Row:
        """The row's values that are not null, under our names."""
        ours = self._ours
        return _Row(row, self, {ours[key]: value for key, value in row.items() if key in ours and value is not None})

    def name(self, ours: str) -> str:
        """What the source calls one of our columns."""
        return self.mapped.get(ours, ours)


@dataclass(slots=True)
class _Row:
    row: Mapping[str, Any]
    columns: Columns
    given: Mapping[str, Any]
    """Our columns that are not null."""

    def name(self, ours: str) -> str:
        return f"`{self.columns.name(ours)}`"

    def text(self, ours: str) -> str:
        value = self.given[ours]
        if not isinstance(value, str):
            raise DataError(f"{self.name(ours)} is {kind(value)}; it must be text.")
        if not value.isascii():
            check_text(value, self.name(ours))
        return value


_OUR_NAMES = Columns()


def conversation(row: Any, source: str, columns: Columns = _OUR_NAMES) -> Conversation:
    """The conversation of one row.

    Args:
        row: what the file holds at that place.
        source: where that is.
        columns: what the row calls our columns.

    Raises:
        DataError: the row is none, with the reason (without the source).
    """
    if not isinstance(row, Mapping):
        raise DataError(f"the row is {kind(row)}; it must be an object with named columns.")
    try:
        return _conversation(columns.of(row), source)
    except RecursionError:
        raise DataError("the row is nested too deeply.") from None


def _conversation(row: _Row, source: str) -> Conversation:
    form = _form(row)
    turns = _FORMS[form](row)
    if "system" in row.given:
        turns = _with_system(row, turns)
    messages = tuple([message for message, _ in turns])
    weights = _weights(row, turns)
    _check(messages, weights)
    return Conversation(
        messages,
        source,
        tools=read_tools(row.given["tools"]) if "tools" in row.given else (),
        weights=weights,
        format=_name(form, row),
        template_kwargs=_template_kwargs(row) if "chat_template_kwargs" in row.given else {},
    )


def _form(row: _Row) -> tuple[str, ...]:
    """The form of a row: the one that it has all columns of."""
    complete = _complete_forms(frozenset(row.given))
    if len(complete) > 1:  # what `columns` names is what is meant
        complete = [form for form in complete if any(ours in row.columns.mapped for ours in form)] or complete
    if len(complete) > 1:
        found = " or ".join(f"`{'/'.join(map(row.columns.name, form))}`" for form in complete)
        first = ", ".join(f"{ours}: {row.columns.name(ours)}" for ours in complete[0])
        raise DataError(f"the row can be read as {found}; it must be one of them. Say which: columns: {{{first}}}.")
    if not complete:
        raise DataError(_why_no_form(row))
    return complete[0]


def _name(form: tuple[str, ...], row: _Row) -> str:
    if len(form) == 2:
        return "alpaca" if form[0] == "instruction" else "/".join(form)
    turns = row.given[form[0]]
    return "sharegpt" if isinstance(turns, list) and turns[0].get("from") is not None else "messages"


@functools.lru_cache(maxsize=1000)
def _complete_forms(given: frozenset[str]) -> list[tuple[str, ...]]:
    return [form for form in _FORMS if given.issuperset(form)]


def _why_no_form(row: _Row) -> str:
    found = ", ".join(f"{key} (null)" if value is None else str(key) for key, value in row.row.items()) or "none"
    needed = {ours for form in _FORMS for ours in form}
    mapped = row.columns.mapped.items()
    if lost := [f"{ours}: {name}" for ours, name in mapped if ours in needed and name not in row.row]:
        return f"columns says {{{', '.join(lost)}}}, which the row does not have; it has the columns {found}."
    for form in _FORMS:
        missing = [ours for ours in form if ours not in row.given]
        if len(form) == 2 and len(missing) == 1 and row.columns.name(missing[0]) in row.row:
            return f"{row.name(missing[0])} is null; it must be text."
    if row.row.get("text") is not None:
        return "the row has only a `text`, which does not say who speaks; it must hold turns. Split it into `messages`."
    lists = [str(key) for key, value in row.row.items() if isinstance(value, list) and value]
    mapping = f"messages: {lists[0]}" if len(lists) == 1 else "prompt: …, response: …"
    return (
        "the row needs `messages`, or `prompt` and `response`, or another form of docs/data-formats.md; "
        f"it has the columns {found}. Map yours with columns: {{{mapping}}}."
    )


def _turns(row: _Row, ours: str) -> list[Turn]:
    value, name = row.given[ours], row.columns.name(ours)
    value = parsed(value, f"`{name}`") if isinstance(value, str) else value
    if not isinstance(value, list) or not value:
        stated = "an empty list" if isinstance(value, list) else kind(value)
        raise DataError(f"`{name}` is {stated}; `{name}` must be a list with at least one message.")
    return [read_message(message, f"{name}[{index}]") for index, message in enumerate(value)]


def _pair(row: _Row, question: str, answer: str) -> list[Turn]:
    """The prompt is a user's text, or messages, whose assistant turns are trained only where they say so."""
    asked = _turns(row, question) if isinstance(row.given[question], list) else [_said("user", row, question)]
    answered = _turns(row, answer) if isinstance(row.given[answer], list) else [_said("assistant", row, answer)]
    untrained = [(m, 0.0 if weight is None and m["role"] == "assistant" else weight) for m, weight in asked]
    return untrained + answered


def _said(role: str, row: _Row, ours: str) -> Turn:
    return {"role": role, "content": row.text(ours)}, None


def _alpaca(row: _Row) -> list[Turn]:
    """`instruction` and `input`, an empty line between them, → `output`; earlier pairs in `history`."""
    history = row.given.get("history", [])
    history = parsed(history or "[]", row.name("history")) if isinstance(history, str) else history
    is_pairs = isinstance(history, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in history
    )
    if not is_pairs:
        raise DataError(f"{row.name('history')} is {kind(history)}; it must be a list of pairs [question, answer].")
    check_texts(history, row.name("history"))
    earlier: list[Turn] = [
        ({"role": role, "content": text}, None)
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    parts = [row.text(ours) for ours in ("instruction", "input") if ours in row.given]
    prompt = "\n\n".join(part for part in parts if part.strip())
    if not prompt:
        raise DataError(f"{row.name('instruction')} is empty; it must hold text.")
    return [*earlier, ({"role": "user", "content": prompt}, None), _said("assistant", row, "output")]


_FORMS: dict[tuple[str, ...], Callable[[_Row], list[Turn]]] = {
    ("messages",): lambda row: _turns(row, "messages"),
    ("conversations",): lambda row: _turns(row, "conversations"),
    ("prompt", "response"): lambda row: _pair(row, "prompt", "response"),
    ("prompt", "completion"): lambda row: _pair(row, "prompt", "completion"),
    ("question", "answer"): lambda row: _pair(row, "question", "answer"),
    ("instruction", "output"): _alpaca,
}
"""The columns that a form must have → how its turns are read."""


def _with_system(row: _Row, turns: list[Turn]) -> list[Turn]:
    """The turns behind the system prompt of the row's `system` column; an empty one stays one."""
    text = row.text("system")
    if turns[0][0]["role"] == "system":
        if text not in ("", turns[0][0]["content"]):
            raise DataError(f"the row has {row.name('system')} and a first message with the role `system`. Keep one.")
        return turns
    return [({"role": "system", "content": text}, None), *turns]


def _weights(row: _Row, turns: list[Turn]) -> tuple[float, ...]:
    """The weight of each message; none if all are 1."""
    of_row = read_weight(row.given["weight"], row.name("weight")) if "weight" in row.given else None
    stated = [1.0 if weight is None else weight for _, weight in turns]
    weights = tuple(stated if of_row is None else [weight * of_row for weight in stated])
    if math.inf in weights:
        raise DataError("the row's weight times a message's is too large a number.")
    return () if weights.count(1.0) == len(weights) else weights


def _check(messages: tuple[Message, ...], weights: tuple[float, ...]) -> None:
    """What no chat template can make sense of, and what would train nothing or an empty answer."""
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise DataError("no message has the role `assistant`: there is nothing to train on.")
    if weights and not any(weight for role, weight in zip(roles, weights, strict=True) if role == "assistant"):
        raise DataError("every assistant turn has weight 0: there is nothing to train on. Take the row out.")
    before = ""
    for index, role in enumerate(roles):
        if role == "assistant":
            if not _says_something(messages[index]) and (not weights or weights[index]):
                what = "only white space" if messages[index]["content"] else "empty"
                raise DataError(
                    f"messages[{index}] is an assistant turn that is {what}; it must hold text, reasoning or a call. "
                    "Take it out, or give it weight 0."
                )
        elif role == "tool" and before not in ("assistant", "tool"):
            raise DataError(f"messages[{index}] is a tool result; it must follow an assistant's turn, which called it.")
        elif role == before == "system":
            raise DataError(f"messages[{index}] is a second system message in a row. Join the two.")
        before = role


def _says_something(message: Message) -> bool:
    texts = (message["content"], message.get("reasoning_content", ""))
    return "tool_calls" in message or any(text and not text.isspace() for text in texts)


def _template_kwargs(row: _Row) -> dict[str, Any]:
    name, value = row.name("chat_template_kwargs"), row.given["chat_template_kwargs"]
    value = parsed(value or "{}", name) if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        raise DataError(f"{name} is {kind(value)}; it must be an object of the template's variables.")
    if taken := [key for key in _RESERVED_KWARGS if key in value]:
        raise DataError(f"{name} sets {shown(taken[0])}, which is the trainer's own. Take it out.")
    check_texts(value, name)
    return {key: item for key, item in value.items() if item is not None}


def with_contents(conversation: Conversation) -> Conversation:
    """The conversation with an empty content in messages without one."""
    if all(message.get("content") is not None for message in conversation.messages):
        return conversation
    filled = (
        {**message, "content": ""} if message.get("content") is None else message for message in conversation.messages
    )
    return replace(conversation, messages=tuple(filled))


def with_system_prompt(conversation: Conversation, prompt: str | None) -> Conversation:
    """The conversation with this system message instead of its own; with none for an empty one; as it is for None."""
    if prompt is None:
        return conversation
    keep = [index for index, message in enumerate(conversation.messages) if message["role"] != "system"]
    messages = [conversation.messages[index] for index in keep]
    weights = [conversation.weights[index] for index in keep] if conversation.weights else []
    if prompt:
        messages.insert(0, {"role": "system", "content": prompt})
        weights = [0.0, *weights] if weights else []
    return replace(conversation, messages=tuple(messages), weights=tuple(weights))
