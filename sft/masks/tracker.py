"""The tracker: hands a conversation to a template as tracked text, and follows what the template writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sft.masks.origins import OUTSIDE, UNKNOWN, VARIABLE, held_by, lost, named_by, written
from sft.masks.tracked import Tracked, concatenated

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
        return self.with_items(found) if isinstance(key, slice) else found

    def with_items(self, items: Iterable[Any]) -> TrackedList:
        """A list of these items that is followed as this one is."""
        return _list(items, self._code, self._tracker)


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
    def escape(part: str) -> str:
        return json.dumps(part, ensure_ascii=options.get("ensure_ascii", True))[1:-1]

    if len(set(text.origins)) <= 1:  # all of it from one place, as data is that no template has changed
        return Tracked(escape(str.__str__(text)), text.origins[:1])
    parts = [escape(character) for character in str.__iter__(text)]
    return Tracked("".join(parts), "".join(o * len(part) for o, part in zip(text.origins, parts, strict=True)))
