"""Loss and gradients of rows whose tokens are shared among ranks are those of one process, and less is in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from spawned import spawn
from tiny import ANY_SIZES
from torch import Tensor

from sft.attention import use_document_attention
from sft.batching import Batch, collate_flat
from sft.documents import Document
from sft.loss import LossModule, logits_of
from sft.output_layer import output_layer_of
from sft.sequence_check import refuse_if_shards_differ
from sft.sequence_shards import shard_of
from sft.tiling import tile_mlps
from sft.world import SequenceGroup, World
from strict_settings import SettingsError

pytestmark = pytest.mark.ranks

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 4},
    "mistral": {"sliding_window": 5},
    "qwen2": {"num_key_value_heads": 1},
    "qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 8, "sliding_window": 5, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "phi3": {"sliding_window": 6},
    "gpt_neox": {"num_key_value_heads": 4, "rotary_pct": 0.5},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
}


def model_of(model_type: str, **changes: Any) -> Any:
    """A tiny model with weights large enough for a token to see what is before it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**ANY_SIZES, "initializer_range": 0.3, **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    use_document_attention(model)
    return model


def documents(lengths: tuple[int, ...], trained_from: int = 0, weighted: bool = False) -> list[Document]:
    """Documents of random ids, half of them trained, with the last of each; none before `trained_from`."""
    rng = np.random.default_rng(len(lengths))
    found = []
    for length in lengths:
        trained = rng.random(length) < 0.5
        trained[-1] = True
        weights = rng.random(length).astype(np.float32) if weighted else None
        found.append(Document(rng.integers(3, 96, length).astype(np.int32), trained, weights))
    if trained_from:
        for document in found:
            np.asarray(document.trained)[:trained_from] = False
    return found


BATCHES: dict[str, Callable[[], Batch]] = {
    "one long document": lambda: collate_flat(documents((37,)), 0),
    "several, weighted": lambda: collate_flat(documents((5, 13, 1, 22), weighted=True), 0),
    "trained in its last tokens alone": lambda: collate_flat(documents((40,), trained_from=35), 0),
}


def loss_and_gradients(module: LossModule, batch: Batch, group: SequenceGroup) -> dict[str, Tensor]:
    """Of the whole row: added up over the ranks that share it."""
    module.zero_grad()
    torch.manual_seed(5)
    loss = module(batch)
    loss.backward()
    found = {"loss": loss.detach()}
    for name, parameter in module.named_parameters():
        # Experts that no token of a piece goes to have no gradient there.
        found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
    for value in found.values():
        assert torch.isfinite(value).all()
        if group.size > 1:
            dist.all_reduce(value, group=group.process_group)
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], label: object) -> None:
    for name, value in expected.items():
        scale = float(value.abs().max())
        assert scale > 0 or "expert" in name, (label, name)
        difference = float((found[name] - value).abs().max())
        assert difference <= 1e-5 * max(scale, 1e-3), f"{label}: {name} differs by {difference:.1e} of {scale:.1e}"


def models(world: World, names: tuple[str, ...]) -> None:
    """Each model on each batch, also with checkpointing, tiles, and the loss in one with the output layer."""
    alone = SequenceGroup()
    for name in names:
        for changed in (False, True):
            model = model_of(name, **MODELS[name])
            model.train()
            module = LossModule(model)
            expected = {label: loss_and_gradients(module, make(), alone) for label, make in BATCHES.items()}
            if changed:
                getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
                tile_mlps(model, 7)
                module.output_layer = output_layer_of(model)
            for label, make in BATCHES.items():
                shard = shard_of(make(), world.sequence)
                assert_same(loss_and_gradients(module, shard, world.sequence), expected[label], (name, label, changed))


def dropout(world: World) -> None:
    """With dropout, what is recomputed in the backward pass is what was computed."""
    found = []
    for checkpointing in (False, True):
        model = model_of("qwen3", head_dim=8, attention_dropout=0.3)
        model.train()
        if checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        shard = shard_of(BATCHES["several, weighted"](), world.sequence)
        found.append(loss_and_gradients(LossModule(model), shard, world.sequence))
    assert_same(found[1], found[0], "checkpointing")
    model = model_of("qwen3", head_dim=8)
    without = loss_and_gradients(LossModule(model.train()), shard, world.sequence)
    assert abs(float(without["loss"] - found[0]["loss"])) > 1e-3 * abs(float(without["loss"]))


def half(world: World) -> None:
    """In bfloat16 the loss of shared rows is that of whole rows, but for rounding."""
    module = LossModule(model_of("qwen3", head_dim=8).train())
    make = BATCHES["several, weighted"]
    with torch.autocast("cpu", torch.bfloat16):
        expected = loss_and_gradients(module, make(), SequenceGroup())["loss"]
        found = loss_and_gradients(module, shard_of(make(), world.sequence), world.sequence)["loss"]
    assert float(found) == pytest.approx(float(expected), rel=2e-2)


def refusals(world: World) -> None:
    """A model that counts places itself is found out; one that does not passes."""
    model = model_of("llama", num_key_value_heads=4).eval()
    engine: Any = SimpleNamespace(model=model, logits=torch.no_grad()(partial(logits_of, model)))
    refuse_if_shards_differ(engine, world)
    rotary = model.model.rotary_emb
    told = rotary.forward

    def counting(states: Tensor, position_ids: Tensor) -> Any:
        return told(states, torch.arange(states.shape[1])[None])

    rotary.forward = counting
    with pytest.raises(SettingsError, match="it must be 1 for this model"):
        refuse_if_shards_differ(engine, world)


def everything(world: World, folder: Path) -> None:
    """In one start of the processes."""
    models(world, tuple(MODELS))
    dropout(world)
    half(world)
    refusals(world)
    (folder / f"done-{world.rank}").touch()


def test_loss_and_gradients_of_shared_rows_are_those_of_whole_rows(tmp_path: Path) -> None:
    spawn(everything, 2, tmp_path)
    assert len(list(tmp_path.glob("done-*"))) == 2


def test_a_piece_without_a_trained_token_is_among_them() -> None:
    first, second = (
        shard_of(BATCHES["trained in its last tokens alone"](), SequenceGroup(rank, 2)) for rank in range(2)
    )
    assert first.num_trained_tokens == 0 < second.num_trained_tokens


@pytest.mark.soak
def test_the_longest_row_that_fits_grows_with_the_number_of_ranks() -> None:
    from benchmarks.long_rows import measured

    short, long = measured(1, [4096, 8192])
    (shared,) = measured(2, [8192])
    assert long.mib > 1.7 * short.mib > 50
    # A row of twice the length on two ranks takes each of them what half of it takes one.
    assert shared.mib < 1.25 * short.mib, (shared, short)
    assert shared.loss == pytest.approx(long.loss, rel=1e-5)
