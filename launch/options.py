"""The command line of `python -m launch`, and what is said of words that are none of it. Imports nothing heavy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn

from launch.errors import EXIT_CODES, REFUSED, LaunchError

OPTIONS = (
    # option, placeholder, help: each is a LaunchSettings field of the same name
    ("nodes", "N", "number of nodes (default 1)"),
    ("procs-per-node", "N", "ranks per node (default: the GPUs of a node, or 1)"),
    ("launcher", "NAME", "torchrun (default) or deepspeed"),
    ("zero", "STAGE", "DeepSpeed ZeRO stage 0, 1, 2 or 3, from ds_configs/"),
    ("executor", "NAME", "auto (default), slurm, or local: N agents on this machine"),
    ("script", "PATH", "training script (default: sft/train.py of this package)"),
    ("gpus-per-node", "N", "GPUs per node (default 0)"),
    ("cpus-per-task", "N", "CPUs per node (default: one per rank; locally an equal share)"),
    ("mem-gb", "N", "memory per node in GiB"),
    ("time-min", "N", "time limit in minutes"),
    ("partition", "NAME", "Slurm partition"),
    ("account", "NAME", "Slurm account"),
    ("qos", "NAME", "Slurm quality of service"),
    ("constraint", "TEXT", "node features, as in sbatch"),
    ("exclude", "NODES", "nodes to avoid, as in sbatch"),
    ("runs-dir", "PATH", "where run directories are made (default runs)"),
    ("chain", "NAME", "how a stopped run goes on: requeue, singleton or none"),
    ("max-restarts", "N", "how many failures may be followed by another attempt (default 10)"),
    ("signal-lead-s", "N", "seconds before the time limit at which the state is saved (default 120)"),
    ("env-file", "PATH", "NAME=VALUE lines with secrets for the ranks, of mode 0600"),
    ("python", "PATH", "Python of the job (default: this one)"),
)

RESUME_OPTIONS = tuple(
    option
    for option in OPTIONS
    if option[0] in ("nodes", "time-min", "partition", "account", "qos", "constraint", "exclude", "signal-lead-s")
)
"""What may be different when a run is resumed."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, in the form of all our errors."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}\n`{self.prog} --help` tells what can be given.", file=sys.stderr)
        sys.exit(REFUSED)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command and its options, with `script_args`: what stands after `--`, to the letter.

    Raises:
        LaunchError: there is a `--` where nothing may follow it.
        SystemExit: help was asked for (0), or the words make no sense (2), which has been said.
    """
    # Split here and not by argparse: whatever stands after `--` belongs to the script.
    own, dashes, script_args = _split(list(words))
    parser, commands = _parser()
    if own and not own[0].startswith("-") and own[0] not in commands:
        parser.error(f"COMMAND is {own[0]!r}; it must be one of {', '.join(commands)}.{_suggestion(own[0], commands)}")
    arguments, unknown = parser.parse_known_args(own)
    if unknown:
        commands[arguments.command].error(_about_unknown(unknown[0], commands[arguments.command]))
    if dashes and arguments.command not in ("submit", "drill"):
        raise LaunchError("`--` is given; only `submit` passes arguments on to a script, as does `drill`.")
    arguments.script_args = script_args
    return arguments


def _about_unknown(word: str, parser: argparse.ArgumentParser) -> str:
    if not word.startswith("-"):
        return f"the word is {word!r}; it must belong to an option."
    name, known = word.partition("=")[0], parser._option_string_actions
    remedy = _suggestion(name, known) or (
        " Those of the training script stand after `--`." if "--config" in known else ""
    )
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


def _parser() -> tuple[_Parser, dict[str, argparse.ArgumentParser]]:
    """(the whole command line, the parser of each command)."""
    codes = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())
    parser = _Parser(
        prog="python -m launch",
        description="Runs a training script on several nodes, by Slurm or on this machine.",
        epilog=f"exit codes:\n{codes}\n  all others are the training script's own; 128 + N is death by signal N",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    _add_submit(commands.add_parser("submit", help="start a job", allow_abbrev=False))
    _add_resume(commands.add_parser("resume", help="go on with a run that stopped or failed", allow_abbrev=False))
    _add_drill(commands.add_parser("drill", help="prove that runs survive stops, deaths and hangs", allow_abbrev=False))
    for name, text in (
        ("status", "how a run stands, and what failed first"),
        ("logs", "what the ranks print"),
        ("cancel", "stop a run"),
        ("wait", "until the run ends; exits with its code"),
    ):
        parser_of_command = commands.add_parser(name, help=text, allow_abbrev=False)
        parser_of_command.add_argument("run", nargs="?", metavar="RUN", help="name, job id or directory (latest)")
        if name == "logs":
            parser_of_command.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
            parser_of_command.add_argument("--rank", type=int, metavar="R", help="only this rank")
            parser_of_command.add_argument("--node", type=int, metavar="I", help="only this node, with its launcher")
    return parser, dict(commands.choices)


def _add_submit(parser: argparse.ArgumentParser) -> None:
    parser.usage = "python -m launch submit [options] [-- arguments for the training script]"
    _add_settings(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted, and submit nothing")
    parser.add_argument("--wait", action="store_true", help="follow rank 0 and exit with the job's code")


def _add_drill(parser: argparse.ArgumentParser) -> None:
    parser.usage = "python -m launch drill [options] [-- arguments for the training script]"
    _add_settings(parser)
    parser.add_argument("--steps", type=int, default=9, metavar="N", help="optimizer steps of each run (default 9)")
    parser.add_argument(
        "--row-timeout-s", type=float, default=1800.0, metavar="S", help="a run is cancelled after this (default 1800)"
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    for option, metavar, text in OPTIONS:
        parser.add_argument(f"--{option}", metavar=metavar, help=text)
    parser.add_argument("--fsdp", action="store_true", help="PyTorch FSDP2")
    parser.add_argument("--config", metavar="PATH", help="settings file (default: the quick start's)")
    parser.add_argument("--profile", metavar="NAME", help="file of launch settings, or its name in slurm/profiles/")
    parser.add_argument("--name", metavar="NAME", help="name of the run (default: settings file and time)")
    parser.add_argument("--env", metavar="K=V", action="append", default=[], help="variable for the ranks; repeatable")
    parser.add_argument("--skip-audit", action="store_true", help="submit without looking at the data first")


def _add_resume(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", metavar="RUN", help="name, job id or directory (latest)")
    for option, metavar, text in RESUME_OPTIONS:
        parser.add_argument(f"--{option}", metavar=metavar, help=text)
    parser.add_argument(
        "--override", metavar="KEY=VALUE", action="append", default=[], help="setting with a new value; repeatable"
    )
    parser.add_argument("--accept-data-change", action="store_true", help="go on although the data has changed")
    parser.add_argument("--wait", action="store_true", help="follow rank 0 and exit with the job's code")
