"""`--name value` words → Source, for every field of a dataclass and, as `--lora.r 8`, of the dataclasses in it."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from strict_settings import scalars
from strict_settings.problems import Described, Problem, SettingsError, with_suggestion
from strict_settings.schema import _dataclass_in, _union_parts, hints_of
from strict_settings.source import Path, Source


def parse_command_line(
    cls: type,
    words: Sequence[str],
    aliases: Mapping[str, str] | None = None,
    elsewhere: Mapping[str, str] | None = None,
) -> Source:
    """The settings among `words`: `--name value`, `--name=value`, and `--flag` alone for a true/false field.

    Values are read as in YAML, except that text fields take the word as it is: `--run_name 007` is '007'.

    Args:
        cls: the dataclass of the settings.
        words: of the command line.
        aliases: other spelling → setting.
        elsewhere: option of another program → what to write here instead of it.

    Raises:
        SettingsError: unknown options (with a suggestion), missing or repeated values, words that belong to nothing.
    """
    fields = _fields(cls)
    for alias, name in (aliases or {}).items():
        fields[(alias,)] = fields[(name,)]
    values: dict[str, Any] = {}
    places: dict[Path, str] = {}
    problems: list[Problem] = []
    remaining = list(words)
    while remaining:
        typed = remaining[0].partition("=")[0]
        option, text, problem = _take_option(remaining, fields, elsewhere or {})
        if problem is not None:
            problems.append(problem)
            continue
        path = tuple(option.split("."))
        if path in places:
            problems.append(Problem(f"--{option}", Described("given twice"), "be given once"))
            continue
        beside = next((other for other in places if other[: len(path)] == path[: len(other)]), None)
        if beside is not None:
            what = Described(f"given beside --{'.'.join(beside)}")
            problems.append(Problem(f"--{option}", what, "be given once", "Give the mapping or its parts, not both."))
            continue
        places[path] = typed
        try:
            _store(values, path, _parsed(text, fields[path], option))
        except SettingsError as error:
            problems.extend(error.problems)
    if problems:
        raise SettingsError(problems)
    return Source(values, "the command line", places)


def _fields(cls: type, path: Path = ()) -> dict[Path, Any]:
    """Path → annotation, of every field that can be given as an option."""
    hints = hints_of(cls)
    result: dict[Path, Any] = {}
    for field in dataclasses.fields(cls):
        here = (*path, field.name)
        nested = _dataclass_in(hints[field.name])
        if nested:
            result |= _fields(nested, here)
        result[here] = hints[field.name]
    return result


def _take_option(
    remaining: list[str], fields: Mapping[Path, Any], elsewhere: Mapping[str, str]
) -> tuple[str, str, Problem | None]:
    """Removes one option and its value from the front: (dotted name, text, problem)."""
    word = remaining.pop(0)
    if not word.startswith("--") or word == "--":
        return "", "", Problem("the word", word, "belong to an option", "Write options as --name value.")
    name, equals, text = word[2:].partition("=")
    option = name.replace("-", "_")
    path = tuple(option.split("."))
    if path not in fields:
        if not equals and remaining and not remaining[0].startswith("--"):
            remaining.pop(0)
        remedy = elsewhere.get(option) or with_suggestion(option, [".".join(field) for field in fields])
        return option, "", Problem(f"the option --{name}", Described("unknown"), "be a known setting", remedy)
    if equals:
        return option, text, None
    has_value = bool(remaining) and not remaining[0].startswith("--")
    if bool in _union_parts(fields[path]) and not (has_value and isinstance(scalars.resolve(remaining[0]), bool)):
        return option, "true", None
    if not has_value:
        return option, "", Problem(f"--{name}", None, "be followed by a value")
    return option, remaining.pop(0), None


def _parsed(text: str, hint: Any, option: str) -> Any:
    """The value that `text` stands for in a field of this annotation."""
    parts = [part for part in _union_parts(hint) if part is not types.NoneType]
    if any(text in get_args(part) for part in parts if get_origin(part) is Literal):
        return text  # also where a choice is called `none`
    if text in ("none", "null") and types.NoneType in _union_parts(hint):
        return None
    origins = [get_origin(part) or part for part in parts]
    if str in parts:  # and of several texts `[a, b]` or `a,b`
        is_list = list in origins and (text[:1] == "[" or "," in text)
        return _parsed_collection(text, option) if is_list else text
    if any(get_args(part) and all(isinstance(choice, str) for choice in get_args(part)) for part in parts):
        return text
    if any(origin in (tuple, list, dict, Mapping) or dataclasses.is_dataclass(origin) for origin in origins):
        return _parsed_collection(text, option)
    return scalars.resolve(text)


def _parsed_collection(text: str, option: str) -> Any:
    """A list or mapping in YAML's flow style, of which JSON is a part; `a,b` is a list too."""
    if text[:1] not in ("{", "["):
        return [scalars.resolve(part.strip()) for part in text.split(",")]
    from strict_settings.yaml_file import read_collection

    return read_collection(text, option)


def _store(values: dict[str, Any], path: Path, value: Any) -> None:
    for key in path[:-1]:
        values = values.setdefault(key, {})
    values[path[-1]] = value
