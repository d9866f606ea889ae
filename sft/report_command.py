"""`python -m sft report`: the command line."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sft.errors import SftError
from sft.model_subject import number_option
from sft.subject import tell, write_page
from strict_settings import Problem, SettingsError

if TYPE_CHECKING:
    from sft.report import Samples


def main(words: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(words)
    num_samples = int(number_option("samples", options.samples, low=0, high=100, whole=True))
    if options.check:
        return 0
    for run in options.runs:
        if not (run / "training_log.json").is_file():
            rule = "be a run directory, with the training_log.json that training writes"
            raise SettingsError(Problem("RUN", str(run), rule))
    from sft.plots import can_plot
    from sft.report import read_run, report_page

    if not can_plot():
        tell("matplotlib is missing: the page has no curves. pip install 'cleansft[report]'")
    runs = [read_run(run, number, _samples(run, num_samples)) for number, run in enumerate(options.runs)]
    write_page(options.output or options.runs[0] / "report.html", report_page(runs))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sft report",
        description="One page on one run, or on several laid over each other, that needs nothing from anywhere.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run directory")
    parser.add_argument("--output", metavar="OUT.html", type=Path, help="default: RUN/report.html, in the first")
    parser.add_argument("--check", action="store_true", help="check these words, and end")
    parser.add_argument("--samples", metavar="N", default="2", help="rows of the data to paint (default 2; 0: none)")
    return parser


def _samples(run: Path, number: int) -> Samples:
    """The first rows of the run's data, as they are trained; none where the data or the tokenizer is gone."""
    if not number:
        return ()
    from sft.inspection import Inspected, inspected, pieces
    from sft.masking import Masker, MaskOptions
    from sft.tokenizer import build_tokenizer, pad_token_id
    from sft.trained_weights import run_arguments

    try:
        args = run_arguments(run)
        tokenizer = build_tokenizer(args)
        masker = Masker(tokenizer, pad_token_id(tokenizer), MaskOptions.of(args))
        rows = inspected(
            args.train_sources, masker, rows=range(number), columns=args.columns, max_length=args.max_length
        )
        return [
            (view, pieces(view, masker) if isinstance(view, Inspected) else ())
            for view in itertools.islice(rows, number)
        ]
    except (SettingsError, SftError) as error:
        tell(f"{run}: no rows are painted, since {error}")
        return ()
