"""Attention per document and the loss in tiles: what a model computes of one document at a time, for every batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import ANY_SIZES
from torch import Tensor
from torch.nn import functional

from sft import attention, output_layer
from sft.attention import Layout
from sft.batching import collate, collate_flat, collate_packed
from sft.config import Args
from sft.documents import Document
from sft.engine import TorchEngine
from sft.model_check import prepare_model
from sft.optimizer import build_optimizer
from sft.world import World
from strict_settings import SettingsError

WORLD = World(0, 0, 1, torch.device("cpu"))
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 8, "sliding_window": 5, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {"head_dim": 8, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"sliding_window": 6},
    "gpt_neox": {"num_key_value_heads": 4, "rotary_pct": 0.5},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5},
    "qwen3_moe": EXPERTS,
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.3},
}
STATEFUL: dict[str, dict[str, Any]] = {
    "mamba": {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "falcon_mamba": {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}


def model_of(model_type: str, **changes: Any) -> Any:
    """A tiny model with weights large enough for a document to see what is before it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = STATEFUL.get(model_type) or {**ANY_SIZES, **MODELS[model_type]}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **{**settings, **changes}), dtype=torch.float32
    )
    for parameter in model.parameters():
        parameter.data.mul_(4.0) if parameter.dim() > 1 else None
    return model


def engine_of(model: Any, *, bf16: bool = False) -> TorchEngine:
    return TorchEngine(
        model, lambda model: build_optimizer(model, Args()), WORLD, bf16=bf16, max_grad_norm=1, fsdp=False
    )


def documents(*lengths: int, weighted: bool = True) -> list[Document]:
    """Random documents, trained in places, each ending in some tokens that are not trained."""
    rng = np.random.default_rng(len(lengths))
    found = []
    for length in lengths:
        trained = rng.random(length) < 0.5
        trained[-(length // 4) :] &= length < 8
        weights = np.where(trained, rng.random(length), 0).astype(np.float32) if weighted else None
        found.append(Document(rng.integers(3, 96, length).astype(np.int32), trained, weights))
    return found


def by_hand(model: Any, batch: list[Document]) -> tuple[float, dict[str, Tensor]]:
    """The loss and its gradients, one document at a time, by the model's own attention and logits."""
    total = sum(float(document.weights[1:].sum()) for document in batch if document.weights is not None)
    loss_sum = 0.0
    for document in batch:
        ids = torch.tensor(np.asarray(document.input_ids, dtype=np.int64)).unsqueeze(0)
        losses = functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
        assert document.weights is not None
        loss = (losses * torch.tensor(document.weights[1:])).sum()
        (loss / total).backward()
        loss_sum += float(loss.detach())
    return loss_sum, _taken_gradients(model)


def shortened(model: Any) -> list[str]:
    """The parts of the model's last layer that leave out tokens which predict nothing trained."""
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


def _taken_gradients(model: Any) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        assert float((found[name] - gradient).abs().max()) <= tolerance * scale + 1e-9, name


LENGTHS = (9, 1, 12, 12, 6, 14, 12, 2)


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("tile_bytes", [1 << 26, 96 * 4 * 5], ids=["one tile", "tiles"])
def test_all_documents_in_one_row_give_the_loss_and_gradients_of_one_at_a_time(
    model_type: str, tile_bytes: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(output_layer.TILE_BYTES, "cpu", tile_bytes)
    monkeypatch.setitem(output_layer._CHUNK_BYTES, "cpu", 96 * 4 * 2)
    model = model_of(model_type)
    batch = documents(*LENGTHS)
    expected_loss, expected = by_hand(model, batch)
    engine = engine_of(model)
    assert prepare_model(engine, Args(), WORLD) == "flat"
    assert engine.loss_module.output_layer is not None
    assert shortened(model)
    assert capsys.readouterr().out == ""
    for parts in ([batch], [batch[:3], batch[3:]], [[document] for document in batch]):
        collated = [collate_flat(part, 0) for part in parts]
        total = sum(part.total_weight for part in collated)
        losses = [engine.accumulate(part, total, is_last=True) for part in collated]
        assert float(sum(losses)) == pytest.approx(expected_loss, rel=1e-5)
        assert_same(_taken_gradients(model), expected)
        assert float(sum(engine.evaluate(part) for part in collated)) == pytest.approx(expected_loss, rel=1e-5)


@pytest.mark.parametrize("model_type", ["qwen3", "gemma2"])
def test_a_row_of_fixed_capacity_padded_rows_and_packed_rows_are_the_same(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(model_type, attn_implementation="eager")
    batch = documents(*LENGTHS)
    expected_loss, expected = by_hand(model, batch)
    engine = engine_of(model)
    padded, packed = collate(batch, 0), collate_packed([batch[:4], batch[4:]], 0, 40)
    for layer_first in (False, True):
        if layer_first:
            prepare_model(engine, Args(attn_implementation="eager"), WORLD)
        for form in (padded, packed):
            assert float(engine.accumulate(form, form.total_weight, is_last=True)) == pytest.approx(
                expected_loss, rel=1e-5
            )
            assert_same(_taken_gradients(model), expected)
    assert prepare_model(engine, Args(), WORLD) == "flat"
    fixed = collate_flat(batch, 0, capacity=100)
    assert fixed.input_ids.shape == (1, 100)
    assert fixed.layout is not None
    lengths_seen: list[int] = []
    one_by_one = attention._one_by_one

    def measured(query: torch.Tensor, *words: Any, **more: Any) -> torch.Tensor:
        lengths_seen.append(query.shape[2])
        return one_by_one(query, *words, **more)

    monkeypatch.setattr(attention, "_one_by_one", measured)
    assert float(engine.accumulate(fixed, fixed.total_weight, is_last=True)) == pytest.approx(expected_loss, rel=1e-5)
    assert_same(_taken_gradients(model), expected)
    assert set(lengths_seen) == {100 - fixed.layout.num_padding}  # no attention for the padding
    assert 0 < fixed.layout.num_padding < 100


@pytest.mark.parametrize("model_type", STATEFUL)
def test_failure_mode_27_models_with_a_state_get_padded_rows_and_refuse_packing(
    model_type: str, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = engine_of(model_of(model_type).double())  # the scans themselves stay float32
    before = engine.model.config._attn_implementation
    assert prepare_model(engine, Args(), WORLD) == "padded"
    assert capsys.readouterr().out.count("attention per document: not with") == 1
    assert engine.model.config._attn_implementation == before
    batch = documents(*LENGTHS)
    expected_loss, expected = by_hand(engine.model, batch)
    padded = collate(batch, 0)
    assert float(engine.accumulate(padded, padded.total_weight, is_last=True)) == pytest.approx(expected_loss, rel=1e-5)
    assert_same(_taken_gradients(engine.model), expected, 1e-6)
    with pytest.raises(SettingsError, match="packing is true; it must be false for this model"):
        prepare_model(engine, Args(packing=True), WORLD)


def test_attention_with_something_else_in_it_is_left_to_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 5}
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("gpt_oss", **{**ANY_SIZES, **experts})  # with an attention sink per head
    engine = engine_of(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    assert prepare_model(engine, Args(), WORLD) == "padded"
    assert "attention with s_aux is not computed per document; rows are padded" in capsys.readouterr().out
    assert engine.model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("no boundaries", "whose documents in one row see each other"),
        ("no boundary between neighbours of one length", "whose attention is another than softmax"),
        ("twice the scale", "whose attention is another than softmax"),
    ],
)
def test_the_model_itself_is_asked_not_only_its_configuration(
    change: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of("llama")
    for layer in model.model.layers:

        def attend(*inputs: Any, original: Any = layer.self_attn.forward, **options: Any) -> Any:
            documents = options.get("documents")
            if documents is not None and change == "no boundaries":
                options["documents"] = Layout.of([sum(documents.lengths)])
            if documents is not None and change == "no boundary between neighbours of one length":
                options["documents"] = Layout.of([number * length for number, length in documents.runs()])
            if documents is not None and change == "twice the scale":
                options["position_embeddings"] = tuple(2 * part for part in options["position_embeddings"])
            return original(*inputs, **options)

        layer.self_attn.forward = attend
    engine = engine_of(model)
    assert prepare_model(engine, Args(), WORLD) == "padded"
    assert told in capsys.readouterr().out
    assert model.config._attn_implementation == "sdpa"


def test_what_a_model_does_to_its_logits_in_secret_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of("llama")
    original = model.forward

    def scaled(**inputs: Any) -> Any:
        found = original(**inputs)
        found.logits = found.logits * 1.5
        return found

    model.forward = scaled
    engine = engine_of(model)
    assert prepare_model(engine, Args(), WORLD) == "flat"
    assert engine.loss_module.output_layer is None
    assert (
        "output layer: by the model's own forward, since the model does more to its logits" in capsys.readouterr().out
    )


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]], ids=["layers", "output layer too"])
def test_adapters_get_the_gradients_of_padded_rows(targets: Any) -> None:
    from peft import LoraConfig, TaskType, get_peft_model

    batch = documents(*LENGTHS)
    found = []
    for form in ("padded", "flat"):
        torch.manual_seed(1)
        lora = LoraConfig(r=2, target_modules=targets, task_type=TaskType.CAUSAL_LM, init_lora_weights=False)
        model = get_peft_model(model_of("llama"), lora)
        engine = engine_of(model)
        if form == "flat":
            assert prepare_model(engine, Args(), WORLD) == form
            assert (engine.loss_module.output_layer is None) == ("lm_head" in targets)
        collated = (collate_flat if form == "flat" else collate)(batch, 0)
        loss = float(engine.accumulate(collated, collated.total_weight, is_last=True))
        found.append((loss, _taken_gradients(model)))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    assert_same(found[1][1], found[0][1])
    assert all("lora" in name for name in found[0][1])


def test_the_last_layer_leaves_out_tokens_that_predict_nothing_trained() -> None:
    model, seen = model_of("qwen3"), []
    last = model.model.layers[-1]
    engine = engine_of(model)
    prepare_model(engine, Args(), WORLD)
    assert [name.removeprefix("model.layers.1.") for name in shortened(model)[1:]] == [
        "self_attn.q_proj", "self_attn.o_proj", "mlp",
    ]  # fmt: skip
    last.mlp.gate_proj.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[-2]))
    batch = collate_flat(documents(*LENGTHS), 0)
    engine.evaluate(batch)
    assert seen == [batch.num_trained_tokens] != [batch.input_ids.numel()]
    with torch.no_grad():
        model(input_ids=batch.input_ids)  # by anybody else: all of it
    assert seen[1:] == [batch.input_ids.numel()]


def test_a_last_layer_that_looks_at_other_tokens_is_left_whole() -> None:
    model = model_of("qwen3")
    block = model.model.layers[-1].mlp
    forward = block.forward
    block.forward = lambda states: forward(states) + states.roll(1, -2)  # the token before
    engine = engine_of(model)
    assert prepare_model(engine, Args(attn_implementation="auto"), WORLD) == "flat"
    assert len(shortened(model)) == 1  # this test's own


def test_recomputed_layers_and_half_precision_give_the_same_within_their_rounding() -> None:
    batch = documents(*LENGTHS)
    expected_loss, expected = by_hand(model_of("qwen3"), batch)
    for bf16, tolerance in ((False, 1e-5), (True, 0.1)):
        model = model_of("qwen3").train()
        (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
        engine = engine_of(model, bf16=bf16)
        assert prepare_model(engine, Args(), WORLD) == "flat"
        assert engine.loss_module.output_layer is not None
        collated = collate_flat(batch, 0)
        loss = float(engine.accumulate(collated, collated.total_weight, is_last=True))
        assert loss == pytest.approx(expected_loss, rel=1e-5 if not bf16 else 1e-2)
        assert_same(_taken_gradients(model), expected, tolerance)


def test_a_batch_without_trained_tokens_is_an_exact_zero_that_reaches_every_parameter() -> None:
    model = model_of("qwen3")
    engine = engine_of(model)
    prepare_model(engine, Args(), WORLD)
    assert float(engine.accumulate(collate_flat([], 0), 10.0, is_last=True)) == 0.0
    found = _taken_gradients(model)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(float(gradient.abs().max()) == 0.0 for gradient in found.values())


def test_the_final_configuration_does_not_name_our_attention(tmp_path: Any) -> None:
    model = model_of("llama")
    prepare_model(engine_of(model), Args(), WORLD)
    model.config.save_pretrained(tmp_path)
    assert "documents" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("model_type", ["qwen3", "gemma2"])
def test_generation_goes_on_as_before(model_type: str) -> None:
    ids = torch.tensor([[5, 6, 7, 8], [0, 0, 9, 10]])
    mask = (ids > 0).long()
    found = []
    for prepared in (False, True):
        model = model_of(model_type).eval()
        if prepared:
            assert prepare_model(engine_of(model), Args(), WORLD) == "flat"
        with torch.no_grad():
            logits = model(ids, attention_mask=mask).logits[mask.bool()]
        chosen = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
        found.append((logits, chosen.tolist()))
    # Places that see nothing, left of the second prompt, must not reach those that are asked for.
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-4, rtol=1e-4)
    assert found[0][1] == found[1][1]


def test_a_model_whose_tokens_see_what_comes_after_them_is_refused() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {**ANY_SIZES, "vocab_size": 96, "max_position_embeddings": 64}
    for is_decoder in (False, True):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("bert", **sizes, is_decoder=is_decoder))
        if is_decoder:
            assert prepare_model(engine_of(model), Args(), WORLD) in ("flat", "padded")
            continue
        with pytest.raises(SettingsError, match="the model is 'bert'; it must be causal: its tokens see those"):
            prepare_model(engine_of(model), Args(), WORLD)


def test_the_loss_of_a_router_is_left_out_and_documents_stay_in_one_row(capsys: pytest.CaptureFixture[str]) -> None:
    batch = documents(*LENGTHS)
    model = model_of("mixtral", output_router_logits=True)
    expected_loss, expected = by_hand(model_of("mixtral"), batch)
    engine = engine_of(model)
    padded = collate(batch, 0)
    assert float(engine.evaluate(padded)) == pytest.approx(expected_loss, rel=1e-5)
    assert prepare_model(engine, Args(), WORLD) == "flat"
    assert capsys.readouterr().out == "output_router_logits: the loss that balances the experts is not trained\n"
    flat = collate_flat(batch, 0)
    assert float(engine.accumulate(flat, flat.total_weight, is_last=True)) == pytest.approx(expected_loss, rel=1e-5)
    assert_same(_taken_gradients(model), expected)
