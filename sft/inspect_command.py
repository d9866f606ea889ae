"""`python -m sft inspect`: the command line and what it prints."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sft.subject import Subject, add_options, has_color, split_words, subject_of, write_page
from sft.values import counted
from strict_settings import Problem, SettingsError

if TYPE_CHECKING:
    from sft.inspection import Inspected, Refused

DEFAULT_ROWS = range(3)


def main(words: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    options, settings = split_words(_parser(), words)
    rows = _rows(options)
    subject = subject_of(options, settings, options.file)
    from sft.inspection import inspected

    args = subject.args
    found = inspected(
        subject.sources,
        subject.masker,
        rows=rows,
        columns=args.columns,
        max_length=_max_length(subject, is_for_programs=options.json),
    )
    if options.json:
        _print_json(found)
        return 0
    _show(found, rows, options, subject)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sft inspect",
        description="Paints what of each row is trained. Without a tokenizer, with the quick start's small one.",
        allow_abbrev=False,
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="data: file, folder or hub name")
    parser.add_argument("--row", metavar="N", help="one row, counted from 0")
    parser.add_argument("--rows", metavar="A:B", help="rows A to B-1 (default 0:3, with --json all)")
    parser.add_argument("--full", action="store_true", help="print long documents whole")
    add_options(parser)
    return parser


def _rows(options: argparse.Namespace) -> range | None:
    """The rows that are asked for; None: all.

    Raises:
        SettingsError: they are no numbers.
    """
    if options.row is not None and options.rows is not None:
        raise SettingsError(Problem("--rows", options.rows, "not be given with --row", "Keep one of the two."))
    if options.row is not None:
        if not options.row.isdecimal():
            raise SettingsError(Problem("--row", options.row, "be a number, counted from 0"))
        return range(int(options.row), int(options.row) + 1)
    if options.rows is None:
        return None if options.json else DEFAULT_ROWS
    first, colon, last = options.rows.partition(":")
    if not colon or not all(part == "" or part.isdecimal() for part in (first, last)):
        raise SettingsError(Problem("--rows", options.rows, "be A:B, counted from 0", "B itself is left out, as 0:3."))
    return range(int(first or 0), int(last) if last else sys.maxsize)


def _max_length(subject: Subject, *, is_for_programs: bool) -> int | None:
    """Where documents are cut: where a length was named. Programs compare whole documents, unless they name one."""
    is_named = "max_length" in subject.given or (subject.has_config and not is_for_programs)
    return subject.args.max_length if is_named else None


def _print_json(found: Iterable[Inspected | Refused]) -> None:
    for item in found:
        sys.stdout.write(json.dumps(item.to_json()) + "\n")
    sys.stdout.flush()


def _show(
    found: Iterable[Inspected | Refused], rows: range | None, options: argparse.Namespace, subject: Subject
) -> None:
    """Paints in the terminal, and on a page where one is asked for."""
    from sft.inspection import Refused, pieces
    from sft.painting import Brush, legend, painted

    brush = Brush(has_color(options.color))
    views = []
    num_rows: set[int] = set()
    num_tokens = num_trained = 0
    for view in found:
        parts = [] if isinstance(view, Refused) else pieces(view, subject.masker)
        if not num_rows:
            print(legend(brush), end="\n\n")
        print(painted(view, parts, brush, is_full=options.full), flush=True)
        num_rows.add(view.row)
        if not isinstance(view, Refused):
            num_tokens, num_trained = num_tokens + len(view.kept), num_trained + view.num_trained_tokens
        if options.html:
            views.append((view, parts))
    if not num_rows:
        asked = "row" if options.row is not None else "rows"
        raise SettingsError(Problem(f"--{asked}", options.row or options.rows or "0:3", "be among the data's rows"))
    share = num_trained / max(num_tokens, 1)
    print(f"{counted(len(num_rows), 'row')}: {num_tokens:,} tokens, {num_trained:,} trained ({share:.0%})")
    if options.html:
        from sft.page import inspect_page

        write_page(options.html, inspect_page(views, title=", ".join(subject.sources)))
