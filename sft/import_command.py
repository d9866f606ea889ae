"""`python -m sft import-config`: another trainer's settings file → ours."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sft.arguments import load_args
from sft.migration.mapping import imported
from sft.migration.text import report_text, settings_text
from sft.migration.tools import TOOLS, num_known, tool_of
from sft.storage import storage_errors
from strict_settings import Problem, SettingsError, read_yaml


def main(words: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(words)
    source = read_yaml(options.file)
    tool = TOOLS[options.tool] if options.tool else tool_of(source.values, options.file)
    found = imported(tool, source, Path(options.file).resolve().parent)
    text = settings_text(found, Path(options.file).name)
    if options.output is None:
        print(text, end="")
    else:
        _write(Path(options.output), text)
    print(report_text(found), file=sys.stderr)
    _tell_of_another(num_known(source.values), tool.name)
    if options.output is None:
        print("These settings are not checked; with --output RUN.yaml they are.", file=sys.stderr)
    else:
        _check(options.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sft import-config",
        description="Turns settings of TRL, axolotl or LLaMA-Factory into ours, and names what it cannot carry over.",
        epilog="docs/migration.md lists what becomes of each key.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="their YAML file")
    parser.add_argument("--from", dest="tool", choices=tuple(TOOLS), help="whose it is (default: told by its keys)")
    parser.add_argument("--output", metavar="RUN.yaml", help="a new file for the settings, which is then checked")
    return parser


def _write(path: Path, text: str) -> None:
    """
    Raises:
        SettingsError: the file is there.
        StorageError: it cannot be written.
    """
    if path.exists():
        raise SettingsError(Problem("--output", str(path), "be a new file", "Remove it, or name another."))
    with storage_errors(path, "--output"), path.open("x", encoding="utf-8") as file:
        file.write(text)


def _tell_of_another(counts: Mapping[str, int], chosen: str) -> None:
    """Says where `--from` names a trainer that knows fewer of the keys than another does."""
    most = max(counts, key=lambda name: counts[name])
    if counts[most] > counts[chosen]:
        told = f"{counts[most]} of its keys are known to {TOOLS[most].title}, {counts[chosen]} to {TOOLS[chosen].title}"
        print(f"{told}. Is --from {most} meant?", file=sys.stderr)


def _check(path: str) -> None:
    """Says what is left to do before the settings can be used."""
    try:
        load_args(config=path)
    except SettingsError as error:
        for problem in error.problems:
            print(f"  to do: {problem}", file=sys.stderr)
    else:
        print(f"{path} is checked. Next: python -m sft audit {path}", file=sys.stderr)
