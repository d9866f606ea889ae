"""What `inspect` and `audit` look at: the words of their command lines → data, settings and masker."""

from __future__ import annotations

import argparse
import os
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.arguments import load_args
from sft.config import ALIASES, ROOT, Args
from sft.storage import storage_errors, write_text
from strict_settings import Problem, SettingsError

if TYPE_CHECKING:
    from sft.masking import Masker

QUICK_START_TOKENIZER = ROOT / "sft" / "quickstart" / "tokenizer"
CHATML = ROOT / "sft" / "templates" / "chatml.jinja"

_NO_DATA = "-"
"""Stands in for a file name while settings are checked: a missing data file is an error of the data."""


@dataclass(frozen=True)
class Subject:
    """Data and how it would be trained."""

    args: Args
    sources: Mapping[str, float]
    """File → how often its rows are seen in an epoch."""
    given: frozenset[str]
    """Names of the settings that the command line has."""
    has_config: bool
    """Whether there is a settings file."""
    masker: Masker


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what is looked at; every setting of `Args` is an option beside them."""
    parser.add_argument("--config", metavar="RUN.yaml", help="take model, tokenizer and mask settings from this file")
    parser.add_argument("--model", metavar="M", help="take the tokenizer of this model (hub name or folder)")
    parser.add_argument("--tokenizer", metavar="T", help="tokenizer: hub name, folder or tokenizer.json")
    parser.add_argument("--chat-template", metavar="F", help="a Jinja file, or chatml")
    parser.add_argument("--html", metavar="OUT.html", type=Path, help="write a page to look at")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto", help="default auto")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.epilog = (
        "Every setting of a run is an option too, by its name in the settings file: --max_length 4096, "
        "--train_on last, --history as_rendered, --columns '{prompt: ask, response: reply}'. "
        "`python -m sft train --help` lists them."
    )


def split_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """(the command's own options, the words that are settings)."""
    own_names = {name for action in parser._actions for name in action.option_strings}
    switches = _switches()
    own, settings = [], []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        name, equals, _ = word.partition("=")
        if not word.startswith("--") or name in own_names:
            own.append(word)
            if name in own_names and not equals and _takes_value(parser, name) and remaining:
                own.append(remaining.pop(0))
            continue
        settings.append(word)
        field = name[2:].replace("-", "_")
        is_value = bool(remaining) and not remaining[0].startswith("--")
        if not equals and is_value and (field not in switches or remaining[0].lower() in ("true", "false")):
            settings.append(remaining.pop(0))
    return parser.parse_args(own), settings


def _takes_value(parser: argparse.ArgumentParser, name: str) -> bool:
    return any(name in action.option_strings and action.nargs != 0 for action in parser._actions)


def _switches() -> set[str]:
    """Settings that are given without a value."""
    hints = typing.get_type_hints(Args)
    return {name for name, hint in hints.items() if hint is bool or bool in typing.get_args(hint)}


def subject_of(options: argparse.Namespace, settings: Sequence[str], data: str | None) -> Subject:
    """What the options name.

    Args:
        options: with what `add_options` adds.
        settings: words that are settings of `Args`.
        data: a source of data; by default the training data of the settings file.

    Raises:
        SettingsError: settings that are wrong, or a tokenizer or chat template that cannot be loaded.
        DataError: there is no such data, or the tokenizer has no template that masks can be made with.
    """
    from sft.sources import source_files

    given = setting_names(settings)
    words = [*settings, *_tokenizer_words(options, given)]
    if options.config:
        words += ["--config", options.config]
    elif data is None:
        raise SettingsError(Problem("FILE", None, "be given", "Name the data, or a settings file with --config."))
    elif not given & {"train_file", "train_files"}:
        words.append(f"--train_file={_NO_DATA}")
    args = load_args(words)
    sources = args.train_sources if data is None else {data: 1.0}
    for name in sources:
        source_files(name)  # a name that is wrong is told before the tokenizer is loaded
    tokenizer = tokenizer_with_template(args)
    from sft.run_masker import masker_of

    masker = masker_of(args, tokenizer, has_model=bool(options.config or options.model))
    return Subject(args, sources, given, bool(options.config), masker)


def setting_names(words: Sequence[str]) -> frozenset[str]:
    """The settings that some words are of, under their own names."""
    names = (word[2:].partition("=")[0].replace("-", "_") for word in words if word.startswith("--"))
    return frozenset(ALIASES.get(name, name) for name in names)


def _tokenizer_words(options: argparse.Namespace, given: frozenset[str]) -> list[str]:
    """The settings that the options for the tokenizer stand for."""
    words = []
    tokenizer = options.tokenizer or options.model
    if tokenizer is not None and Path(tokenizer).name == "tokenizer.json":
        tokenizer = str(Path(tokenizer).parent)
    named = given & {"model_name_or_path", "tokenizer_name", "model_config"}
    if tokenizer is None and not options.config and not named:
        tokenizer = str(QUICK_START_TOKENIZER)
        tell("no tokenizer is given: the quick start's small one is taken, with its template. Choose with --tokenizer.")
    if tokenizer is not None:
        words.append(f"--tokenizer_name={tokenizer}")
        if not options.config and "model_name_or_path" not in given and "model_config" not in given:
            words.append(f"--model_name_or_path={tokenizer}")
    elif not options.config and "tokenizer_name" in named and not named - {"tokenizer_name"}:
        words.append(f"--model_name_or_path={QUICK_START_TOKENIZER}")  # never loaded: the tokenizer has a name
    if options.chat_template is not None:
        words.append(f"--chat_template_path={options.chat_template}")
    return words


def tokenizer_with_template(args: Args) -> Any:
    """The tokenizer; with the bundled chatml template, and a word about it, where it has none."""
    from sft.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(args)
    if not tokenizer.chat_template:
        tokenizer.chat_template = CHATML.read_text(encoding="utf-8")
        tell("the tokenizer has no chat template: the bundled chatml is taken. Choose with --chat-template.")
    return tokenizer


def has_color(choice: str) -> bool:
    """Whether to paint: `auto` is for terminals, unless https://no-color.org asks for none."""
    if choice != "auto":
        return choice == "always"
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def tell(text: str) -> None:
    """A line for people, apart from what is printed for programs."""
    print(text, file=sys.stderr, flush=True)


def write_page(path: Path, text: str) -> None:
    """Writes a page, and says where it is. One that was there stays until the new one is whole.

    Raises:
        StorageError: it cannot be written.
    """
    if path.exists() and not path.is_file():  # a pipe, /dev/stdout
        with storage_errors(path, "place"):
            path.write_text(text, encoding="utf-8", errors="backslashreplace")  # refused rows may hold half characters
    else:
        with storage_errors(path, "place"):
            path.resolve().parent.mkdir(parents=True, exist_ok=True)
        write_text(path.resolve(), text, "place")
    tell(f"page: {path}")
