"""What the page on a run shows beside its records: rows of its data, painted; the memory that was to be expected."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sft.errors import SftError
from sft.run_files import data_of, records_of
from sft.subject import tell
from strict_settings import SettingsError

if TYPE_CHECKING:
    from sft.report import Samples


def estimate_of(run: Path) -> Mapping[str, int] | None:
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


def samples_of(run: Path, number: int) -> Samples:
    """The first rows of the run's data, as they are trained; none where the data or the tokenizer is gone."""
    if not number:
        return ()
    from sft.inspection import Inspected, inspected, pieces
    from sft.run_masker import masker_of
    from sft.tokenizer import build_tokenizer
    from sft.trained_weights import run_arguments

    try:
        args = run_arguments(run)
        masker = masker_of(args, build_tokenizer(args))
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
