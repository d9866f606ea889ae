"""Models whose rows cannot be shared among ranks are refused before the first step, by one error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import QWEN3

from sft.config import Args
from sft.engine import TorchEngine
from sft.model_check import prepare_model
from sft.optimizer import build_optimizer
from sft.world import SequenceGroup, World
from strict_settings import SettingsError

MAMBA = {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}


@pytest.mark.parametrize(
    ("config", "size", "reason"),
    [
        (QWEN3, 3, "It has 4 attention heads: take a divisor of that number."),
        (MAMBA, 2, "Its attention cannot run per document: mamba, "),
    ],
)
def test_a_model_whose_rows_cannot_be_shared_is_refused(config: dict[str, Any], size: int, reason: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    # The first rank of a group: it is refused before anything is exchanged.
    world = World(0, 0, 1, torch.device("cpu"), SequenceGroup(0, size))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**config, "vocab_size": 96}))
    engine = TorchEngine(
        model, lambda model: build_optimizer(model, Args()), world, bf16=False, max_grad_norm=1.0, fsdp=False
    )
    with pytest.raises(SettingsError) as caught:
        prepare_model(engine, Args(sequence_parallel_size=size), world)
    assert f"sequence_parallel_size is {size}; it must be 1 for this model. {reason}" in str(caught.value)


def test_an_attention_of_another_kind_is_refused_with_the_settings() -> None:
    (problem,) = (one for one in Args(sequence_parallel_size=2, attn_implementation="eager").problems()
                  if one.field == "attn_implementation")  # fmt: skip
    assert "auto with sequence_parallel_size" in problem.rule
