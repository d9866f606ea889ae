"""What a plain word means: YAML 1.2's core rules, not PyYAML's YAML 1.1.

`2e-5` is a number, `no` and `on` are words, `1:30:00` is not 5400, and `010` stays the text that it is,
so that a whole-number field can refuse it instead of reading 8.
"""

from __future__ import annotations

import re

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_MAX_DIGITS = 300
"""Longer whole numbers are no settings: Python refuses to read, or to turn into a float, what is much longer."""
_SPECIAL_FLOATS = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, bool | None] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip


def resolve(text: str) -> bool | int | float | str | None:
    """The value of an unquoted scalar."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text) and len(text) <= _MAX_DIGITS:
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL_FLOATS.fullmatch(text):
        return float(text.replace(".", "", 1))
    return text
