"""Stages: jobs that one file describes, each of which begins when those that it follows are complete.

stages:
  train: {config: run.yaml, launch: {nodes: 2}}
  evaluate: {command: evaluate, args: ["{train.output_dir}", held_out.jsonl]}
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from launch.spec import COMMANDS_SCRIPT, CheckedCommand, name_problems
from strict_settings import Problem, SettingsError, Source, build, read_yaml

ALONE = ("export", "report")
"""Commands that are one process."""
_REFERENCE = re.compile(r"\{([A-Za-z0-9_][A-Za-z0-9._-]*)\.([A-Za-z_]+)\}")
_DIRECTORY = "output_dir"


@dataclass(frozen=True)
class StagesFile:
    """A file of stages."""

    stages: Mapping[str, Mapping[str, Any]]
    """Name → stage, in the order in which they run."""
    launch: Mapping[str, Any] | None = None
    """Launch settings of all stages. They win over those of a stage's settings file, and a stage's own over them."""


@dataclass(frozen=True)
class StageSettings:
    """A stage, as it stands in the file. It trains, unless it has a script or a command of its own."""

    config: str | None = None
    """Settings file of the training."""
    script: str | None = None
    """Script of your own."""
    command: CheckedCommand | None = None
    """A command of `python -m sft`."""
    args: tuple[str, ...] = ()
    """Its arguments. `{NAME.output_dir}` is the run directory of stage NAME."""
    after: tuple[str, ...] | None = None
    """The stages that must be complete before; default: the one above it."""
    launch: Mapping[str, Any] | None = None
    """Its launch settings: `{nodes: 2}`."""

    def problems(self) -> Iterator[Problem]:
        """What concerns several settings."""
        if self.command is not None and self.script is not None:
            yield Problem("command", self.command, "not be given together with script", "Keep one of them.")
        if self.command is not None and self.config is not None:
            remedy = "Give what it needs as args, and launch settings as launch."
            yield Problem("config", self.config, "not be given together with command", remedy)


@dataclass(frozen=True)
class Stage:
    """A stage that is all right by itself."""

    name: str
    settings: StageSettings
    after: tuple[str, ...]
    """The stages that it follows."""
    launch: tuple[Source, ...]
    """Its launch settings; later ones win."""

    @property
    def script(self) -> str | None:
        """What runs, where that is not the training script."""
        return self.settings.script if self.settings.command is None else str(COMMANDS_SCRIPT)

    def script_args(self, directories: Mapping[str, str]) -> tuple[str, ...]:
        """The script's words.

        Args:
            directories: stage → its run directory.
        """
        command = () if self.settings.command is None else (self.settings.command,)
        filled = (_REFERENCE.sub(lambda found: _filled(found, directories), word) for word in self.settings.args)
        return (*command, *filled)

    @property
    def needs_others(self) -> bool:
        """Whether its words name what another stage is still to write."""
        return any(name != self.name for word in self.settings.args for name, _ in _REFERENCE.findall(word))


def _filled(found: re.Match[str], directories: Mapping[str, str]) -> str:
    return directories.get(found[1], found[0]) if found[2] == _DIRECTORY else found[0]


def read_stages(path: str) -> list[Stage]:
    """The stages of a file, each after those that it follows.

    Raises:
        SettingsError: with every problem of the file.
    """
    everything = read_yaml(path)
    file = build(StagesFile, everything)
    problems: list[Problem] = []
    stages: dict[str, Stage] = {}
    if not file.stages:
        problems.append(Problem("stages", {}, "name a stage or more", where=everything.where(("stages",))))
    for name in file.stages:
        where = everything.where(("stages", name))
        problems += [replace(problem, where=where) for problem in name_problems(name)]
        try:
            stage = _stage(name, everything, list(stages))
        except SettingsError as error:
            problems += error.problems
            stage = Stage(name, StageSettings(), (), ())  # others may follow it
        problems += [replace(problem, where=where) for problem in _order_problems(stage, stages, file.stages)]
        stages[name] = stage
    if problems:
        raise SettingsError(problems)
    return list(stages.values())


def _stage(name: str, everything: Source, above: Sequence[str]) -> Stage:
    part = everything.part(("stages", name))
    own = dict(part.values)
    if isinstance(own.get("args"), list):
        own["args"] = [_word(value) for value in own["args"]]
    settings = build(StageSettings, Source(own, part.name, part.places))
    single = Source({"nodes": 1, "procs_per_node": 1} if settings.command in ALONE else {})
    sources = (everything.part(("launch",)), single, part.part(("launch",)))
    return Stage(name, settings, tuple(above[-1:]) if settings.after is None else settings.after, sources)


def _word(value: Any) -> Any:
    """A number or a truth value as the word that it is on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _order_problems(stage: Stage, above: Mapping[str, Stage], all_names: Collection[str]) -> Iterator[Problem]:
    """What is wrong with the stages that it names."""
    known = ", ".join(above) or "none"
    for name in stage.after:
        if name not in above:
            yield Problem(f"stages.{stage.name}.after", name, f"name stages that stand above it: {known}")
    usable = {stage.name, *_before(stage.after, above)}
    if not all(name in above for name in stage.after):
        usable |= set(all_names)  # what it follows is not known yet
    for word in stage.settings.args:
        for name, field in _REFERENCE.findall(word):
            if field == _DIRECTORY and name not in usable:
                rule = f"name a stage that it follows: {', '.join(sorted(usable - {stage.name})) or 'none'}"
                yield Problem(f"stages.{stage.name}.args", word, rule, "Or itself.")
            elif field != _DIRECTORY and name in all_names:
                yield Problem(f"stages.{stage.name}.args", word, f"be {{{name}.{_DIRECTORY}}}")


def _before(names: Iterable[str], above: Mapping[str, Stage]) -> set[str]:
    """The stages of these names, and all that they follow themselves."""
    found: set[str] = set()
    waiting = [name for name in names if name in above]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [earlier for earlier in above[name].after if earlier in above]
    return found
