"""`python -m sft evaluate`, also a script for torchrun and `launch submit --script`: how a model does on held-out rows.

Each rank answers every so-many-th row by itself; the ranks meet before, to agree where answers stop, and at the end.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    # Started by its path, Python would look for modules beside this file, where `config` or `loop` would shadow others.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from sft.arguments import load_args
from sft.config import LAUNCHER_OPTIONS
from sft.errors import DataError, SftError
from sft.model_subject import add_model_options, model_subject
from sft.subject import split_words
from strict_settings import Problem, SettingsError

if TYPE_CHECKING:
    from sft.scores import Figures
    from sft.world import World

DAY_S = 86_400
"""Ranks that are done wait for the others: for a day, not for the half hour that a step's collective is given."""

NAMES = ("exact", "normalised", "f1", "rouge_l", "numeric")


def main(words: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    words = [word for word in words if word.partition("=")[0] not in LAUNCHER_OPTIONS]
    options, settings = split_words(_parser(), words)
    unknown = [name for name in options.metrics.split(",") if name not in NAMES]
    if unknown:
        raise SettingsError(Problem("--metrics", options.metrics, f"name some of {', '.join(NAMES)}"))
    if options.no_generation and options.no_loss:
        raise SettingsError(Problem("--no-loss", True, "not be given with --no-generation", "Keep one of the two."))
    pattern = pattern_of(options.regex)
    if options.check:
        load_args([*settings, f"--model_name_or_path={options.model}", f"--train_file={options.data}"])
        return 0
    from sft.world import world_from_env

    with world_from_env(DAY_S) as world:
        _evaluate(options, settings, pattern, world)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sft evaluate",
        description="Answers held-out rows, and scores the answers and the loss of the references.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="folder or hub name; an adapter's folder too")
    parser.add_argument("data", metavar="DATA", help="conversations: file, folder or hub name")
    parser.add_argument("--against", metavar="OTHER", help="another model, or the rows that an evaluation of it wrote")
    parser.add_argument("--output", metavar="DIR", type=Path, help="for rows and figures (default MODEL/evaluation)")
    parser.add_argument("--metrics", metavar="A,B", default=",".join(NAMES), help="default %(default)s")
    parser.add_argument("--regex", metavar="PATTERN", help="found in the answer; its group must be the reference's")
    parser.add_argument("--no-generation", action="store_true", help="only the loss")
    parser.add_argument("--no-loss", action="store_true", help="only answers")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON and nothing else")
    parser.add_argument("--check", action="store_true", help="check these words, and end")
    add_model_options(parser)
    return parser


def pattern_of(regex: str | None) -> re.Pattern[str] | None:
    """The pattern of `--regex`.

    Raises:
        SettingsError: it is none.
    """
    try:
        return re.compile(regex) if regex is not None else None
    except re.error as error:
        raise SettingsError(Problem("--regex", regex, "be a regular expression", f"{error}.")) from error


def _evaluate(
    options: argparse.Namespace, settings: Sequence[str], pattern: re.Pattern[str] | None, world: World
) -> None:
    from sft.scores import comparison_table, comparisons_of, figures_of, table

    rows, bad = _rows(options.model, options, settings, pattern, world)
    others = _others(options, settings, pattern, world) if options.against else None
    if not world.is_main:
        return
    found = figures_of(rows, options.model, options.data, bad)
    compared = comparisons_of(rows, others) if others is not None else None
    written = _write(found, rows, options)
    if options.json:
        more = {"against": {name: vars(each) for name, each in compared.items()}} if compared is not None else {}
        print(json.dumps({**found.to_json(), **more}, ensure_ascii=False))
        return
    print(table(found))
    if compared is not None:
        print(f"\n{comparison_table(compared, options.model, options.against)}")
    print(f"\nrows: {written}")


def _rows(
    model: str, options: argparse.Namespace, settings: Sequence[str], pattern: re.Pattern[str] | None, world: World
) -> tuple[list[dict[str, Any]], int]:
    """(the rows of all ranks in the order of the data, how many were left out); on rank 0, elsewhere its own."""
    from sft.agreement import gathered
    from sft.answering import Answering, decoding_of, metrics_of, scored

    subject = model_subject(model, options.data, settings, options.prompt_file, like=options.model)
    answering = Answering(subject, world)
    questions, num_bad = answering.questions(answering.read(options.data))
    is_asked = not options.no_generation
    decoding = decoding_of(options, subject.args, answering.room)
    generated = answering.generate(questions, decoding) if is_asked else [None] * len(questions)
    losses = answering.losses(questions) if not options.no_loss else [None] * len(questions)
    metrics = metrics_of(options.metrics.split(","), pattern)
    own = [
        scored(question, one, is_asked, loss, metrics, subject.masker.decode)
        for question, one, loss in zip(questions, generated, losses, strict=True)
    ]
    parts = gathered(world, own)
    rows = [row for part in parts for row in part] if world.is_main else own
    return sorted(rows, key=lambda row: int(row["row"])), num_bad


def _others(
    options: argparse.Namespace, settings: Sequence[str], pattern: re.Pattern[str] | None, world: World
) -> list[dict[str, Any]]:
    """The rows of the other model: read, where they are there."""
    path = Path(options.against)
    if path.suffix != ".jsonl":
        return _rows(options.against, options, settings, pattern, world)[0]
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [dict(json.loads(line)) for line in lines]
    except (OSError, ValueError) as error:
        remedy = "Name a model, or the file of rows that an evaluation wrote."
        raise DataError(f"{path} cannot be read as the rows of an evaluation: {error}. {remedy}") from error


def _write(found: Figures, rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> Path:
    """Writes rows and figures; the rows' path."""
    from sft.storage import storage_errors, write_json, write_text

    default = Path(options.model) if Path(options.model).is_dir() else Path()
    folder = options.output or default / "evaluation"
    stem = Path(options.data).name.partition(".")[0] or "data"
    with storage_errors(folder, "--output"):
        folder.mkdir(parents=True, exist_ok=True)
    path: Path = folder / f"{stem}.jsonl"
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_json(folder / f"{stem}.json", found.to_json())
    return path


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (SettingsError, SftError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
