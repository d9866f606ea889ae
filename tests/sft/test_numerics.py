"""Half precision is for computing only: weights live in float32, and move by steps that bfloat16 could not hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import moves_below_bfloat16, tiny_args, write_conversations

from sft.train import train_with

TINY_STEPS: dict[str, Any] = {
    "bf16": True, "learning_rate": 1e-8, "warmup_steps": 0, "lr_scheduler_type": "constant", "save_dtype": "float32",
}  # fmt: skip


PARAMETERS = {"param_dtype": "bfloat16"}


@pytest.mark.parametrize("settings", [{}, {"fsdp": True}, PARAMETERS], ids=["torch", "fsdp2", "bf16 parameters"])
def test_tiny_learning_rates_move_weights_that_bfloat16_would_keep(tmp_path: Path, settings: dict[str, Any]) -> None:
    train_file = write_conversations(tmp_path / "train.jsonl", 8)
    for num_steps in (1, 5):
        args = tiny_args(train_file, tmp_path / f"{num_steps}", **TINY_STEPS, max_steps=num_steps, **settings)
        train_with(args)
    one, five = (load_file(tmp_path / name / "model.safetensors") for name in ("1", "5"))
    moves_below_bfloat16(one, five, 4 * TINY_STEPS["learning_rate"])


def test_the_check_itself_notices_weights_that_stand_still_or_are_rounded() -> None:
    start = {"weight": torch.randn(64, 64) * 0.02}
    moved = {"weight": start["weight"] + 4e-8}
    moves_below_bfloat16(start, moved, 4e-8)
    rounded = {name: tensor.bfloat16().float() for name, tensor in start.items()}
    for other in (start, rounded):
        with pytest.raises(AssertionError):
            moves_below_bfloat16(start, other, 4e-8)
