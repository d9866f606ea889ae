"""Rows of files → Conversation: the one type that everything behind it works on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft.errors import DataError

Message = Mapping[str, Any]
"""One turn as chat templates take it: `{"role": …, "content": …}` and whatever else the template reads."""

MAX_SHOWN_PROBLEMS = 10


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


def read_conversations(
    name: str, columns: Mapping[str, str] | None = None, max_rows: int | None = None
) -> list[Conversation]:
    """The conversations of a JSON or JSONL file, or of what `datasets.load_dataset` takes.

    Each row decides for itself: `{"messages": […]}` or `{"prompt", "response"}`.

    Args:
        name: a file, a folder, or a hub name.
        columns: our column → the file's column.
        max_rows: take only the first rows.

    Raises:
        DataError: the rows that are neither, each with file and line; nothing is skipped in silence.
    """
    conversations: list[Conversation] = []
    problems: list[str] = []
    for row, source in itertools.islice(_rows(name), max_rows):
        try:
            conversations.append(Conversation(_messages(row, columns or {}), source))
        except DataError as error:
            problems.append(f"{source}: {error}")
    if problems:
        raise DataError(_summary(problems, len(conversations) + len(problems)))
    if not conversations:
        raise DataError(f"{name}: the file holds no row. Name a file with at least one conversation.")
    return conversations


def _summary(problems: list[str], num_rows: int) -> str:
    more = len(problems) - MAX_SHOWN_PROBLEMS
    lines = problems[:MAX_SHOWN_PROBLEMS] + ([f"… and {more} more"] if more > 0 else [])
    return "\n".join([*lines, f"{len(problems)} of {num_rows} rows cannot be used."])


def _messages(row: Any, columns: Mapping[str, str]) -> tuple[Message, ...]:
    if not isinstance(row, Mapping):
        raise DataError(f"the row is a {type(row).__name__}; it must be an object with named columns.")
    value = {ours: row.get(columns.get(ours, ours)) for ours in ("messages", "prompt", "response")}
    if value["messages"] is not None:
        return _checked_messages(value["messages"])
    if value["prompt"] is None or value["response"] is None:
        found = ", ".join(str(key) for key in row) or "none"
        raise DataError(
            "the row needs `messages`, or `prompt` and `response`; "
            f"it has the columns {found}. Map yours with columns: {{prompt: …, response: …}}."
        )
    for name in ("prompt", "response"):
        _require_text(f"`{columns.get(name, name)}`", value[name])
    return ({"role": "user", "content": value["prompt"]}, {"role": "assistant", "content": value["response"]})


def _checked_messages(messages: Any) -> tuple[Message, ...]:
    if not isinstance(messages, list) or not messages:
        raise DataError("`messages` must be a list with at least one message.")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise DataError(f"messages[{index}] must be an object with a `role` that is text.")
        _require_text(f"messages[{index}].content", message.get("content"))
    if not any(message["role"] == "assistant" for message in messages):
        raise DataError("no message has the role `assistant`: there is nothing to train on.")
    return tuple(messages)


def _require_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise DataError(f"{name} is a {type(value).__name__}; it must be text.")
    # JSON can write half of a surrogate pair ("\ud83d"); it is no character, and no tokenizer takes it.
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{name} holds half of a surrogate pair, which is no character; it must be Unicode text.")


def _rows(name: str) -> Iterator[tuple[Any, str]]:
    """(row, `file:line`) pairs."""
    path = Path(name)
    if path.is_file() and path.suffix == ".jsonl":
        return _jsonl_rows(path)
    if path.is_file() and path.suffix == ".json":
        return _json_rows(path)
    return _dataset_rows(name)


def _jsonl_rows(path: Path) -> Iterator[tuple[Any, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _parsed(line.rstrip(), f"{path}:{number}"), f"{path}:{number}"


def _json_rows(path: Path) -> Iterator[tuple[Any, str]]:
    rows = _parsed(path.read_bytes(), str(path))
    if not isinstance(rows, list):
        raise DataError(f"{path}: the file holds a {type(rows).__name__}; it must hold a list of rows.")
    for index, row in enumerate(rows):
        yield row, f"{path}[{index}]"


def _parsed(data: bytes, source: str) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        where = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{source}: not valid JSON at {where}: {error.msg}.") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise DataError(f"{source}: JSON that cannot be read: {error}.") from error


def _dataset_rows(name: str) -> Iterator[tuple[Any, str]]:
    """Rows of a hub name or a folder, by the `datasets` library; `name@split` chooses another split than train."""
    import datasets

    repository, _, split = name.partition("@")
    try:
        rows: Iterable[Any] = datasets.load_dataset(repository, split=split or "train")
    except Exception as error:  # the library raises many kinds; its own words are the best there are
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name}: neither a JSON or JSONL file nor a dataset that could be loaded: {reason}") from error
    for index, row in enumerate(rows):
        yield row, f"{name}[{index}]"
