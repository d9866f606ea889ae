"""What was typed after `python -m launch`, and what is said of words that are none of its. Imports nothing heavy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

from launch.errors import EXIT_CODES, REFUSED, LaunchError
from launch.options import VERBS

PROGRAM = "python -m launch"


class UsageError(SystemExit):
    """Words that make no sense, which has been said on stderr."""

    def __init__(self, message: str) -> None:
        super().__init__(REFUSED)
        self.message = message


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, in the form of all our errors."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}\n`{self.prog} --help` tells what can be given.", file=sys.stderr)
        raise UsageError(message)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command and its options, with `script_args`: what stands after `--`, to the letter.

    Raises:
        LaunchError: there is a `--` where nothing may follow it.
        UsageError: the words make no sense (2), which has been said.
        SystemExit: help was asked for (0).
    """
    # Split here and not by argparse: whatever stands after `--` belongs to the script.
    own, dashes, script_args = _split(list(words))
    if not own or own[0].startswith("-"):
        parser = _main_parser()
        parser.parse_args(own)
        parser.error("no COMMAND is given; the first word must be one.")
    name = own[0]
    if name not in VERBS:
        known = ", ".join(VERBS)
        _main_parser().error(f"COMMAND is {name!r}; it must be one of {known}.{_suggestion(name, VERBS)}")
    parser = parser_of(name)
    is_mixed = any(action.nargs == "*" for action in parser._actions)  # several names, with options between them
    arguments, unknown = (parser.parse_known_intermixed_args if is_mixed else parser.parse_known_args)(own[1:])
    if unknown:
        parser.error(_about_unknown(unknown[0], parser))
    if dashes and not VERBS[name].passes_on:
        passing = [f"`{verb}`" for verb, facts in VERBS.items() if facts.passes_on]
        raise LaunchError(f"`--` is given; only {', '.join(passing[:-1])} and {passing[-1]} pass words on.")
    arguments.command = name
    arguments.script_args = script_args
    return arguments


def _about_unknown(word: str, parser: argparse.ArgumentParser) -> str:
    if not word.startswith("-"):
        return f"the word is {word!r}; it must belong to an option."
    name, known = word.partition("=")[0], parser._option_string_actions
    of_script = " Those of the training script stand after `--`." if "--config" in known else ""
    remedy = _suggestion(name, known) + of_script
    return f"the option {name} is unknown; it must be a known option.{remedy}"


def _suggestion(word: str, known: Iterable[str]) -> str:
    from strict_settings import with_suggestion

    text = with_suggestion(word, known)
    return f" {text}" if text.startswith("Did") else ""


def _split(words: list[str]) -> tuple[list[str], bool, list[str]]:
    """(the words before the first `--`, whether there is one, the words after it)."""
    if "--" not in words:
        return words, False, []
    index = words.index("--")
    return words[:index], True, words[index + 1 :]


def _main_parser() -> _Parser:
    commands = "\n".join(f"  {name:<12} {verb.help}" for name, verb in VERBS.items())
    codes = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())
    parser = _Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND [options]",
        description="Runs a training script on several nodes, by Slurm or on this machine.\n\n"
        f"commands (`{PROGRAM} COMMAND --help` tells more):\n{commands}",
        epilog=f"exit codes:\n{codes}\n  all others are the training script's own; 128 + N is death by signal N",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    return parser


def parser_of(name: str) -> _Parser:
    """The options of one command. Only the one that was asked for is made: each costs a few milliseconds."""
    verb = VERBS[name]
    parser = _Parser(
        prog=f"{PROGRAM} {name}",
        description=f"{verb.help[0].upper()}{verb.help[1:]}.",
        epilog="example:\n" + "\n".join(f"  {PROGRAM} {name} {example}".rstrip() for example in verb.examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if verb.passes_on:
        parser.usage = f"{PROGRAM} {name} [options] [-- {verb.passes_on}]"
    verb.add(parser)
    parser.add_argument("--json", action="store_true", help="print JSON: docs/launcher.md describes it")
    return parser
