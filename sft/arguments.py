"""Where settings come from: the YAML file and the command line → validated `Args`. Imports no torch."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from sft.config import ALIASES, ROOT, Args
from sft.setting_files import found_file
from sft.setting_rules import FILE_SETTINGS
from sft.settings_page import default_of
from strict_settings import Problem, SettingsError, Source, build, field_docs, located, parse_command_line, read_yaml

PROMPT_FILE = Path("prompts") / "system_prompt.txt"
"""Where `optimize-prompt` writes; `evaluate` and `chat` look there from the working directory, as does
`system_prompt: auto`."""

_OF_THE_LAUNCHER = {
    "zero": "Write --deepspeed ds_configs/zero2.json (or zero0, zero1, zero3); --zero is the launcher's.",
    **dict.fromkeys(
        ("nodes", "procs_per_node", "gpus_per_node", "launcher", "executor", "hosts", "partition", "time_min"),
        "It is an option of `python -m launch`, or of `launch:` in the settings file.",
    ),
}
"""Options of the launcher → what to do here."""
_BUNDLED = {"chat_template_path": ROOT / "sft" / "templates", "deepspeed": ROOT}


def load_args(
    words: Sequence[str] | None = None, *, config: str | Path | None = None, world_size: int | None = None
) -> Args:
    """The settings of a YAML file (`--config FILE` among the words, or `config`), overridden by the words.

    The first word may be the settings file itself, or the training data: `run.yaml`, `conversations.jsonl`. Paths are
    looked for from the working directory, then beside the settings file, then among what is bundled.
    With a `world_size` the batch arithmetic is checked too.

    Raises:
        SettingsError: everything that is wrong, in one message, with file and line.
    """
    return checked(read_settings(words, config=config), world_size=world_size)


def read_settings(words: Sequence[str] | None = None, *, config: str | Path | None = None) -> list[Source]:
    """What the settings file and the words say, as `load_args` takes them, before it is checked.

    Raises:
        SettingsError: the file cannot be read, or the words are no options.
    """
    remaining = _as_options(words or ())
    config = _take_config(remaining) or config
    sources = [read_yaml(config)] if config is not None else []
    sources.append(parse_command_line(Args, remaining, ALIASES, _OF_THE_LAUNCHER))
    folders = [Path(config).resolve().parent] if config is not None else []
    return [_resolved(source, folders) for source in sources]


def checked(sources: Sequence[Source], *, world_size: int | None = None) -> Args:
    """The settings of the sources, later ones winning.

    Raises:
        SettingsError: everything that is wrong, in one message, with file and line.
    """
    check = (lambda args: args.batch_problems(world_size)) if world_size is not None else (lambda _: ())
    return build(Args, *sources, aliases=ALIASES, check=check)


@contextlib.contextmanager
def naming_places(sources: Sequence[Source]) -> Iterator[None]:
    """Adds file and line to a SettingsError that is raised meanwhile: what shows only with the model, the device or
    the data is told as what shows at once."""
    try:
        yield
    except SettingsError as error:
        raise SettingsError(located(error.problems, Args, *sources, aliases=ALIASES)) from error


def _as_options(words: Sequence[str]) -> list[str]:
    """The words, a file in the first place with the option that it belongs to."""
    first = list(words[:1])
    if first and not first[0].startswith("-"):
        is_settings = Path(first[0]).suffix.lower() in (".yaml", ".yml")
        first.insert(0, "--config" if is_settings else "--train_file")
    return [*first, *words[1:]]


def _take_config(words: list[str]) -> str | None:
    """Removes `--config FILE` from the words."""
    given = [index for index, word in enumerate(words) if word.partition("=")[0] == "--config"]
    if not given:
        return None
    if len(given) > 1:
        raise SettingsError(Problem("--config", [words[index] for index in given], "be given once"))
    _, equals, file = words.pop(given[0]).partition("=")
    if not equals and (given[0] == len(words) or words[given[0]].startswith("--")):
        raise SettingsError(Problem("--config", None, "be followed by a YAML file"))
    return file if equals else words.pop(given[0])


def _resolved(source: Source, folders: list[Path]) -> Source:
    """The source with its file names made findable from any working directory."""
    values = dict(source.values)
    for key, value in values.items():
        name = ALIASES.get(key, key)
        if name in FILE_SETTINGS and isinstance(value, str):
            values[key] = _found(name, value, folders)
        if name == "system_prompt" and value == "auto":
            values[key] = _found_prompt(folders)
        if name == "train_files" and isinstance(value, dict):
            values[key] = {_found(name, str(file), folders): times for file, times in value.items()}
    return dataclasses.replace(source, values=values)


def _found(name: str, value: str, folders: list[Path]) -> str:
    if found_file(value):
        return value
    bundled = [_BUNDLED[name]] if name in _BUNDLED else []
    suffixes = ("", ".jinja") if name == "chat_template_path" else ("",)
    for candidate in (folder / f"{value}{suffix}" for folder in [*folders, *bundled] for suffix in suffixes):
        if found_file(str(candidate)):
            return str(candidate)
    return value


def _found_prompt(folders: list[Path]) -> str:
    """What `system_prompt: auto` stands for."""
    for folder in (Path(), *folders):
        path = folder / PROMPT_FILE
        if path.is_file():
            return path.read_text(encoding="utf-8", errors="replace").strip()
    remedy = "No such file, looked for from the working directory and beside the settings file."
    raise SettingsError(Problem("system_prompt", "auto", f"come with {PROMPT_FILE}", remedy))


def describe_settings() -> str:
    """Every setting with its default and what it does, for --help."""
    lines, docs = [], field_docs(Args)
    for setting in dataclasses.fields(Args):
        default = default_of(setting)
        lines.append(f"  --{setting.name}{f' [{default}]' if default is not None else ''}\n      {docs[setting.name]}")
    aliases = ", ".join(f"{alias} = {name}" for alias, name in ALIASES.items())
    return "\n".join([*lines, "", f"other spellings: {aliases}"])
