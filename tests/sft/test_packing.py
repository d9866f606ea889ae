"""Packing: full rows, each document once, any step without those before it, and no document that sees another."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.batching import collate, collate_packed
from sft.documents import Document
from sft.flops import ModelShape
from sft.loss import sum_of_token_losses
from sft.packing import TrainingRows, pack
from sft.packing_check import refuse_if_packing_leaks
from sft.row_costs import row_costs
from sft.sharding import WINDOW, rank_batches, steps_per_epoch
from strict_settings import SettingsError

SHAPE = ModelShape(body=1_000_000, adapters=0, head=500_000, attention=100, is_body_trained=True)
lengths_of_documents = st.lists(st.integers(1, 50), min_size=1, max_size=120)


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """The textbook's way, one document at a time: the lengths in each row."""
    rows: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row in rows if sum(row) + length <= capacity]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            rows.append([length])
    return rows


@given(lengths=lengths_of_documents, capacity=st.sampled_from([50, 64, 300, 70_000]))
def test_rows_are_as_full_as_those_of_the_textbook(lengths: list[int], capacity: int) -> None:
    rows = pack(lengths, capacity)
    assert sorted(rows.documents.tolist()) == list(range(len(lengths)))
    found = [[lengths[document] for document in row] for row in rows]
    assert Counter(map(sum, found)) == Counter(map(sum, best_fit_decreasing(lengths, capacity)))


@pytest.mark.parametrize("wrong", [0, 9])
def test_lengths_that_no_row_can_hold_are_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=f"a length is {wrong}; it must be from 1 to 8"):
        pack([3, wrong, 2], 8)


@settings(deadline=None)
@given(
    lengths=lengths_of_documents,
    window=st.integers(1, 150),
    rows_per_step=st.integers(1, 40),
    packed=st.booleans(),
    seed=st.integers(0, 5),
)
def test_every_document_is_seen_once_per_epoch(
    lengths: list[int], window: int, rows_per_step: int, packed: bool, seed: int
) -> None:
    rows = TrainingRows(len(lengths), seed, np.array(lengths), 50 if packed else None, window)
    steps = steps_per_epoch(rows.num_rows, rows_per_step)
    for epoch in range(3):
        taken = [row for step in range(epoch * steps, (epoch + 1) * steps) for row in rows.step(step, rows_per_step)]
        assert len(taken) == rows.num_rows
        assert sorted(document for row in taken for document in row) == list(range(len(lengths)))
        assert all(sum(lengths[document] for document in row) <= 50 for row in taken)


@settings(deadline=None)
@given(lengths=lengths_of_documents, step=st.integers(0, 60), packed=st.booleans())
def test_a_step_is_the_same_whether_or_not_the_steps_before_it_were_taken(
    lengths: list[int], step: int, packed: bool
) -> None:
    def rows() -> TrainingRows:
        return TrainingRows(len(lengths), 3, np.array(lengths), 50 if packed else None, window=20)

    running = rows()
    for before in range(step):
        running.step(before, 4)
    assert rows().step(step, 4) == running.step(step, 4)


def test_epochs_and_seeds_pack_differently() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, 2000)

    def epoch(number: int, seed: int) -> list[list[int]]:
        rows = TrainingRows(len(lengths), seed, lengths, 1000)
        return rows.between(number, 0, rows.num_rows)

    first = epoch(0, 7)
    assert epoch(0, 7) == first
    for other in (epoch(1, 7), epoch(0, 8)):
        assert other[:3] != first[:3]
        same = {tuple(sorted(row)) for row in other} & {tuple(sorted(row)) for row in first}
        assert len(same) < 0.1 * len(first)


@pytest.mark.parametrize("kind", ["long tail", "chat", "short"])
def test_rows_are_full(kind: str) -> None:
    rng = np.random.default_rng(0)
    lengths = {
        "long tail": rng.lognormal(np.log(300), 1.4, 30_000),
        "chat": rng.lognormal(np.log(90), 0.9, (30_000, 4)).sum(1) * rng.random(30_000),
        "short": rng.integers(8, 65, 30_000),
    }[kind]
    tokens = lengths.astype(np.int64).clip(1, 2048)
    assert tokens.sum() / (len(pack(tokens, 2048)) * 2048) > 0.998


class Counted(np.ndarray):  # type: ignore[type-arg]
    """Notes how many of its numbers are read."""

    num_read = 0

    def __getitem__(self, key: Any) -> Any:
        found = np.asarray(super().__getitem__(key))
        Counted.num_read += np.size(found)
        return found


def test_the_first_row_of_ten_million_documents_looks_at_few_of_them() -> None:
    lengths = np.random.default_rng(0).integers(10, 4000, 10_000_000, dtype=np.int32)
    (row,) = TrainingRows(len(lengths), 7, lengths.view(Counted), 4096).between(0, 0, 1)
    assert 0 < lengths[row].sum() <= 4096
    assert len(row) <= Counted.num_read <= 2 * WINDOW


def test_ranks_of_a_packed_step_cost_the_same() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(np.log(300), 1.4, 20_000).astype(np.int64).clip(1, 4096)
    num_trained = (lengths * rng.uniform(0.1, 0.9, len(lengths))).astype(np.int64)
    rows = TrainingRows(len(lengths), 7, lengths, 4096)
    for step in range(rows.num_rows // 64):
        taken = rows.step(step, 64)
        costs = row_costs(taken, lengths, num_trained, SHAPE)
        of_row = {tuple(row): cost for row, cost in zip(taken, costs, strict=True)}
        shares = [rank_batches(taken, rank, 8, 4, costs) for rank in range(8)]
        assert [len(batch) for share in shares for batch in share] == [4] * 16
        assert sorted(row for share in shares for batch in share for row in batch) == sorted(taken)
        loads = np.array([sum(of_row[tuple(row)] for batch in share for row in batch) for share in shares])
        assert loads.max() / loads.mean() - 1 < 0.01


# Models that keep documents apart, and those that do not

BASE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3": {**BASE, "num_key_value_heads": 2, "head_dim": 8},
    "llama": {**BASE, "num_key_value_heads": 2},
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gemma3_text": {**BASE, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
    "gemma2": {**BASE, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
}
RECURRENT: dict[str, dict[str, Any]] = {
    "mamba": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "qwen3_next": {
        **BASE,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "jamba": {
        **BASE,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 2,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "falcon_mamba": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}
KINDS = pytest.mark.parametrize(
    ("model_type", "attention"),
    [(model_type, attention) for model_type in CONFIGS for attention in ("eager", "sdpa")][:-1],  # gemma2: eager only
)


def model_of(model_type: str, attention: str = "sdpa", **changes: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **{**(CONFIGS | RECURRENT)[model_type], **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    for parameter in model.parameters():  # random weights are small: what a document sees would hardly show
        parameter.data.mul_(4.0) if parameter.dim() > 1 else None
    return model


def documents(*lengths: int) -> list[Document]:
    rng = np.random.default_rng(len(lengths))
    return [
        Document(rng.integers(0, 64, length).tolist(), (rng.random(length) < 0.6).tolist(), rng.random(length).tolist())
        for length in lengths
    ]


@KINDS
@torch.no_grad()
def test_failure_mode_25_packing_does_not_contaminate(model_type: str, attention: str) -> None:
    model = model_of(model_type, attention).eval()
    rows = [documents(9, 1, 12, 6), documents(14, 13)]
    packed = collate_packed(rows, 0, 32)
    logits = model(input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False).logits
    for number, row in enumerate(rows):
        start = 0
        for document in row:
            alone = model(input_ids=torch.tensor([document.input_ids])).logits[0]
            found = logits[number, start : start + len(document)]
            torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))
            start += len(document)
    # The test can tell: with a mask, even one of ones, the documents do see each other.
    masked = model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        attention_mask=torch.ones_like(packed.input_ids),
        use_cache=False,
    ).logits
    assert float((masked - logits)[0, 10:22].abs().max()) > 1e-2 * float(logits.abs().max())


@KINDS
def test_failure_mode_25_packed_gradients_are_those_of_single_documents(model_type: str, attention: str) -> None:
    rows = [documents(9, 1, 12, 6), documents(14, 13)]
    alone = collate([document for row in rows for document in row], 0)
    found = []
    for batch in (alone, collate_packed(rows, 0, 32)):
        model = model_of(model_type, attention, **({"attn_pdrop": 0.0} if model_type == "gpt2" else {})).eval()
        assert batch.total_weight == pytest.approx(alone.total_weight)
        (sum_of_token_losses(model, batch) / batch.total_weight).backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in found[0].items():
        assert gradient is not None
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=1e-5 * scale + 1e-7)


@KINDS
def test_models_that_keep_documents_apart_may_be_packed(model_type: str, attention: str) -> None:
    model = model_of(model_type, attention).train()
    refuse_if_packing_leaks(model)
    assert model.training


@pytest.mark.parametrize("model_type", RECURRENT)
def test_failure_mode_27_packing_is_refused_where_a_state_runs_over_boundaries(model_type: str) -> None:
    with pytest.raises(SettingsError, match="packing is true; it must be false for this model"):
        refuse_if_packing_leaks(model_of(model_type, "eager"))


def test_failure_mode_27_the_model_itself_is_asked_not_only_its_name() -> None:
    model = model_of("llama")
    original = model.forward

    def without_boundaries(position_ids: Any = None, **inputs: Any) -> Any:
        return original(**inputs)

    model.forward = without_boundaries
    with pytest.raises(SettingsError, match="documents in one row see each other in llama"):
        refuse_if_packing_leaks(model)


@pytest.mark.parametrize("model_type", ["qwen3_next", "mamba", "falcon_mamba", "jamba", "bamba", "falcon_h1"])
def test_failure_mode_27_partitioned_models_are_judged_by_their_configuration(model_type: str) -> None:
    from transformers import AutoConfig

    class Partitioned(torch.nn.Module):
        """A model of which this process holds no whole weight."""

        def __init__(self, config: Any) -> None:
            super().__init__()
            self.config = config
            self.weight = torch.nn.Parameter(torch.zeros(0))
            self.weight.ds_id = 0  # type: ignore[attr-defined]

    with pytest.raises(SettingsError, match="carries a state over document boundaries"):
        refuse_if_packing_leaks(Partitioned(AutoConfig.for_model(model_type)))
    for name in CONFIGS:
        refuse_if_packing_leaks(Partitioned(AutoConfig.for_model(name)))


@pytest.mark.parametrize("capacity", [None, 50])
def test_failure_mode_29_five_rows_on_four_ranks_give_every_rank_as_many_batches(capacity: int | None) -> None:
    rows = TrainingRows(5, 7, np.array([40, 41, 42, 43, 44]), capacity)
    assert rows.num_rows == 5
    for size in (1, 2, 3):
        steps = steps_per_epoch(rows.num_rows, 4 * size)
        seen: list[list[int]] = []
        for step in range(steps):
            taken = rows.step(step, 4 * size)
            costs = row_costs(taken, [40, 41, 42, 43, 44], [1] * 5, SHAPE)
            shares = [rank_batches(taken, rank, 4, size, costs, by_length=capacity is None) for rank in range(4)]
            assert {len(share) for share in shares} == {1}
            seen += [row for share in shares for batch in share for row in batch]
        assert sorted(seen) == [[0], [1], [2], [3], [4]]
