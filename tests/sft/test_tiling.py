"""Feed-forward blocks in tiles: the same loss and gradients, less of them in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import QWEN3
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from sft.config import Args
from sft.engine import TorchEngine
from sft.model_check import prepare_model
from sft.optimizer import build_optimizer
from sft.tiling import tile_mlps, tiled
from sft.world import World
from strict_settings import SettingsError

WORLD = World(0, 0, 1, torch.device("cpu"))
PHI3 = {**QWEN3, "model_type": "phi3", "pad_token_id": 0, "tie_word_embeddings": False}
BLOOM = {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4, "hidden_dropout": 0.0}
MOE = {**QWEN3, "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def loss_and_gradients(config: dict[str, Any], tile_tokens: int | None, checkpointing: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**config, "vocab_size": 50}))
    model.train()
    if checkpointing:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    if tile_tokens is not None:
        assert tile_mlps(model, tile_tokens) == 2
    ids = torch.randint(50, (2, 23), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}}


@pytest.mark.parametrize("config", [QWEN3, PHI3, MOE, BLOOM], ids=lambda config: str(config["model_type"]))
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_the_whole_row(config: dict[str, Any], checkpointing: bool) -> None:
    expected = loss_and_gradients(config, None, False)
    for tile_tokens in (1, 7, 23, 100):
        found = loss_and_gradients(config, tile_tokens, checkpointing)
        for name, value in expected.items():
            assert (found[name] - value).abs().max() <= 1e-5 * value.abs().max(), (tile_tokens, name)


def test_dropout_is_drawn_again_as_it_was() -> None:
    block = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Dropout(0.5))
    states = torch.ones(1, 64, 3, requires_grad=True)
    torch.manual_seed(0)
    out = tiled(block, 5, states)
    # Where dropout has let a value through, its gradient comes back through the same place.
    out.sum().backward()
    assert states.grad is not None
    kept = (out != 0).float() * 2
    torch.testing.assert_close(states.grad, kept @ block[0].weight)


def test_less_is_kept_for_the_backward_pass() -> None:
    block = nn.Sequential(nn.Linear(8, 512), nn.GELU(), nn.Linear(512, 8))
    kept: dict[str, int] = {}
    for name, tile_tokens in (("whole", 1000), ("tiled", 50)):
        sizes: dict[int, int] = {}

        def note(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            tiled(block, tile_tokens, torch.randn(1, 1000, 8, requires_grad=True))
        kept[name] = sum(sizes.values())
    assert kept["tiled"] < 0.1 * kept["whole"]


def test_a_model_without_such_blocks_is_refused() -> None:
    with pytest.raises(SettingsError, match="mlp_tile_tokens is 8; it must not be given for Linear"):
        tile_mlps(nn.Linear(2, 2), 8)


@pytest.mark.parametrize("tile_tokens", [7, 100])
def test_a_block_that_gives_more_than_a_tensor_is_refused_before_a_row_is_cut(tile_tokens: int) -> None:
    sizes = {"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2, "vocab_size": 50}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**QWEN3, **sizes, "pad_token_id": 0}))
    tile_mlps(model, tile_tokens)
    engine = TorchEngine(
        model, lambda model: build_optimizer(model, Args()), WORLD, bf16=False, max_grad_norm=1, fsdp=False
    )
    with pytest.raises(SettingsError, match=f"mlp_tile_tokens is {tile_tokens}; it must not be given for this model"):
        prepare_model(engine, Args(), WORLD)
