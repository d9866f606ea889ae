"""Values of rows: what they are, in the words of the data and not of Python; their text checked; JSON inside text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft import strict_json
from sft.errors import DataError


def parsed(text: str, where: str) -> Any:
    """The value of JSON that stands as text inside the data."""
    try:
        return strict_json.loads(text)
    except strict_json.JsonError as error:
        place = f" at column {error.column}" if error.column and error.line == 1 else ""
        raise DataError(f"{where} is {error}{place}.") from None


def check_text(text: str, where: str) -> None:
    """
    Raises:
        DataError: the text holds half of a surrogate pair, which JSON can write (`"\\ud83d"`) and no tokenizer takes.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            rule = "holds half of a surrogate pair, which is no character; it must be Unicode text."
            raise DataError(f"{where} {rule}") from None


def check_texts(value: Any, where: str) -> None:
    """`check_text` on all text in a value."""
    if isinstance(value, str):
        check_text(value, where)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_texts(key, where)
            check_texts(item, where)
    elif isinstance(value, list):
        for item in value:
            check_texts(item, where)


def kind(value: Any) -> str:
    """What a value is, in the words of the data and not of Python."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, bytes):
        return "bytes"
    names = {"str": "text", "list": "a list", "tuple": "a list", "dict": "an object"}
    return names.get(type(value).__name__, f"a {type(value).__name__}")


def counted(number: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number:,} {noun}" + ("s" if number != 1 else "")


def shown(value: Any) -> str:
    """A value as messages show it: short, and in the data's own words."""
    if isinstance(value, str):
        return f"'{value[:40]}…'" if len(value) > 40 else f"'{value}'"
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else kind(value)
