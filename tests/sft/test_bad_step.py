"""Which rows a loss that is no number came from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny import tiny_args, write_conversations

from sft import faults
from sft.bad_step import origin
from sft.errors import NonFiniteError
from sft.train import train_with
from sft.world import World


class Data:
    """Documents that are called by their numbers."""

    def place(self, index: int) -> str:
        return f"row {index + 1} of x.jsonl"


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([1.0, math.nan], "It arose on rank 0, from row 8 of x.jsonl, row 10 of x.jsonl."),
        ([1.0, 2.0], "Each rank's own loss is finite: a gradient overflowed. Rows of this step: row 4 of x.jsonl"),
    ],
)
def test_origin(losses: list[float], words: str) -> None:
    world = World(0, 0, 1, torch.device("cpu"))
    assert words in origin(losses, [[3, 5], [7, 9]], Data(), world)  # type: ignore[arg-type]


def test_many_rows_are_counted() -> None:
    world = World(0, 0, 1, torch.device("cpu"))
    assert "and 92 more" in origin([math.inf], [list(range(100))], Data(), world)  # type: ignore[arg-type]


def test_a_run_names_the_rows_of_its_file(tmp_path: Path) -> None:
    train_file = write_conversations(tmp_path / "train.jsonl", 8)
    faults.install({"SFT_FAULT": "nan@0:2"})
    try:
        with pytest.raises(NonFiniteError, match=r"step 2: loss is nan; .* from row \d of .*train.jsonl, row \d of"):
            train_with(tiny_args(train_file, tmp_path / "out", max_steps=3))
    finally:
        faults.install({})
