"""Text that remembers where each of its characters came from, through everything that a template does to it.

A chat template turns messages into one text. To know which characters of it an assistant wrote, the messages are
handed over as `Tracked` strings: beside its text each carries a second string of the same length, whose characters
are codes for where the characters of the first came from. What a template does to a string (slices, joins, splits,
replacements, …) is done to both. What is not foreseen gives a plain `str`, whose characters count as unknown: origins
can be lost, never invented.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, SupportsIndex

OUTSIDE = -1
"""The message index of what belongs to no message."""
MAX_MESSAGES = 0x3FF0
"""A code names a kind and a message; so many messages have room."""

_UNSETTLED = 0x0
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


class Tracked(str):
    """A string with the origin of each character; see the module."""

    __slots__ = ("_origins",)
    _origins: str

    def __new__(cls, text: str, origins: str) -> Tracked:
        """
        Args:
            text: the characters.
            origins: one code for each of them, or a single code for all.
        """
        made = super().__new__(cls, text)
        made._origins = origins if len(origins) == len(text) else origins * len(text)
        return made

    @property
    def origins(self) -> str:
        """One code for each character."""
        return self._origins

    def __str__(self) -> str:
        return self

    def __repr__(self) -> str:
        return str.__repr__(self)

    def _cut(self, start: int, end: int) -> Tracked:
        return Tracked(str.__getitem__(self, slice(start, end)), self._origins[start:end])

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        return Tracked(str.__getitem__(self, key), self._origins[key])

    def __iter__(self) -> Iterator[str]:
        return (Tracked(*pair) for pair in zip(str.__iter__(self), self._origins, strict=True))

    def __add__(self, other: str) -> str:
        return concatenated((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return concatenated((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> str:
        return Tracked(str.__mul__(self, count), self._origins * count)

    __rmul__ = __mul__

    def join(self, parts: Iterable[str]) -> str:
        pieces: list[str] = []
        for part in parts:
            pieces += [self, part] if pieces else [part]
        return concatenated(pieces)

    def strip(self, characters: str | None = None) -> str:
        start = len(self) - len(str.lstrip(self, characters))
        return self._cut(start, max(start, len(str.rstrip(self, characters))))

    def lstrip(self, characters: str | None = None) -> str:
        return self._cut(len(self) - len(str.lstrip(self, characters)), len(self))

    def rstrip(self, characters: str | None = None) -> str:
        return self._cut(0, len(str.rstrip(self, characters)))

    def removeprefix(self, prefix: str) -> str:
        return self._cut(len(prefix) if str.startswith(self, prefix) else 0, len(self))

    def removesuffix(self, suffix: str) -> str:
        return self._cut(0, len(self) - (len(suffix) if str.endswith(self, suffix) else 0))

    def _pieces(self, texts: Iterable[str]) -> list[str]:
        """The texts, which stand in this one in this order and without overlap, as Tracked ones."""
        pieces: list[str] = []
        position = 0
        for text in texts:
            position = str.find(self, text, position)
            pieces.append(self._cut(position, position + len(text)))
            position += len(text)
        return pieces

    def _between(self, texts: list[str], separator: str) -> list[str]:
        """The texts, which a separator of fixed length parts, as Tracked ones."""
        pieces: list[str] = []
        position = 0
        for text in texts:
            pieces.append(self._cut(position, position + len(text)))
            position += len(text) + len(separator)
        return pieces

    def split(self, separator: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        texts = str.split(self, separator, maxsplit)
        if separator is not None:
            return self._between(texts, separator)
        return self._pieces(texts)

    def rsplit(self, separator: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        texts = str.rsplit(self, separator, maxsplit)
        if separator is not None:
            return self._between(texts, separator)
        return self._pieces(texts)

    def splitlines(self, keepends: bool = False) -> list[str]:
        lengths = [len(line) for line in str.splitlines(self, True)]
        starts = [sum(lengths[:index]) for index in range(len(lengths))]
        texts = str.splitlines(self, keepends)
        return [self._cut(start, start + len(text)) for start, text in zip(starts, texts, strict=True)]

    def partition(self, separator: str) -> tuple[str, str, str]:
        start = str.find(self, separator)
        if start < 0:
            return self, Tracked("", ""), Tracked("", "")
        end = start + len(separator)
        return self._cut(0, start), self._cut(start, end), self._cut(end, len(self))

    def rpartition(self, separator: str) -> tuple[str, str, str]:
        start = str.rfind(self, separator)
        if start < 0:
            return Tracked("", ""), Tracked("", ""), self
        end = start + len(separator)
        return self._cut(0, start), self._cut(start, end), self._cut(end, len(self))

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        if not old:
            return str.replace(self, old, new, count)
        # What is put in takes the place of what a person wrote: it belongs where that belonged.
        pieces, position, left = [], 0, int(count)
        while left and (found := str.find(self, old, position)) >= 0:
            pieces += [self._cut(position, found), Tracked(str.__str__(new), self._origins[found])]
            position, left = found + len(old), left - 1
        return concatenated([*pieces, self._cut(position, len(self))])

    def _each(self, change: Callable[[str], str]) -> str:
        """The text changed as a whole by a method that maps each character to one or more."""
        changed, parts = change(str.__str__(self)), [change(character) for character in str.__iter__(self)]
        if "".join(parts) != changed:
            return changed
        return Tracked(changed, "".join(o * len(part) for o, part in zip(self._origins, parts, strict=True)))

    def upper(self) -> str:
        return self._each(str.upper)

    def lower(self) -> str:
        return self._each(str.lower)

    def casefold(self) -> str:
        return self._each(str.casefold)

    def capitalize(self) -> str:
        changed = str.capitalize(self)
        return Tracked(changed, self._origins) if len(changed) == len(self) else changed

    def title(self) -> str:
        changed = str.title(self)
        return Tracked(changed, self._origins) if len(changed) == len(self) else changed


def concatenated(pieces: Iterable[str]) -> Tracked:
    """The pieces as one text; a plain one among them is of unknown origin."""
    pieces = list(pieces)
    origins = [piece.origins if isinstance(piece, Tracked) else UNKNOWN * len(piece) for piece in pieces]
    return Tracked("".join(pieces), "".join(origins))


HEADER_FIELDS = ("name", "tool_call_id", "id")
"""What a message is called by; templates write it into headers."""


class TrackedMapping(dict[Any, Any]):
    """A mapping of the data's, whose numbers and punctuation belong to a message too when it is written as JSON."""

    __slots__ = ("_code", "_message")
    _code: str
    _message: int | None


class TrackedList(list[Any]):
    """A list of the data's. Going through the conversation's own list tells the tracker which message is dealt with."""

    __slots__ = ("_code", "_tracker")
    _code: str
    _tracker: Tracker | None

    def __iter__(self) -> Iterator[Any]:
        if self._tracker is None:
            yield from super().__iter__()
            return
        outer = self._tracker.begin_loop(self)
        try:
            for item in super().__iter__():
                self._tracker.deal_with(item)
                yield item
        finally:  # also where the loop is left by `break`
            self._tracker.end_loop(outer)

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return _list(found, self._code, self._tracker) if isinstance(key, slice) else found


def _list(items: Iterable[Any], code: str, tracker: Tracker | None) -> TrackedList:
    made = TrackedList(items)
    made._code, made._tracker = code, tracker
    return made


_KIND_OF_FIELD = {
    "reasoning_content": "reasoning",
    "thinking": "reasoning",
    "reasoning": "reasoning",
    "tool_calls": "call",
}


def _code_of_field(field: str, message: int) -> str:
    """Code of what stands in a field of a message."""
    if field in HEADER_FIELDS:
        return named_by(message)
    return held_by(message, _KIND_OF_FIELD.get(field, "content"))


class Tracker:
    """Follows one rendering: which message the template deals with, and what it has written."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Makes ready for a rendering."""
        self.message = OUTSIDE
        """Index of the message that the template deals with."""
        self._num_loops = 0

    def begin_loop(self, items: object) -> tuple[int, bool]:
        """Takes note of a loop; returns what `end_loop` takes."""
        is_ours = isinstance(items, TrackedList) and items._tracker is self
        self._num_loops += is_ours
        return self.message, is_ours

    def end_loop(self, outer: tuple[int, bool]) -> None:
        """Goes back to what was dealt with before the loop."""
        self.message = outer[0]
        self._num_loops -= outer[1]

    def assigned(self, value: Any) -> None:
        """Takes note that a variable was given a value: outside of loops over the messages, that is how a template
        comes to one."""
        if self._num_loops == 0:
            self.deal_with(value)

    def deal_with(self, item: Any) -> None:
        """Takes note that a loop has come to an item; only the conversation's messages matter."""
        if isinstance(item, TrackedMapping) and item._message is not None:
            self.message = item._message

    def literal(self, text: str) -> Tracked:
        """The template's own text."""
        return Tracked(text, written(self.message))

    def concat(self, pieces: Iterable[str]) -> Tracked:
        """What the template writes: pieces that have no message yet belong to that which it deals with."""
        results: list[Tracked] = []
        for piece in pieces:
            tracked = piece if isinstance(piece, Tracked) else Tracked(str.__str__(piece), UNKNOWN)
            results.append(self._settled(tracked))
        return concatenated(results)

    def _settled(self, piece: Tracked) -> Tracked:
        if not piece:
            return piece
        origins = piece.origins
        here, nowhere = written(self.message), written(OUTSIDE)
        origins = origins.replace(VARIABLE, here).replace(nowhere, here)
        origins = origins.replace(UNKNOWN, lost(self.message))
        return Tracked(str.__str__(piece), origins)

    def conversation(self, messages: Iterable[Mapping[str, Any]]) -> TrackedList:
        """The messages as the template sees them."""
        items = []
        for index, message in enumerate(messages):
            item = TrackedMapping((key, self.data(value, _code_of_field(key, index))) for key, value in message.items())
            item._code, item._message = held_by(index), index
            # The role steers the template; where it is written, it is part of the template's own header.
            item["role"] = Tracked(str(message.get("role", "")), written(index))
            items.append(item)
        return _list(items, held_by(OUTSIDE), self)

    def data(self, value: Any, code: str) -> Any:
        """Text, mappings and lists of the data's, all the way down."""
        if isinstance(value, str):
            return Tracked(value, code)
        if isinstance(value, Mapping):
            made = TrackedMapping((self.data(key, code), self.data(item, code)) for key, item in value.items())
            made._code, made._message = code, None
            return made
        if isinstance(value, list | tuple):
            return _list([self.data(item, code) for item in value], code, None)
        return value

    def variable(self, value: Any) -> Any:
        """A variable of the template's: its text counts as the template's own."""
        return Tracked(value, VARIABLE) if isinstance(value, str) else value

    def to_json(self, value: Any, **options: Any) -> str:
        """JSON, as `json.dumps` writes it, with the origin of what stands in it."""
        marks: list[Tracked] = []
        in_order = bool(options.get("sort_keys"))
        text = json.dumps(_with_marks(value, marks, in_order), **{**options, "sort_keys": False})
        code = getattr(value, "_code", None) or (value.origins[:1] if isinstance(value, Tracked) else "") or UNKNOWN
        pieces: list[str] = []
        for number, part in enumerate(re.split(f"{_OPEN}(\\d+){_CLOSE}", text)):
            pieces.append(Tracked(part, code) if number % 2 == 0 else _escaped(marks[int(part)], options))
        found = concatenated(pieces)
        # A mark or an order of keys that went wrong shows here; origins are then given up, the text never.
        true = json.dumps(value, **options)
        return found if str.__eq__(found, true) else true


_OPEN, _CLOSE = "9f3a61c7e", "e7c16a3f9"
"""Around a string's number in JSON text: plain characters, which every option of `json.dumps` leaves alone."""


def _with_marks(value: Any, marks: list[Tracked], in_order: bool) -> Any:
    if isinstance(value, Tracked):
        marks.append(value)
        return f"{_OPEN}{len(marks) - 1}{_CLOSE}"
    if isinstance(value, Mapping):
        items = sorted(value.items()) if in_order else value.items()
        return {_with_marks(key, marks, in_order): _with_marks(item, marks, in_order) for key, item in items}
    if isinstance(value, list | tuple):
        return [_with_marks(item, marks, in_order) for item in value]
    return value


def _escaped(text: Tracked, options: Mapping[str, Any]) -> Tracked:
    ascii_only = options.get("ensure_ascii", True)
    parts = [json.dumps(character, ensure_ascii=ascii_only)[1:-1] for character in str.__iter__(text)]
    return Tracked("".join(parts), "".join(o * len(part) for o, part in zip(text.origins, parts, strict=True)))
