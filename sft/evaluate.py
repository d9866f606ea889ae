"""`python -m sft evaluate`, also a script for torchrun and `launch submit --script`: how a model does on held-out rows.

Each rank answers every so-many-th row by itself; the ranks meet before, to agree where answers stop, and at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    # Started by its path, Python would look for modules beside this file, where `config` or `loop` would shadow others.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from sft.arguments import load_args
from sft.config import LAUNCHER_OPTIONS
from sft.errors import SftError
from sft.model_subject import ModelSubject, add_model_options, check_decoding, model_subject
from sft.subject import split_words, tell
from strict_settings import Problem, SettingsError

if TYPE_CHECKING:
    from sft.evaluation_files import Place
    from sft.questions import Question
    from sft.scores import Figures, Row
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
        raise SettingsError(
            Problem("--metrics", options.metrics, f"name some of {', '.join(NAMES)}", "--regex adds its own.")
        )
    check_decoding(options)
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
    from sft.agreement import together
    from sft.evaluation_files import place_for, read_rows, settings_beside

    # What can be wrong is found before a model is loaded, and what was paid for is written before it is compared.
    subject = _subject(options.model, options, settings)
    other: ModelSubject | None = None
    others: list[dict[str, Any]] | None = None
    asked: Mapping[str, Any] = {}
    with together(world):
        if options.against and Path(options.against).suffix == ".jsonl":
            others = read_rows(Path(options.against)) if world.is_main else []
            asked = settings_beside(Path(options.against))
        elif options.against:
            other = _subject(options.against, options, settings)
        place = place_for(_folder(options), options.data) if world.is_main else None
    answered = _answered(subject, options, pattern, world, others)
    with together(world):
        found = _written(answered, options, place) if place is not None else None
    if other is not None:
        others = _answered(other, options, pattern, world, answered.rows).rows
    if found is not None:
        _tell_other_settings(asked, answered.settings, options.against)
        _tell(answered.rows, others, found, options)


def _written(answered: _Answered, options: argparse.Namespace, place: Place) -> Figures:
    """The figures, written and told."""
    from sft.evaluation_files import write_evaluation
    from sft.scores import figures_of, table

    found = figures_of(answered.rows, options.model, options.data, answered.num_bad, answered.settings)
    write_evaluation(place, found, answered.rows)
    if place.taken_by is not None:
        tell(f"the rows are in {place.rows.name}: the name of their data is taken by {place.taken_by}")
    if not options.json:
        print(f"{table(found)}\n\nrows: {place.rows}", flush=True)
    return found


def _tell(rows: Sequence[Row], others: Sequence[Row] | None, found: Figures, options: argparse.Namespace) -> None:
    """The comparison, if there is one; the figures as JSON."""
    from sft.scores import comparison_table, comparisons_of, has_other_tokens

    compared = comparisons_of(rows, others) if others is not None else {}
    if options.json:
        more = {"against": {name: vars(each) for name, each in compared.items()}} if others is not None else {}
        print(json.dumps({**found.to_json(), **more}, ensure_ascii=False))
    elif others is not None:
        is_other = has_other_tokens(rows, others)
        print(f"\n{comparison_table(compared, options.model, options.against, with_other_tokens=is_other)}")


def _tell_other_settings(asked: Mapping[str, Any], own: Mapping[str, Any], name: str) -> None:
    """What was different when the rows were made that are compared with."""
    for key in sorted(asked.keys() & own.keys()):
        if asked[key] != own[key]:
            before, now = (json.dumps(each[key], ensure_ascii=False) for each in (asked, own))
            tell(f"{name} was asked with {key}: {before}, this one with {now}")


def _subject(model: str, options: argparse.Namespace, settings: Sequence[str]) -> ModelSubject:
    return model_subject(model, options.data, settings, options.prompt_file, like=options.model)


def _folder(options: argparse.Namespace) -> Path:
    default = Path(options.model) if Path(options.model).is_dir() else Path()
    folder: Path = options.output or default / "evaluation"
    return folder


@dataclasses.dataclass(frozen=True)
class _Answered:
    """What one model did."""

    rows: list[dict[str, Any]]
    """Of all ranks, in the order of the data."""
    num_bad: int
    """Rows that were left out."""
    settings: dict[str, Any]
    """How it was asked."""


def _answered(
    subject: ModelSubject,
    options: argparse.Namespace,
    pattern: re.Pattern[str] | None,
    world: World,
    others: Sequence[Row] | None,
) -> _Answered:
    """
    Args:
        subject: the model.
        options: of the command line.
        pattern: of `--regex`.
        world: the ranks, which share the rows.
        others: rows of which the model's are to be; rank 0's count.

    Raises:
        DataError: the data's questions are others.
    """
    from sft.answering import Answering, decoding_of, metrics_of, scored

    answering = Answering(subject, world)
    questions, num_bad = answering.questions(answering.read(options.data))
    if others is not None:
        _require_same(questions, others, world)
    is_asked = not options.no_generation
    decoding = decoding_of(options, subject.args, answering.room)
    generated = answering.generate(questions, decoding) if is_asked else [None] * len(questions)
    losses = answering.losses(questions) if not options.no_loss else [None] * len(questions)
    metrics = metrics_of(options.metrics.split(","), pattern)
    own = [
        scored(question, one, is_asked, loss, metrics, subject.masker.decode)
        for question, one, loss in zip(questions, generated, losses, strict=True)
    ]
    asked = {
        "system_prompt": subject.args.system_prompt,
        "max_length": answering.max_length,
        "decoding": vars(decoding) if is_asked else None,
        "regex": options.regex,
    }
    return _Answered(_gathered(own, world), num_bad, asked)


def _require_same(questions: Sequence[Question], others: Sequence[Row], world: World) -> None:
    """Before it is paid for answers that cannot be compared.

    Raises:
        DataError: the questions of all ranks are not those of the others.
    """
    from sft.agreement import together
    from sft.scores import require_same_questions

    asked = _gathered([{"row": each.row, "question_sha256": each.sha256} for each in questions], world)
    with together(world):
        if world.is_main:
            require_same_questions(asked, others)


def _gathered(own: list[dict[str, Any]], world: World) -> list[dict[str, Any]]:
    """The rows of all ranks in the order of the data (a collective)."""
    from sft.agreement import gathered

    return sorted((row for part in gathered(world, own) for row in part), key=lambda row: int(row["row"]))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (SettingsError, SftError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
