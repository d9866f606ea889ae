"""What a key of another trainer's settings becomes here, and what is told of it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from strict_settings import Problem, SettingsError, Source
from strict_settings.problems import written

Kind = Literal["carried", "lost", "idle"]


@dataclass(frozen=True)
class Made:
    """The key becomes these settings, by dotted names: `{"lora.r": 16}`."""

    settings: Mapping[str, Any]
    note: str = ""
    """What differs, for this value."""


@dataclass(frozen=True)
class Lost:
    """There is nothing here that does the same."""

    reason: str


@dataclass(frozen=True)
class Idle:
    """Nothing is lost without it."""

    reason: str


@dataclass(frozen=True)
class Refused:
    """With it, the file asks for something else than supervised fine-tuning."""

    rule: str
    remedy: str = ""


@dataclass(frozen=True)
class Several:
    """What became of the parts of one key, such as its datasets."""

    made: Made
    told: Sequence[tuple[str, object, Made | Lost | Idle]] = ()
    """(part, value, what became of it): `("datasets[0].shards", 4, Lost(…))`."""


Taken = Made | Lost | Idle | Refused | Several


@dataclass(frozen=True)
class Theirs:
    """A settings file of another trainer."""

    values: Mapping[str, Any]
    folder: Path = Path()
    """The folder that it lies in."""

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a key; the default where it is absent or null."""
        value = self.values.get(name)
        return default if value is None else value

    def path(self, name: str) -> Path | None:
        """A file or folder of theirs, from the working directory or beside the settings file; None if there is none."""
        return next((place for place in (Path(name), self.folder / name) if place.exists()), None)


@dataclass(frozen=True)
class Key:
    """A key of theirs."""

    name: str
    becomes: str
    """Our settings, for the table in docs/migration.md; empty if there are none."""
    note: str
    """What differs; or why it is not carried over, or need not be."""
    kind: Kind
    take: Callable[[Any, Theirs], Taken]
    takes_null: bool = False
    """Null says something, and is not the same as no word."""


@dataclass(frozen=True)
class Default:
    """What they do where their file says nothing, and we would not."""

    setting: str
    value: Callable[[Theirs, Mapping[str, Any]], Any]
    """(their file, the settings made of it) → the value, or None where ours may stay."""
    shown: str
    """The value, for the table."""


@dataclass(frozen=True)
class Remark:
    """What is told where keys are absent."""

    key: str
    """Of which it is told."""
    unless: Sequence[str]
    """Keys of which none is given."""
    text: str


@dataclass(frozen=True)
class Tool:
    """Another trainer."""

    name: str
    title: str
    keys: Sequence[Key]
    defaults: Sequence[Default]
    remarks: Sequence[Remark] = ()
    prefixes: Mapping[str, str] = field(default_factory=dict)
    """Beginnings of keys that are not carried over → why."""


@dataclass(frozen=True)
class Told:
    """What is told of a key."""

    key: str
    value: object
    reason: str

    def __str__(self) -> str:
        return f"{self.key} ({written(self.value)}): {self.reason}"


@dataclass
class Imported:
    """Settings of ours, made of another trainer's file."""

    tool: Tool
    settings: dict[str, Any] = field(default_factory=dict)
    """Dotted name → value."""
    origins: dict[str, str] = field(default_factory=dict)
    """Dotted name → the key that it came from; their defaults have none."""
    carried: list[str] = field(default_factory=list)
    """Keys of theirs that became settings, or say what our defaults say."""
    changed: list[Told] = field(default_factory=list)
    """Means something else here."""
    lost: list[Told] = field(default_factory=list)
    idle: list[Told] = field(default_factory=list)


def same(name: str, to: str = "", note: str = "") -> Key:
    """A key whose value is taken as it is. What differs is told unless it is off."""
    setting = to or name
    return Key(name, setting, note, "carried", lambda value, _: Made({setting: value}, "" if _is_off(value) else note))


def made(
    name: str, becomes: str, take: Callable[[Any, Theirs], Taken], note: str = "", *, takes_null: bool = False
) -> Key:
    """A key whose value is looked at. The note is for the table; what is told of a value comes from `take`."""
    return Key(name, becomes, note, "carried", take, takes_null)


def words(name: str, to: str, meanings: Mapping[str, str], note: str) -> Key:
    """A key of which some words have a word of ours."""

    def take(value: Any, _: Theirs) -> Taken:
        ours = meanings.get(str(value).lower())
        if ours is None:
            return Lost(f"there is only {', '.join(dict.fromkeys(meanings.values()))}")
        return Made({to: ours})

    return Key(name, to, note, "carried", take)


def lost(names: str, reason: str, *neutral: object) -> tuple[Key, ...]:
    """Keys that nothing here stands for; with a neutral value, or one that is off, nothing is lost."""

    def take(value: Any, _: Theirs) -> Taken:
        return Idle("off, as here") if value in neutral or _is_off(value) else Lost(reason)

    return tuple(Key(name, "", reason, "lost", take) for name in names.split())


def idle(names: str, reason: str) -> tuple[Key, ...]:
    """Keys that need not be carried over."""
    return tuple(Key(name, "", reason, "idle", lambda value, _: Idle(reason)) for name in names.split())


def beside(names: str, main: str) -> tuple[Key, ...]:
    """Keys that are read with another one, which tells what became of them."""

    def take(value: Any, theirs: Theirs) -> Taken:
        return Made({}) if theirs.get(main) is not None else Idle(f"comes without {main}")

    return tuple(Key(name, f"with `{main}`", "", "carried", take) for name in names.split())


def imported(tool: Tool, source: Source, folder: Path) -> Imported:
    """The settings that a file of another trainer stands for, and what is to be told of each of its keys.

    Raises:
        SettingsError: it asks for something else than supervised fine-tuning.
    """
    theirs = Theirs(source.values, folder)
    found, keys, refused = Imported(tool), {key.name: key for key in tool.keys}, []
    for name, value in source.values.items():
        taken = _take(tool, keys.get(name), name, value, theirs)
        if isinstance(taken, Refused):
            refused.append(Problem(name, value, taken.rule, taken.remedy, source.where((name,))))
        else:
            _add(found, name, value, taken)
    if refused:
        raise SettingsError(refused)
    for default in tool.defaults:
        value = default.value(theirs, found.settings)
        if default.setting not in found.settings and value is not None:
            found.settings[default.setting] = value
    for remark in tool.remarks:
        if all(theirs.get(name) is None for name in remark.unless):
            found.changed.append(Told(remark.key, None, remark.text))
    _without_evaluation(found)
    return found


def _take(tool: Tool, key: Key | None, name: str, value: Any, theirs: Theirs) -> Taken:
    if value is None and not (key is not None and key.takes_null):
        return Idle("empty")
    if key is not None:
        return key.take(value, theirs)
    for prefix, reason in tool.prefixes.items():
        if name.startswith(prefix):
            return Idle("off, as here") if _is_off(value) else Lost(reason)
    return Lost(f"not known as a key of {tool.title}")


def _add(found: Imported, name: str, value: Any, taken: Made | Lost | Idle | Several) -> None:
    if isinstance(taken, Several):
        for part, stated, what in taken.told:
            _add(found, part, stated, what)
        taken = taken.made
    if isinstance(taken, Lost):
        found.lost.append(Told(name, value, taken.reason))
    elif isinstance(taken, Idle):
        found.idle.append(Told(name, value, taken.reason))
    else:
        found.carried.append(name)
        for setting, ours in taken.settings.items():
            found.settings[setting] = ours
            found.origins[setting] = name
        if taken.note:
            found.changed.append(Told(name, value, taken.note))


def _without_evaluation(found: Imported) -> None:
    """Takes out what needs held-out data, where there is none."""
    if "eval_file" in found.settings:
        return
    for setting in ("eval_steps", "early_stopping_patience", "load_best_model_at_end"):
        value = found.settings.pop(setting, None)
        if value:
            key = found.origins.pop(setting)
            found.carried.remove(key)
            found.lost.append(Told(key, value, "it needs held-out data. Name a file of it: eval_file"))


def _is_off(value: object) -> bool:
    return value is None or value is False or value in ("", "no", "none", [], {})
