"""FLOPs: by hand, and as torch's own counter counts them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import QWEN3
from torch.utils.flop_counter import FlopCounterMode

from sft.flops import ModelShape, Work, causal_flops, palm_flops, recomputed_flops

VOCABULARY = 100


def model(**changes: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**{**QWEN3, "vocab_size": VOCABULARY, **changes})
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def test_the_shape_of_a_dense_model_by_hand() -> None:
    shape = ModelShape.of(model())
    # q: 32×32, k and v: 16×32, o: 32×32; gate, up and down: 32×64; two layers. Norms multiply elementwise.
    assert shape.body == 2 * (32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 64)
    assert shape.head == 32 * VOCABULARY
    assert shape.attention == 2 * 4 * 8
    assert (shape.adapters, shape.is_body_trained) == (0, True)


def test_tables_of_words_count_once_tied_or_not() -> None:
    assert ModelShape.of(model(tie_word_embeddings=False)) == ModelShape.of(model())


def test_experts_count_as_often_as_a_token_is_sent_to_them() -> None:
    sizes = {"model_type": "qwen3_moe", "moe_intermediate_size": 16, "num_experts_per_tok": 2, "decoder_sparse_step": 1}
    few, many = (ModelShape.of(model(**sizes, num_experts=count)) for count in (4, 8))
    router = 32 * 4 * 2
    assert many.body - few.body == router


def test_only_layers_that_attend_count_for_attention() -> None:
    hybrid = {"model_type": "qwen3_next", "linear_num_key_heads": 2, "linear_num_value_heads": 4, "num_experts": 4}
    kinds = ["linear_attention", "full_attention"]
    assert ModelShape.of(model(**hybrid, layer_types=kinds)).attention == 4 * 8
    assert ModelShape.of(model(model_type="falcon_h1", mamba_d_ssm=32, mamba_n_heads=4)).attention == 2 * 4 * 8


def test_formulas_by_hand() -> None:
    shape = ModelShape(body=1000, adapters=0, head=200, attention=10, is_body_trained=True)
    work = Work(num_tokens=50, num_trained_tokens=20, sum_squared_lengths=1300)
    assert causal_flops(shape, work) == 6 * 1000 * 50 + 6 * 200 * 20 + 6 * 10 * 1300
    assert palm_flops(shape, work) == 6 * 1200 * 50 + 12 * 10 * 1300
    assert recomputed_flops(shape, work) == 2 * 1000 * 50 + 2 * 10 * 1300
    adapted = ModelShape(body=1000, adapters=30, head=200, attention=10, is_body_trained=False)
    assert causal_flops(adapted, work) == (4 * 1000 + 6 * 30) * 50 + 4 * 200 * 20 + 6 * 10 * 1300
    assert palm_flops(adapted, work) == (4 * 1200 + 6 * 30) * 50 + 12 * 10 * 1300


def test_what_lies_beyond_a_window_is_not_attended() -> None:
    sliding = {"sliding_window": 4, "use_sliding_window": True}
    half = ModelShape.of(model(**sliding, layer_types=["full_attention", "sliding_attention"]))
    every = ModelShape.of(model(model_type="mistral", sliding_window=4))
    assert [(shape.window, shape.windowed_share) for shape in (half, every)] == [(4, 0.5), (4, 1.0)]
    # Qwen's configurations have a window that they do not use.
    assert ModelShape.of(model(sliding_window=4, use_sliding_window=False)).window == 0
    shape = ModelShape(0, 0, 0, attention=1, is_body_trained=True, window=4, windowed_share=1.0)
    for length in (3, 4, 5, 12):
        seen = sum(min(place, 4) for place in range(1, length + 1))
        work = Work(length, length, length**2, max(length - 4, 0) ** 2)
        # The formula takes half of a square for what is a triangle with its diagonal.
        assert causal_flops(shape, work) / 12 == pytest.approx(seen - min(length, 4) / 2)
        assert palm_flops(shape, work) == 12 * length**2


@pytest.mark.parametrize("length", [16, 40])
def test_palm_flops_are_what_torch_counts(length: int) -> None:
    """Eager attention multiplies the whole square and scores every position: PaLM's convention to the operation."""
    own = model()
    ids = torch.randint(0, VOCABULARY, (3, length))
    with FlopCounterMode(display=False) as counter:
        own(input_ids=ids, use_cache=False).logits.float().logsumexp(-1).sum().backward()
    # The gradient of the embedding's output needs no product, and rotary embeddings are an outer product per position.
    rotary = 2 * 3 * length * 4
    expected = palm_flops(ModelShape.of(own), Work(3 * length, 3 * length, 3 * length**2))
    assert counter.get_total_flops() == pytest.approx(expected, abs=rotary)


def test_lora_flops_are_what_torch_counts() -> None:
    from peft import LoraConfig, get_peft_model

    own = get_peft_model(model(), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    ids = torch.randint(0, VOCABULARY, (2, 24))
    with FlopCounterMode(display=False) as counter:
        own(input_ids=ids, use_cache=False).logits.float().logsumexp(-1).sum().backward()
    shape = ModelShape.of(own)
    assert shape.adapters == sum(p.numel() for n, p in own.named_parameters() if ".lora_" in n)
    # Below the first layer's adapters no gradient is needed: those of q, k and v do not go back to the embedding.
    unneeded = 2 * 48 * (32 * 32 + 2 * 16 * 32 + 3 * 32 * 4)
    expected = palm_flops(shape, Work(48, 48, 2 * 24**2)) - unneeded
    assert counter.get_total_flops() == pytest.approx(expected, abs=2 * 2 * 24 * 4)
