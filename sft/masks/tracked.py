"""Text that remembers where each of its characters came from, through everything that a template does to it.

Beside its text a `Tracked` string carries a second one of the same length, of codes for origins. What a template does
to the first (slices, joins, splits, replacements, …) is done to both. What is not foreseen gives a plain `str`, whose
characters count as unknown: origins can be lost, never invented.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, SupportsIndex

from sft.masks.origins import UNKNOWN


class Tracked(str):
    """A string with the origin of each character; see the module."""

    __slots__ = ("_origins",)
    _origins: str

    def __new__(cls, text: str, origins: str = UNKNOWN) -> Tracked:
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

    def __mod__(self, values: Any) -> str:
        done = str.__mod__(self, values)
        literals = re.split(r"%[sd]", str.__str__(self))
        given = values if isinstance(values, tuple) else (values,)
        if len(literals) != len(given) + 1 or "%" in "".join(literals):
            return done  # a form that is not followed: the origins are given up, the text never
        pieces: list[str] = []
        for text, value in zip(self._between(literals, "%s"), (*given, ""), strict=True):
            pieces += [text, value if isinstance(value, str) else str(value)]
        found = concatenated(pieces)
        return found if str.__eq__(found, done) else done

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
