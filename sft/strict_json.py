"""JSON as the standard has it: no NaN, no key twice, no number beyond a float's range. Errors know their place."""

from __future__ import annotations

import json
import math
from typing import Any

from sft.errors import DataError


class JsonError(DataError):
    """Text that is no JSON.

    Attributes:
        line, column: where it stops being JSON, counted from 1; None where the parser does not say.
    """

    def __init__(self, reason: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(reason)
        self.line, self.column = line, column


def loads(text: str) -> Any:
    """The value that the text holds.

    Raises:
        JsonError: it is not JSON, or holds what no other program would read alike.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise JsonError(f"not valid JSON: {error.msg}", error.lineno, error.colno) from None
    except RecursionError:
        raise JsonError("JSON that is nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits, or one of the refusals below
        raise JsonError(f"JSON that cannot be read: {error}") from None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is too large")
    return number


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return found


_DECODER = json.JSONDecoder(parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_distinct)
