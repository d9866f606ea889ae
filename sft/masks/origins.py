"""Where a character of rendered text comes from: a code for each kind of origin and message.

A code is one character, so that the origins of a text are a text of the same length, which is cut and joined alike.
"""

from __future__ import annotations

OUTSIDE = -1
"""The message index of what belongs to no message."""
MAX_MESSAGES = 0x3FF0
"""A code names a kind and a message; so many messages have room."""

_LOST = 0x4000
_WRITTEN = 0x8000
_NAMED = 0xC000
_HELD = 0x10000
KINDS = ("content", "reasoning", "call")
"""What a message holds: what it says, what it thought, what it calls. Anything else in it counts as content."""

UNKNOWN = "\x00"
"""Code of a character whose origin was lost (a number turned to text, a method that is not followed)."""
VARIABLE = "\x01"
"""Code of the text of a variable of the template's, such as `bos_token`, until the template writes it."""


def lost(message: int) -> str:
    """Code of text of unknown origin, written while the template dealt with that message."""
    return chr(_LOST + message + 1)


def written(message: int) -> str:
    """Code of the template's own text, written while it dealt with that message."""
    return chr(_WRITTEN + message + 1)


def named_by(message: int) -> str:
    """Code of a character of a message's name or number, which stands in its header."""
    return chr(_NAMED + message + 1)


def held_by(message: int, kind: str = "content") -> str:
    """Code of a character of what the message holds."""
    return chr(_HELD + 0x4000 * KINDS.index(kind) + message + 1)


def codes_of(message: int) -> list[str]:
    """All codes of what belongs to a message."""
    return [lost(message), written(message), named_by(message), *(held_by(message, kind) for kind in KINDS)]


def message_of(code: str) -> int:
    """The message that a character belongs to: that which holds it, or that in whose turn it was written."""
    return (ord(code) & 0x3FFF) - 1


def is_written(code: str) -> bool:
    """Whether the template itself wrote the character."""
    return _WRITTEN <= ord(code) < _NAMED


def is_data(code: str) -> bool:
    """Whether the character comes from a message (or nobody knows from where), and not from the template."""
    return not is_written(code)
