"""One message, in any spelling that data has → the message that chat templates take, and its loss weight. Pure."""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Mapping
from typing import Any

from sft.errors import DataError
from sft.values import check_text, check_texts, kind, parsed, shown

_CALL = "function_call"
ROLES = {
    "system": "system",
    "developer": "developer",
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "claude", "bot", "model", "ai"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "tool_response", "ipython"), "tool"),
    **dict.fromkeys((_CALL, "tool_call"), _CALL),
}
"""Spelling of a role → our role; `function_call` is an assistant turn whose text is the call."""

_PLAIN_ROLES = frozenset(ROLES.values()) - {_CALL}
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_FLAG_KEYS = ("train", "training")
_WEIGHT_KEYS = ("weight", "loss_weight")
_OWN_KEYS = frozenset(
    ("role", "from", "content", "value", "tool_calls", "function_call", *_REASONING_KEYS, *_FLAG_KEYS, *_WEIGHT_KEYS)
)
_TEXT, _REASONING, _TOOL_CALL = range(1, 4)
_PARTS = {
    **dict.fromkeys(("reasoning", "thinking"), _REASONING),
    **dict.fromkeys(("text", "input_text", "output_text"), _TEXT),
    **dict.fromkeys(("tool_call", "tool_use", "function_call"), _TOOL_CALL),
}
"""`type` of a content part → what it is."""
_PART_ORDER = (_REASONING, _TEXT, _TOOL_CALL)


def read_message(value: Any, where: str) -> tuple[dict[str, Any], float | None]:
    """The message as templates take it, and the weight that it states itself (0 for `train: false`).

    `content` is always text (empty for a turn that is only a call); `reasoning_content` and `tool_calls` are there
    where the turn has them. Other keys that are not null stay, for templates that read them.

    Args:
        value: an object with `role` and `content`, or `from` and `value`.
        where: what messages call it: `messages[3]`.

    Raises:
        DataError: it is no message, with the reason.
    """
    if not isinstance(value, Mapping):
        raise DataError(f"{where} is {kind(value)}; it must be an object with a `role` and a `content`.")
    if len(value) == 2 and (plain := _plain(value, where)):  # what nearly all messages are
        return plain, None
    given = {key: item for key, item in value.items() if item is not None}
    role = _role(value, given, where)
    spelt = ("content", "value") if "from" not in given else ("value", "content")
    key = next((key for key in spelt if key in given), spelt[0])
    content, reasoning, calls = given.get(key), _reasoning(given, where), _stated_calls(given, where)
    if role == _CALL:
        role, content, calls = "assistant", "", calls + read_calls(content, f"{where}.{key}")
    elif isinstance(content, list):
        content, thoughts, more_calls = _joined_parts(content, f"{where}.{key}")
        reasoning, calls = _one_of({reasoning, thoughts} - {""}, f"{where} has reasoning"), calls + more_calls
    if role == "assistant":
        content = "" if content is None else content
    elif reasoning or calls:
        what = "reasoning" if reasoning else "tool calls"
        raise DataError(f"{where} has the role `{role}` and {what}; only an assistant's turn has those.")
    if not isinstance(content, str):
        stated = "missing" if content is None and key not in value else kind(content)
        remedy = " Write it as JSON text." if isinstance(content, Mapping) else ""
        raise DataError(f"{where}.{key} is {stated}; it must be text.{remedy}")
    check_text(content, f"{where}.{key}")
    check_text(reasoning, f"{where}'s reasoning")
    message: dict[str, Any] = {"role": role, "content": content}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    more = {name: item for name, item in given.items() if name not in _OWN_KEYS}
    for name in more:
        _require_no_slip(name, where)
    check_texts(more, where)
    return {**message, **more}, _weight(given, where)


@functools.lru_cache(maxsize=1024)
def _require_no_slip(name: str, where: str) -> None:
    """Refuses a key that is nearly one of those which say what is trained."""
    meant = difflib.get_close_matches(name.lower(), (*_FLAG_KEYS, *_WEIGHT_KEYS), n=1, cutoff=0.75)
    if meant:
        raise DataError(f"{where}.{name} is not known; it must be {meant[0]}, or another name that is not so near.")


def _plain(value: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """The message if it is nothing but a role of ours and text."""
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or role not in _PLAIN_ROLES or not isinstance(content, str):
        return None
    if not content.isascii():
        check_text(content, f"{where}.content")
    return {"role": role, "content": content}


def _role(value: Mapping[str, Any], given: Mapping[str, Any], where: str) -> str:
    key = "role" if "role" in given or "from" not in given else "from"
    stated = given.get(key)
    if not isinstance(stated, str):
        what = f"has no `{key}`" if key not in value else f"has a `{key}` that is {kind(stated)}"
        raise DataError(f"{where} {what}; it must be an object with a `role` that is text.")
    role = ROLES.get(stated) or ROLES.get(stated.strip().lower())
    if role is None:
        known = ", ".join(sorted({role for role in ROLES.values() if role != _CALL}))
        raise DataError(f"{where}.{key} is {shown(stated)}; it must be one of {known}, or another name of these.")
    return role


def _reasoning(given: Mapping[str, Any], where: str) -> str:
    found = set()
    for key in _REASONING_KEYS:
        text = given.get(key, "")
        if not isinstance(text, str):
            raise DataError(f"{where}.{key} is {kind(text)}; it must be text.")
        found.add(text)
    return _one_of(found - {""}, f"{where} has reasoning")


def _one_of(texts: set[str], what: str) -> str:
    if len(texts) > 1:
        raise DataError(f"{what} in two places with different text. Keep one.")
    return next(iter(texts), "")


def _joined_parts(parts: list[Any], where: str) -> tuple[str, str, list[dict[str, Any]]]:
    """(text, reasoning, calls) of content that is a list of parts."""
    texts: dict[int, list[str]] = {_TEXT: [], _REASONING: []}
    calls: list[dict[str, Any]] = []
    reached = 0
    for index, stated in enumerate(parts):
        here = f"{where}[{index}]"
        part = {"type": "text", "text": stated} if isinstance(stated, str) else stated
        if not isinstance(part, Mapping):
            raise DataError(f"{here} is {kind(part)}; a content part must be an object with a `type`.")
        given = {key: item for key, item in part.items() if item is not None}
        what = _PARTS.get(given.get("type", "")) if isinstance(given.get("type", ""), str) else None
        if what is None:
            found = shown(given["type"]) if "type" in given else "missing"
            raise DataError(f"{here}.type is {found}; it must be one of {', '.join(_PARTS)}: this trainer is for text.")
        if what == _TOOL_CALL:
            call = next((given[key] for key in ("value", "tool_call", "content", "text") if key in given), given)
            calls += read_calls(call, here)
        else:
            text = next(
                (given[key] for key in ("text", "value", "content", "thinking", "reasoning") if key in given), None
            )
            if not isinstance(text, str):
                raise DataError(f"{here} has no text: it is {kind(text)}; it must be text.")
            texts[what].append(text)
            if not text:
                continue
        if _PART_ORDER.index(what) < reached:
            raise DataError(
                f"{here} stands too late; a turn is reasoning, then text, then calls. Split the message there."
            )
        reached = _PART_ORDER.index(what)
    return "".join(texts[_TEXT]), "".join(texts[_REASONING]), calls


def _stated_calls(given: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    return [
        call
        for key in ("tool_calls", "function_call")
        if key in given
        for call in read_calls(given[key], f"{where}.{key}")
    ]


def read_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls as templates take them, `{"type": "function", "function": {"name": …, "arguments": {…}}}`.

    Args:
        value: one call or a list of them, with or without `function` around it, or either as JSON text.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(value, str):
        value = parsed(value, where) if value.strip() else []
    if isinstance(value, Mapping):
        return [_call(value, where)]
    if not isinstance(value, list):
        raise DataError(f"{where} is {kind(value)}; it must be a call {{name, arguments}} or a list of calls.")
    return [_call(call, f"{where}[{index}]") for index, call in enumerate(value)]


def _call(value: Any, where: str) -> dict[str, Any]:
    value = parsed(value, where) if isinstance(value, str) else value
    function = value.get("function") or value if isinstance(value, Mapping) else value
    function = parsed(function, f"{where}.function") if isinstance(function, str) else function
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"].strip():
        what = "has no name" if isinstance(function, Mapping) else f"is {kind(function)}"
        raise DataError(f"{where} {what}; a call must be an object with the function's `name` and its `arguments`.")
    key = next((key for key in ("arguments", "parameters", "input") if function.get(key) is not None), "arguments")
    arguments = function.get(key)
    if isinstance(arguments, str):
        arguments = parsed(arguments, f"{where}.{key}") if arguments.strip() else None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise DataError(f"{where}.{key} is {kind(arguments)}; it must be an object, or an object as JSON text.")
    read = {"name": function["name"], "arguments": dict(arguments)}
    if function is value:
        call: dict[str, Any] = {"type": "function"}
        if isinstance(value.get("id"), str):
            call["id"] = value["id"]
        call["function"] = read
    else:
        # All of it and in its order, as templates see it that write the whole call.
        call = {name: item for name, item in value.items() if item is not None}
        call.setdefault("type", "function")
        call["function"] = {"arguments" if name == key else name: item for name, item in function.items()} | read
    check_texts(call, where)
    return call


def read_tools(value: Any) -> tuple[dict[str, Any], ...]:
    """Function schemas as templates take them, `{"type": "function", "function": {"name": …, …}}`.

    Args:
        value: a list of schemas, bare or wrapped like that, or one of them, as objects or as JSON text.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(value, str):
        value = parsed(value, "`tools`") if value.strip() else []
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise DataError(f"`tools` is {kind(value)}; it must be a list of function schemas.")
    return tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(value))


def _tool(value: Any, where: str) -> dict[str, Any]:
    value = parsed(value, where) if isinstance(value, str) else value
    function = value.get("function") or value if isinstance(value, Mapping) else value
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        what = "has no name" if isinstance(function, Mapping) else f"is {kind(function)}"
        raise DataError(f"{where} {what}; it must be a function's schema, an object with at least a `name`.")
    check_texts(value, where)
    return dict(value) if function is not value else {"type": "function", "function": dict(function)}


def _weight(given: Mapping[str, Any], where: str) -> float | None:
    stated = {key: read_weight(given[key], f"{where}.{key}") for key in _WEIGHT_KEYS if key in given}
    if len(set(stated.values())) > 1:
        raise DataError(f"{where}.weight and loss_weight differ. Keep one.")
    weight = next(iter(stated.values()), None)
    for key in _FLAG_KEYS:
        if key in given:
            if not isinstance(given[key], bool):
                raise DataError(f"{where}.{key} is {shown(given[key])}; it must be true or false.")
            weight = (1.0 if weight is None else weight) if given[key] else 0.0
    return weight


def read_weight(value: Any, where: str) -> float:
    """The loss weight of a message or a row.

    Raises:
        DataError: it is no finite number of at least 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise DataError(f"{where} is {shown(value)}; it must be a number of at least 0.")
    return float(value)
