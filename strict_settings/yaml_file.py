"""YAML file → Source, with line numbers, without the surprises of YAML 1.1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from strict_settings import scalars
from strict_settings.problems import Described, Problem, SettingsError
from strict_settings.source import Path as ValuePath
from strict_settings.source import Source

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_VALUES = 20_000
"""Aliases are expanded while reading; this bounds what a file of nested aliases can grow to."""
_STANDARD_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")}
# PyYAML tags plain words by YAML 1.1 before we see them; the words themselves are read again by our own rules.
_YAML_1_1_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("timestamp", "merge", "value")}


def read(path: str | Path) -> Source:
    """As `strict_settings.read_yaml` says."""
    name = str(path)
    node = _compose(_read_text(Path(path)), name)
    if node is None:
        return Source({}, name)
    reader = _Reader(name)
    if not isinstance(node, yaml.MappingNode):
        raise SettingsError(
            Problem("the file", type(node.value).__name__, "be a mapping of `key: value` lines", where=f"{name}:1")
        )
    return Source(reader.value(node, ()), name, reader.places)


def read_collection(text: str, option: str) -> Any:
    """The value of an option in YAML's flow style, of which JSON is a part.

    Raises:
        SettingsError: it is none.
    """
    try:
        node = _parsed(text)
    except yaml.YAMLError as error:
        raise SettingsError(Problem(f"--{option}", text, "be JSON or YAML, as in {key: value} or [a, b]")) from error
    assert node is not None
    return _Reader(f"--{option}").value(node, ())


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SettingsError(
            Problem("the settings file", str(path), "be a file that can be read", f"{error.strerror}.")
        ) from error
    if len(data) > MAX_BYTES:
        raise SettingsError(
            Problem("the settings file's size", len(data), f"be at most {MAX_BYTES} bytes", where=str(path))
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(
            Problem(
                "the encoding",
                Described(f"not UTF-8 at byte {error.start}"),
                "be UTF-8",
                "Save the file as UTF-8.",
                str(path),
            )
        ) from error


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        node = _parsed(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        if isinstance(error, _TooDeep):
            raise _too_deep(where) from error
        what = getattr(error, "problem", None) or str(error)
        raise SettingsError(
            Problem("the file", what, "be valid YAML", "Look at this line and the one above.", where)
        ) from error
    return node


class _TooDeep(yaml.MarkedYAMLError):
    """Brackets within brackets: each level would take its part of the interpreter's stack."""


def _too_deep(where: str) -> SettingsError:
    return SettingsError(Problem("the nesting", Described(f"over {MAX_DEPTH} levels"), "be flatter", where=where))


class _Loader(yaml.SafeLoader):
    """Composes nodes; of a tag that somebody wrote the node keeps the spelling, which no plain value has."""

    _depth = -1
    """Of the node being composed; 0 is the file's own mapping."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        tag = getattr(event, "tag", None)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _TooDeep(problem="too deep", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if tag is not None and node is not None:
            node.tag = tag.replace("tag:yaml.org,2002:", "!!")
        return node


def _parsed(text: str) -> yaml.Node | None:
    node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    return node


class _Reader:
    """Walks YAML nodes, keeps the line of every value, and gathers nothing that the walk has not seen."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.places: dict[ValuePath, str] = {}
        self._num_values = 0

    def value(self, node: yaml.Node, path: ValuePath) -> Any:
        self._num_values += 1
        where = self._place(node)
        if self._num_values > MAX_VALUES:
            raise SettingsError(
                Problem("the number of values", Described(f"over {MAX_VALUES}"), "be smaller", where=where)
            )
        if len(path) > MAX_DEPTH:
            raise _too_deep(where)
        if node.tag not in _STANDARD_TAGS | _YAML_1_1_TAGS:
            raise SettingsError(Problem("the tag", node.tag, "not be given", "Write plain YAML values.", where))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, str(index))) for index, item in enumerate(node.value)]
        text = str(node.value)
        assert isinstance(node, yaml.ScalarNode)
        return scalars.resolve(text) if node.style is None else text

    def _mapping(self, node: yaml.MappingNode, path: ValuePath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            where = self._place(key_node)
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode) or not isinstance(key, str) or key == "<<":
                shown = key if isinstance(key, str) else Described("a list or a mapping")
                raise SettingsError(Problem("a key", shown, "be a plain word", where=where))
            if key_node.tag.startswith("!"):
                raise SettingsError(Problem("the tag", key_node.tag, "not be given", "Write plain YAML keys.", where))
            dotted = ".".join((*path, key))
            if key in result:
                first = self.places[(*path, key)]
                raise SettingsError(
                    Problem(
                        dotted,
                        Described("given twice"),
                        "be given once",
                        f"It stands at {first} too: remove one.",
                        where,
                    )
                )
            self.places[(*path, key)] = where
            result[key] = self.value(value_node, (*path, key))
        return result

    def _place(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"
