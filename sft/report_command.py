"""`python -m sft report`: the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sft.errors import DataError
from sft.model_subject import number_option
from sft.run_files import has_whole_log
from sft.subject import tell, write_page
from strict_settings import Problem, SettingsError


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
        if not has_whole_log(run):
            raise DataError(
                f"{run / 'training_log.json'} is no whole list of records; training writes it whole. Copy it anew."
            )
    from sft.plots import can_plot
    from sft.report import names_of, read_run, report_page
    from sft.report_inputs import estimate_of, samples_of

    if not can_plot():
        tell("matplotlib is missing: the page has no curves. pip install 'cleansft[report]'")
    runs = [
        read_run(run, number, samples_of(run, num_samples), None if options.no_estimate else estimate_of(run), name)
        for number, (run, name) in enumerate(zip(options.runs, names_of(options.runs), strict=True))
    ]
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
    parser.add_argument("--no-estimate", action="store_true", help="do not work out what memory was to be expected")
    return parser
