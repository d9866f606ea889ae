"""The learning rate's course, what is decayed, and the loss against a computation by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sft.batching import Batch, collate, collate_packed
from sft.config import Args
from sft.lora_args import LoraArgs
from sft.loss import sum_of_token_losses
from sft.masking import Document
from sft.optimizer import build_optimizer, learning_rate_at, set_learning_rate
from sft.output_layer import _to_gradients


def rates(num_steps: int, **settings: Any) -> list[float]:
    args = Args(**{"learning_rate": 1.0, **settings})
    return [learning_rate_at(step, num_steps, args) for step in range(1, num_steps + 1)]


def test_the_warm_up_rises_linearly_and_its_last_step_has_the_peak() -> None:
    found = rates(20, warmup_steps=4)
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert max(found) == found[3] == 1.0


def test_the_share_of_warm_up_is_rounded_up_and_steps_win_over_it() -> None:
    assert rates(100)[:14] == pytest.approx([*(step / 13 for step in range(1, 14)), 1.0])
    assert rates(100, warmup_ratio=0.5, warmup_steps=0)[0] == 1.0
    assert rates(100, warmup_ratio=0.5, warmup_steps=2)[:3] == pytest.approx([0.5, 1.0, 1.0])


def test_the_cosine_falls_by_its_formula_almost_to_zero() -> None:
    found = rates(110, warmup_steps=10)
    assert found[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 100)) for step in range(100)])
    assert 0 < found[-1] < 1e-3


def test_the_line_falls_evenly_and_the_constant_not_at_all() -> None:
    assert rates(14, warmup_steps=4, lr_scheduler_type="linear")[4:] == pytest.approx([1 - n / 10 for n in range(10)])
    assert set(rates(14, warmup_steps=4, lr_scheduler_type="constant")[3:]) == {1.0}


@given(
    num_steps=st.integers(1, 300),
    ratio=st.floats(0, 1),
    kind=st.sampled_from(["cosine", "linear", "constant"]),
)
def test_every_step_moves_and_none_is_above_the_peak(num_steps: int, ratio: float, kind: str) -> None:
    found = rates(num_steps, warmup_ratio=ratio, lr_scheduler_type=kind)
    assert all(0 < rate <= 1 for rate in found)
    peak = found.index(max(found))
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)


def test_the_default_peak_is_that_of_the_kind_of_fine_tuning() -> None:
    assert learning_rate_at(1, 1, Args(warmup_steps=0)) == 5e-6
    assert learning_rate_at(1, 1, Args(warmup_steps=0, lora=LoraArgs())) == 1e-4


def small_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    model[2].weight.requires_grad_(False)
    return model


def test_only_trainable_matrices_are_decayed() -> None:
    model = small_model()
    groups = build_optimizer(model, Args(weight_decay=0.1, learning_rate=1e-3)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert [id(p) for p in groups[0]["params"]] == [id(model[0].weight)]
    assert {id(p) for p in groups[1]["params"]} == {
        id(p) for p in (model[0].bias, model[1].weight, model[1].bias, model[2].bias)
    }


def test_without_decay_there_is_one_group_and_the_adam_settings_arrive() -> None:
    args = Args(learning_rate=1e-3, adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-6)
    optimizer = build_optimizer(small_model(), args)
    (group,) = optimizer.param_groups
    assert len(group["params"]) == 5
    assert (group["betas"], group["eps"], group["lr"], group["fused"]) == ((0.8, 0.9), 1e-6, 1e-3, True)
    set_learning_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.5


class Bigram(nn.Module):
    """A language model that sees only the token before: easy to check by hand."""

    def __init__(self, num_tokens: int = 11) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(num_tokens, num_tokens)

    def forward(self, input_ids: Tensor, attention_mask: Any, use_cache: bool, position_ids: Any = None) -> Any:
        return SimpleNamespace(logits=self.table(input_ids))


DOCUMENTS = [
    Document([1, 2, 3, 4], [False, False, True, True]),
    Document([5, 6], [True, True]),
    Document([7, 8, 9, 10, 1], [False, True, False, True, False]),
]


@torch.no_grad()
def test_the_loss_is_the_sum_over_trained_tokens_of_minus_their_log_probability() -> None:
    model = Bigram()
    log_probabilities = model.table.weight.log_softmax(-1)
    expected = sum(
        -log_probabilities[document.input_ids[place - 1], document.input_ids[place]]
        for document in DOCUMENTS
        for place in range(1, len(document))
        if document.trained[place]
    )
    found = sum_of_token_losses(model, collate(DOCUMENTS, 0))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    assert found.dtype == torch.float32


@torch.no_grad()
def test_padding_and_neighbours_change_nothing() -> None:
    model = Bigram()
    together = sum_of_token_losses(model, collate(DOCUMENTS, 3))
    apart = sum(sum_of_token_losses(model, collate([document], 0)) for document in DOCUMENTS)
    assert float(together) == pytest.approx(float(apart), rel=1e-6)


def test_a_batch_without_trained_tokens_is_zero_with_zero_gradients_for_every_parameter() -> None:
    model = Bigram()
    loss = sum_of_token_losses(model, collate([], 0))
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert model.table.weight.grad is not None
    assert float(model.table.weight.grad.abs().sum()) == 0.0


def test_the_gradient_is_that_of_the_trained_tokens_only() -> None:
    model = Bigram()
    sum_of_token_losses(model, collate([Document([1, 2, 3], [False, False, True])], 0)).backward()
    assert model.table.weight.grad is not None
    assert model.table.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [2]


WEIGHTED = [
    Document([1, 2, 3, 4], [False, False, True, True], [0.0, 0.0, 2.0, 2.0]),
    Document([5, 6], [True, True], [9.0, 0.5]),
    Document([7, 8, 9, 10, 1], [False, True, False, True, False]),
]


@torch.no_grad()
def test_weights_multiply_the_losses_of_their_tokens() -> None:
    model = Bigram()
    log_probabilities = model.table.weight.log_softmax(-1)
    expected = sum(
        -(1.0 if document.weights is None else document.weights[place])
        * log_probabilities[document.input_ids[place - 1], document.input_ids[place]]
        for document in WEIGHTED
        for place in range(1, len(document))
        if document.trained[place]
    )
    for batch in (collate(WEIGHTED, 0), collate_packed([WEIGHTED[:2], WEIGHTED[2:]], 0, 8)):
        assert float(sum_of_token_losses(model, batch)) == pytest.approx(float(expected), rel=1e-6)
        assert batch.total_weight == 2 + 2 + 0.5 + 2


def accumulated(batches: list[Batch]) -> dict[str, Tensor]:
    """The gradients of one step, as one process adds them up."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from sft.engine import TorchEngine
    from sft.world import World

    torch.manual_seed(0)
    config = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", num_attention_heads=2, **config), dtype=torch.float32
    )
    world = World(0, 0, 1, torch.device("cpu"))
    engine = TorchEngine(
        model, lambda model: build_optimizer(model, Args()), world, bf16=False, max_grad_norm=1.0, fsdp=False
    )
    total_weight = sum(batch.total_weight for batch in batches)
    for number, batch in enumerate(batches, 1):
        engine.accumulate(batch, total_weight, is_last=number == len(batches))
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("documents", [DOCUMENTS, WEIGHTED], ids=["plain", "weighted"])
def test_failure_mode_20_accumulation_does_not_change_the_gradient(documents: list[Document]) -> None:
    eight = [*documents, *documents, *documents[:2]]
    expected = accumulated([collate(eight, 0)])
    splits = [[collate(eight[start : start + size], 0) for start in range(0, 8, size)] for size in (4, 2, 1)]
    splits += [[collate_packed([eight[:5], eight[5:]], 0, 20)], [collate_packed([d], 0, 6) for d in [eight[:1]]]]
    splits[-1] += [collate_packed([eight[start : start + 2]], 0, 9) for start in (1, 3, 5)]
    splits[-1] += [collate_packed([eight[7:]], 0, 9), collate_packed([], 0, 9)]
    for split in splits:
        found = accumulated(split)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-5 * float(gradient.abs().max()))


def test_the_logits_of_a_tile_are_never_all_there_in_float32_on_what_is_no_cpu() -> None:
    """On tensors without memory, as large as a tile of a GPU: 3,500 rows of 152,000 words."""
    shape = (3500, 152_000)
    largest: list[int] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            largest.extend(leaf.nbytes for leaf in tree_leaves(out) if getattr(leaf, "dtype", None) == torch.float32)
            return out

    with Watch():
        logits = torch.empty(shape, dtype=torch.bfloat16, device="meta")
        targets = torch.zeros(shape[0], dtype=torch.int64, device="meta")
        _to_gradients(logits, targets, None, 1.0, 30.0)
    assert 0 < max(largest) <= 4 * shape[0] * shape[1] / 7
