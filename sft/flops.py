"""Floating point operations of training, from what a model is and how long its documents are. Pure arithmetic.

Multiplying a token by a matrix of n weights takes 2 n operations; its gradient with respect to the input takes as many,
and with respect to the weights as many again. Attention of a causal document of l tokens takes 2 l² H d operations in
each layer and pass (H heads of size d; two products over half of l × l), three times that with the backward pass. With
a window of w tokens, l² - (l - w)² takes the place of l².

Two conventions are given, for there are two kinds of published figures:
- **causal**: what has to be computed. The output layer at trained positions only, causal attention within each
  document, frozen weights without a gradient of their own: 4 n instead of 6 n.
- **PaLM** (Chowdhery et al., 2022, appendix B): 6 N per token with the output layer at every position, and attention as
  if it looked both ways, without any window.

What gradient checkpointing computes again is in neither, since model FLOPs utilisation (MFU) does not count it. Nor is
taken off what `sft/last_layer.py` leaves out, at most one layer's weights for the tokens that predict nothing trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelShape:
    """What the formulas need to know of a model. Sizes are numbers of weights."""

    body: int
    """Weights that every token is multiplied by: the layers' matrices; of experts as many as a token is sent to."""
    adapters: int
    """Those of low-rank adapters."""
    head: int
    """Those of the output layer, hidden size × vocabulary."""
    attention: int
    """Layers that attend × heads × size of a head."""
    is_body_trained: bool
    """False with adapters: the body's weights are frozen."""
    window: int = 0
    """Tokens that attention looks back at in some layers; 0: there are none."""
    windowed_share: float = 0.0
    """Share of the layers that attend with that window."""

    @classmethod
    def of(cls, model: Any) -> ModelShape:
        """The shape of a transformers or peft causal language model, whole or sharded."""
        config = model.config.get_text_config()
        num_heads = int(getattr(config, "num_attention_heads", 0) or 0)
        head_size = getattr(config, "head_dim", None) or (config.hidden_size // num_heads if num_heads else 0)
        tables = {id(layer.weight) for layer in _tables(model)}
        window, windowed_share = _window(config)
        body = adapters = 0.0
        is_body_trained = False
        for name, parameter in model.named_parameters():
            size = _shape_of(parameter)
            if len(size) < 2 or id(parameter) in tables:
                continue
            if ".lora_" in name:
                adapters += _product(size)
            else:
                body += _product(size) * (_expert_share(config) if ".experts." in name else 1.0)
                is_body_trained = is_body_trained or parameter.requires_grad
        return cls(
            round(body),
            round(adapters),
            int(config.hidden_size) * int(config.vocab_size),
            _num_attending(config) * num_heads * int(head_size),
            is_body_trained,
            window,
            windowed_share,
        )


@dataclass(frozen=True)
class Work:
    """What one or several steps have gone through, over all ranks."""

    num_tokens: int = 0
    num_trained_tokens: int = 0
    sum_squared_lengths: int = 0
    """Sum of l² over the documents of l tokens."""
    sum_squared_beyond: int = 0
    """Sum of (l - w)² over the documents that are longer than the model's window of w tokens."""

    def __add__(self, other: Work) -> Work:
        return Work(
            self.num_tokens + other.num_tokens,
            self.num_trained_tokens + other.num_trained_tokens,
            self.sum_squared_lengths + other.sum_squared_lengths,
            self.sum_squared_beyond + other.sum_squared_beyond,
        )


def causal_flops(shape: ModelShape, work: Work) -> float:
    """Operations of forward and backward passes that have to be computed."""
    per_weight = 6 if shape.is_body_trained else 4
    body = (per_weight * shape.body + 6 * shape.adapters) * work.num_tokens
    head = per_weight * shape.head * work.num_trained_tokens
    return float(body + head + 6 * shape.attention * _attended(shape, work))


def palm_flops(shape: ModelShape, work: Work) -> float:
    """Operations by PaLM's convention, 4 N in place of 6 N for frozen weights."""
    per_weight = 6 if shape.is_body_trained else 4
    weights = per_weight * (shape.body + shape.head) + 6 * shape.adapters
    return float(weights * work.num_tokens + 12 * shape.attention * work.sum_squared_lengths)


def recomputed_flops(shape: ModelShape, work: Work) -> float:
    """What gradient checkpointing adds: the layers' forward pass once more."""
    return float(2 * (shape.body + shape.adapters) * work.num_tokens + 2 * shape.attention * _attended(shape, work))


def _attended(shape: ModelShape, work: Work) -> float:
    """Twice the pairs of tokens of which one looks at the other, as a mean over the layers."""
    return work.sum_squared_lengths - shape.windowed_share * work.sum_squared_beyond


def _window(config: Any) -> tuple[int, float]:
    """(window, share of the layers that have it) of attention."""
    window = int(getattr(config, "sliding_window", None) or 0)
    if not window or not getattr(config, "use_sliding_window", True):
        return 0, 0.0
    kinds = layer_kinds(config)
    share = kinds.count("sliding_attention") / max(1, _num_attending(config)) if kinds else 1.0
    return (window, share) if share else (0, 0.0)


def _num_attending(config: Any) -> int:
    """Layers in which tokens look at others, also beside a state (Falcon-H1's are "hybrid")."""
    kinds = layer_kinds(config)
    if not kinds:
        return int(config.num_hidden_layers)
    return sum(kind == "hybrid" or ("attention" in kind and "linear" not in kind) for kind in kinds)


def layer_kinds(config: Any) -> list[str]:
    """What each layer is, in the words of a transformers configuration; empty where it does not tell."""
    found = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or ()
    return [str(kind) for kind in found]


def _tables(model: Any) -> list[Any]:
    """The input embedding, which is looked up, and the output layer, which counts for itself."""
    found = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [layer for layer in found if layer is not None and hasattr(layer, "weight")]


def _shape_of(parameter: Any) -> tuple[int, ...]:
    # Under ZeRO-3 a partitioned parameter is empty and keeps its real shape beside it; so does one of 4 bits.
    state = getattr(parameter, "quant_state", None)
    return tuple(state.shape if state is not None else getattr(parameter, "ds_shape", parameter.shape))


def _product(size: tuple[int, ...]) -> int:
    found = 1
    for length in size:
        found *= int(length)
    return found


def _expert_share(config: Any) -> float:
    """The share of its experts that a token is sent to."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    count = next((getattr(config, name) for name in names if getattr(config, name, None)), None)
    taken = getattr(config, "num_experts_per_tok", None)
    return taken / count if count and taken else 1.0
