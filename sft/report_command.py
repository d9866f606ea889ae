"""`python -m sft report`: the command line."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sft.errors import SftError
from sft.model_subject import number_option
from sft.run_files import data_of, records_of
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
    runs = [
        read_run(run, number, _samples(run, num_samples), None if options.no_estimate else _estimate(run))
        for number, run in enumerate(options.runs)
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


def _estimate(run: Path) -> Mapping[str, int] | None:
    """Bytes of each part of a rank's memory by `sft.estimate`, for full micro-batches of the run's longest documents;
    None where the run tells too little, or the model or the tokenizer is gone."""
    ended = [record for record in records_of(run) if record["type"] == "summary" and record.get("ranks")]
    figures = data_of(run).get("train")
    if not ended or not figures:
        return None
    import torch

    from sft.estimate import RESERVED_BYTES, Machine, Rows, own_peak
    from sft.tokenizer import build_tokenizer
    from sft.trained_weights import run_arguments
    from sft.world import has_bf16

    device, num_ranks = str(ended[-1]["device"]), len(ended[-1]["ranks"]["peak_bytes"])
    try:
        args = run_arguments(run)
        bf16 = args.in_bf16(device == "cuda" or has_bf16(torch.device(device)))
        emulates = device == "cpu" and not has_bf16(torch.device("cpu"))
        machine = Machine(device, 1, num_ranks, 0, bf16, emulates_bf16=emulates)
        share = figures["counts"]["trained_tokens"] / figures["counts"]["tokens"]
        parts = own_peak(args, build_tokenizer(args), machine, Rows(figures["quantiles"]["longest"], share)).parts
    except (SettingsError, SftError) as error:
        tell(f"{run}: no memory is estimated, since {error}")
        return None
    # On a GPU what tensors take was measured; on a CPU the whole process.
    return {**parts, "the process itself": RESERVED_BYTES["cpu"]} if device == "cpu" else parts


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
