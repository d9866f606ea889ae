"""Frozen dataclasses as schemas: plain values in, a checked object out, all problems in one error."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from strict_settings.problems import Described, Problem, SettingsError, with_suggestion, written
from strict_settings.source import Path, Source

T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """A bound of a number, for `Annotated[int, at_least(1)]`."""

    text: str
    holds: Callable[[Any], bool]


def at_least(bound: float) -> Rule:
    """`value >= bound`."""
    return Rule(f"be at least {bound}", lambda value: value >= bound)


def at_most(bound: float) -> Rule:
    """`value <= bound`."""
    return Rule(f"be at most {bound}", lambda value: value <= bound)


def above(bound: float) -> Rule:
    """`value > bound`."""
    return Rule(f"be above {bound}", lambda value: value > bound)


def below(bound: float) -> Rule:
    """`value < bound`."""
    return Rule(f"be below {bound}", lambda value: value < bound)


@cache
def hints_of(cls: type, *, with_rules: bool = False) -> Mapping[str, Any]:
    """Field name → its type, or with the rules around it; evaluated once, as each annotation is compiled for it."""
    if with_rules:
        return get_type_hints(cls, include_extras=True)
    return {name: _without_rules(hint) for name, hint in hints_of(cls, with_rules=True).items()}


def _without_rules(hint: Any) -> Any:
    """The type, also in `Annotated[X, …] | None`."""
    if get_origin(hint) is Annotated:
        return get_args(hint)[0]
    parts = _union_parts(hint)
    return Union[tuple(_without_rules(part) for part in parts)] if len(parts) > 1 else hint  # noqa: UP007


def field_docs(cls: type) -> dict[str, str]:
    """Field name → the string literal that stands under it in the class's source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = inspect.cleandoc(text)
    return docs


def build(
    cls: type[T],
    *sources: Source,
    aliases: Mapping[str, str] | None = None,
    check: Callable[[T], Iterable[Problem]] = lambda _: (),
) -> T:
    """An instance of `cls` from the sources; later sources win, value by value, also inside nested mappings.

    Args:
        cls: a frozen dataclass whose annotations are the schema. A method `problems(self)`, where it has one, yields
            the Problems that concern several fields.
        sources: what was written, for example a file and then the command line.
        aliases: other spelling → field name, at the top level.
        check: further problems of the instance, beside those that it tells by itself.

    Raises:
        SettingsError: all unknown keys, wrong types and broken rules of all sources.
    """
    problems: list[Problem] = []
    merged: dict[Path, tuple[Any, Source]] = {}
    for source in sources:
        _flatten(cls, source, source.values, (), aliases or {}, merged, problems)
    instance = _construct(cls, (), merged, problems)
    if not problems:
        found = [*_cross_checks(instance), *check(instance)]
        problems.extend(_placed(problem, merged) for problem in found)
    if problems:
        raise SettingsError(problems)
    return instance


def located(
    problems: Iterable[Problem], cls: type, *sources: Source, aliases: Mapping[str, str] | None = None
) -> tuple[Problem, ...]:
    """The problems with file and line of their fields, where a source has them: for what is found wrong later than
    `build`, by those who work with the values.

    Args:
        problems: of fields of `cls`, by their names; others stay as they are.
        cls: as for `build`, as are the others.
        sources: what was written.
        aliases: other spelling → field name.
    """
    merged: dict[Path, tuple[Any, Source]] = {}
    for source in sources:
        _flatten(cls, source, source.values, (), aliases or {}, merged, [])
    return tuple(_placed(problem, merged) for problem in problems)


def _cross_checks(instance: Any) -> Iterable[Problem]:
    check = getattr(instance, "problems", None)
    return check() if check else ()


def _placed(problem: Problem, merged: Mapping[Path, tuple[Any, Source]]) -> Problem:
    """The problem with the place where its field was written."""
    path = tuple(problem.field.split("."))
    if problem.where or path not in merged:
        return problem
    return dataclasses.replace(problem, where=merged[path][1].where(path))


def _flatten(
    cls: type,
    source: Source,
    values: Mapping[str, Any],
    path: Path,
    aliases: Mapping[str, str],
    merged: dict[Path, tuple[Any, Source]],
    problems: list[Problem],
) -> None:
    """Adds each leaf of one source to `merged`; nested dataclasses are walked, so that sources merge inside them."""
    hints = hints_of(cls)
    seen: dict[str, str] = {}
    for key, value in values.items():
        name = aliases.get(key, key)
        here = (*path, name)
        where = source.where((*path, key))
        if name not in hints:
            problems.append(_unknown_key((*path, key), [*hints, *aliases], where))
            continue
        if name in seen:
            remedy = f"{seen[name]!r} and {key!r} are two spellings of it: keep one."
            problems.append(Problem(".".join(here), Described("given twice"), "be given once", remedy, where))
            continue
        seen[name] = key
        nested = _dataclass_in(hints[name])
        if nested and isinstance(value, Mapping):
            _flatten(nested, source, value, here, {}, merged, problems)
            merged.setdefault(here, ({}, source))
        else:
            place = Source({}, source.name, {here: where})
            problems.extend(_problems_of_overridden(merged.get(here), hints_of(cls, with_rules=True)[name], here))
            merged[here] = (value, place if not isinstance(value, Mapping | list) else source)


def _problems_of_overridden(given: tuple[Any, Source] | None, hint: Any, path: Path) -> Iterable[Problem]:
    """What is wrong with a value that a later source replaces: it stands in a file, and waits for the next run."""
    if given is None or _dataclass_in(hint):
        return ()
    try:
        _converted(given[0], hint, path, given[1])
    except SettingsError as error:
        return error.problems
    return ()


def _unknown_key(path: Path, known: list[str], where: str) -> Problem:
    remedy = with_suggestion(path[-1], (name for name in known if not name.startswith("_")))
    return Problem(f"the key {'.'.join(path)!r}", Described("unknown"), "be a known setting", remedy, where)


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass in `X` or `X | None`."""
    for part in _union_parts(hint):
        if dataclasses.is_dataclass(part) and isinstance(part, type):
            return part
    return None


def _union_parts(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _construct(cls: type[T], path: Path, merged: Mapping[Path, tuple[Any, Source]], problems: list[Problem]) -> T:
    """The instance; fields with problems keep their default, or None where they have none."""
    hints, plain_hints = hints_of(cls, with_rules=True), hints_of(cls)  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        here = (*path, field.name)
        nested = _dataclass_in(plain_hints[field.name])
        given = merged.get(here)
        is_required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if is_required:
            arguments[field.name] = None
        if nested and given is not None and isinstance(given[0], Mapping):
            arguments[field.name] = _construct(nested, here, merged, problems)
        elif given is not None:
            try:
                arguments[field.name] = _converted(given[0], hints[field.name], here, given[1])
            except SettingsError as error:
                problems.extend(error.problems)
        elif is_required:
            problems.append(Problem(".".join(here), None, "be given"))
    return cls(**arguments)


def _converted(value: Any, hint: Any, path: Path, source: Source) -> Any:
    """The value as its annotation wants it, or a SettingsError that names the place."""
    rules = [rule for rule in get_args(hint)[1:] if isinstance(rule, Rule)] if get_origin(hint) is Annotated else []
    plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    parts = _union_parts(plain)
    if value is None and types.NoneType in parts:
        return None
    error: SettingsError | None = None
    for part in parts:
        if part is types.NoneType:
            continue
        try:
            result = _as_type(value, part, path, source)
        except SettingsError as this_error:
            error = error or this_error
            continue
        for rule in rules:
            if not rule.holds(result):
                raise SettingsError(Problem(".".join(path), value, rule.text, where=source.where(path)))
        return result
    assert error is not None
    raise error


def _as_type(value: Any, hint: Any, path: Path, source: Source) -> Any:
    origin = get_origin(hint) or hint
    if origin is Annotated:
        return _converted(value, hint, path, source)
    if origin is Literal:
        return _one_of(value, get_args(hint), path, source)
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise _wrong(value, "be a list", "Write [a, b].", path, source)
        item = get_args(hint)[0]
        return tuple(_converted(entry, item, (*path, str(index)), source) for index, entry in enumerate(value))
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(value, Mapping):
            raise _wrong(value, "be a mapping", "Write {key: value}.", path, source)
        item = (get_args(hint) or (str, Any))[1]
        return {key: _converted(entry, item, (*path, key), source) for key, entry in value.items()}
    if origin is Any:
        return value
    return _as_scalar(value, origin, path, source)


def _one_of(value: Any, choices: tuple[Any, ...], path: Path, source: Source) -> Any:
    # `true == 1` in Python: a choice must also be of the same type.
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return value
    listed = ", ".join(str(choice) for choice in choices)
    remedy = with_suggestion(value, [str(choice) for choice in choices]) if isinstance(value, str) else ""
    raise _wrong(value, f"be one of {listed}", remedy if remedy.startswith("Did") else "", path, source)


def _as_scalar(value: Any, kind: Any, path: Path, source: Source) -> Any:
    name = path[-1]
    if dataclasses.is_dataclass(kind):
        raise _wrong(value, "be a mapping", _mapping_remedy(name, kind), path, source)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise _wrong(value, "be a finite number", "", path, source)
        return float(value)
    if kind is str and isinstance(value, str):
        if any(ord(character) < 32 and character not in "\t\n" for character in value):
            raise _wrong(value, "hold no control characters", "", path, source)
        return value
    if kind is dict and isinstance(value, Mapping):
        return dict(value)
    rule, remedy = {
        bool: ("be true or false", f"Write {name}: true or {name}: false."),
        int: (
            "be a whole number in plain digits",
            f"Write for example {name}: 8, without leading zero, point or quotes.",
        ),
        float: ("be a number", f"Write for example {name}: 1e-5, without quotes."),
        str: ("be text", _quoted(name, value)),
    }.get(kind, (f"be a {getattr(kind, '__name__', kind)}", ""))
    raise _wrong(value, rule, remedy, path, source)


def _quoted(name: str, value: Any) -> str:
    """How to write a value as text, where it is one value; an entry of a list has its number for a name."""
    if isinstance(value, list | Mapping):
        return "Write one value."
    text = "" if value is None else written(value)
    return f'Write it in quotes: "{text}".' if name.isdigit() else f'Write it in quotes: {name}: "{text}".'


def _mapping_remedy(name: str, kind: Any) -> str:
    """How to write a nested mapping, with the keys that it has."""
    keys = sorted(field.name for field in dataclasses.fields(kind))
    switch = f" {name}: {{enabled: true}} takes the defaults." if "enabled" in keys else ""
    return f"Write {{key: value}}. Known: {', '.join(keys)}.{switch}"


def _wrong(value: Any, rule: str, remedy: str, path: Path, source: Source) -> SettingsError:
    return SettingsError(Problem(".".join(path), value, rule, remedy, source.where(path)))
