"""`activation_offload`: what recomputed layers save is kept elsewhere, and the gradients are the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import QWEN3, tiny_args, write_conversations
from torch import Tensor

from sft.activation_offload import offload_inputs
from sft.arguments import load_args
from sft.config import Args
from sft.estimate import Machine, Rows, own_peak
from sft.lora_args import LoraArgs
from sft.model import build_model
from sft.tokenizer import build_tokenizer
from sft.train import train_with
from strict_settings import SettingsError


class Copies:
    """A store that keeps copies, and counts them."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.num_taken = 0

    def put(self, tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            self.shapes.append(tuple(tensor.shape))
        return tensor.detach().clone()

    def get(self, kept: Tensor) -> Tensor:
        self.num_taken += kept.is_floating_point()
        return kept


@pytest.fixture
def args(tmp_path: Path) -> Args:
    five = {**QWEN3, "num_hidden_layers": 5}
    return tiny_args(tmp_path / "none", tmp_path, model_config=five, gradient_checkpointing=True)


def gradients(args: Args, prepare: Callable[[Any], Any] = lambda model: None) -> dict[str, Tensor]:
    model = build_model(args, build_tokenizer(args)).model.train()
    prepare(model)
    ids = torch.arange(40).view(2, 20)
    model(ids, labels=ids).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("lora", [LoraArgs(enabled=False), LoraArgs(r=4)], ids=["full", "lora"])
@pytest.mark.parametrize(("every", "num_layers"), [(1, 5), (2, 3)])
def test_gradients_are_the_same_and_each_recomputed_layer_keeps_its_input(
    args: Args, lora: LoraArgs, every: int, num_layers: int
) -> None:
    args = replace(args, lora=lora, gradient_checkpointing_every=every)
    store = Copies()
    expected, found = gradients(args), gradients(args, lambda model: offload_inputs(model, store))
    assert store.shapes == [(2, 20, 32)] * num_layers
    assert store.num_taken == num_layers
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_estimate_has_them_on_the_host(args: Args) -> None:
    args = replace(args, max_length=64)
    tokenizer, machine, rows = build_tokenizer(args), Machine("cuda", 1, 1, 2**40, True, None), Rows(64, 1.0)
    there, gone = (own_peak(replace(args, activation_offload=on), tokenizer, machine, rows) for on in (False, True))
    inputs = 5 * 2 * 64 * 32 * 4  # layers, documents, tokens, width, float32
    assert (there.host_bytes, gone.host_bytes) == (0, inputs)
    saved = there.parts["activations"] - gone.parts["activations"]
    assert 0.6 * inputs <= saved <= inputs


def test_it_is_refused_where_it_saves_nothing(tmp_path: Path) -> None:
    train_file = write_conversations(tmp_path / "train.jsonl", 2)
    with pytest.raises(
        SettingsError, match=r"activation_offload is .?[Tt]rue.?; it must come with gradient_checkpoint"
    ):
        load_args([f"--train_file={train_file}", "--model_name_or_path=a/b", "--activation_offload=true"])
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, on which it is not refused")
    with pytest.raises(SettingsError, match=r"activation_offload is .?[Tt]rue.?; it must be false on a cpu"):
        train_with(tiny_args(train_file, tmp_path / "out", gradient_checkpointing=True, activation_offload=True))
