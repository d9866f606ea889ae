"""What the data of a run was: what its encoding counted, and how long the documents are. data.json holds it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sft.dataset import ConversationDataset
from sft.lengths import bins, quantile
from sft.storage import write_json


def keep_data_figures(
    output_dir: Path, train: ConversationDataset, held_out: ConversationDataset | None, check: Callable[[], None]
) -> None:
    """Writes data.json: `data_figures` of `train` and, where there is one, of `eval`.

    Args:
        output_dir: the run directory.
        train: what is trained.
        held_out: what is evaluated.
        check: raises FencedError if another process writes the directory now.
    """
    found = {"train": data_figures(train)}
    if held_out is not None:
        found["eval"] = data_figures(held_out)
    check()
    write_json(output_dir / "data.json", found)


def data_figures(data: ConversationDataset) -> dict[str, Any]:
    """Plain values: `counts` (rows, bad rows, documents, tokens, trained_tokens, and documents truncated and dropped,
    by reason), `notes` (documents for each of the masker's), and of the documents of an epoch `quantiles` (tokens) and
    `lengths` (tokens from – to, documents)."""
    values, numbers = np.unique(np.asarray(data.lengths), return_counts=True)
    lengths = Counter(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    shares = {"median": 0.5, "95 %": 0.95, "longest": 1.0}
    return {
        "counts": {name: int(number) for name, number in data.counts.items() if number and name != "whole"},
        "notes": dict(data.notes),
        "quantiles": {name: quantile(lengths, share) for name, share in shares.items()},
        "lengths": [[bar.name, bar.number] for bar in bins(lengths)],
    }
