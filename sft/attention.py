"""Attention per document: a row of documents end to end, each of which sees itself alone. No padding, and no mask.

A mask over a row of documents costs the square of the row's length; attention per document costs the sum of the
squares of the documents' lengths, which on rows of short documents is a twentieth of it. `Layout` says where the
documents stand; it is made once per batch and reaches every layer's attention as a keyword argument of the model,
through transformers' AttentionInterface. Whether a model can be run so is found by `sft/model_check.py`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sft.sequence_parallel import attend
from sft.world import SequenceGroup

IMPLEMENTATION = "documents"
"""Our name in transformers' registry of attention implementations."""
_UNKNOWN = ("s_aux", "position_bias", "head_mask", "cache")
"""What models may hand to attention and is not computed here: with any of these a model is refused."""


@dataclass(frozen=True)
class Layout:
    """Where the documents of a row stand: end to end."""

    lengths: tuple[int, ...]
    """Tokens of each document, in order; padding is a document of its own."""
    starts: Tensor
    """Where each document begins and the last one ends, int32 (what FlashAttention calls cu_seqlens)."""
    group: SequenceGroup = field(default_factory=SequenceGroup, compare=False)
    """The ranks that share the row's tokens."""
    read: Tensor | None = field(default=None, compare=False)
    """Tokens of the row whose last state is read; None for all."""
    masks: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """Masks that layers share, made at first use."""
    num_padding: int = 0
    """Tokens of the last document, if it fills a row of fixed capacity: nothing is computed for it."""

    @classmethod
    def of(cls, lengths: Sequence[int], group: SequenceGroup | None = None) -> Layout:
        """The layout of documents of these lengths, in a row whose tokens the group shares."""
        starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return cls(tuple(lengths), starts, group or SequenceGroup())

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Layout:
        """The same layout on a device."""
        return replace(self, starts=self.starts.to(device, non_blocking=non_blocking), masks={})

    def pin_memory(self) -> Layout:
        """The same layout in pinned memory."""
        return replace(self, starts=self.starts.pin_memory(), masks={})

    def without_padding(self) -> Layout:
        """The layout of what is computed."""
        if not self.num_padding:
            return self
        if "without padding" not in self.masks:
            self.masks["without padding"] = replace(
                self, lengths=self.lengths[:-1], starts=self.starts[:-1], num_padding=0, masks={}
            )
        found: Layout = self.masks["without padding"]
        return found

    def runs(self) -> list[tuple[int, int]]:
        """(number of documents, their length) of neighbours of one length, which are computed together."""
        return [(len(list(run)), length) for length, run in groupby(self.lengths)]


@dataclass(frozen=True)
class Kind:
    """A layer's attention: softmax(q kᵀ × scale) v over what comes before, and what it does besides."""

    scale: float
    window: int | None
    """A token sees itself and this many − 1 before it."""
    softcap: float | None
    """Scores are softcap × tanh(score / softcap)."""
    dropout: float

    def within(self, length: int) -> Kind:
        """The same for documents of so many tokens, where a wider window is none."""
        return self if self.window is not None and self.window < length else replace(self, window=None)


def use_document_attention(model: Any) -> str:
    """Makes attention per document the model's implementation; what it replaces. Rows without a layout run as before.

    Args:
        model: a transformers model, or a peft model around one.

    Raises:
        ValueError: its attention does not go through transformers' AttentionInterface.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(IMPLEMENTATION, document_attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    base = transformers_model(model)
    before = str(base.config._attn_implementation)
    if not base._can_set_attn_implementation():
        raise ValueError("its attention does not go through transformers' AttentionInterface")
    base.set_attn_implementation(IMPLEMENTATION)
    return before


def transformers_model(model: Any) -> Any:
    """The model without what peft puts around it."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


@torch.compiler.disable  # type: ignore[untyped-decorator]  # with its layer, each layout would be compiled anew
def document_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document, in the form that transformers' AttentionInterface asks for.

    Args:
        module: the layer.
        query: (1, heads, tokens, width), key and value with as many heads or a divisor of them.
        attention_mask: looked at only for rows without a layout.
        dropout: on the probabilities.
        scaling: of the scores; by default width^-½.
        options: `documents` (the `Layout`), `sliding_window`, `softcap`; others that matter are refused.

    Returns:
        ((1, tokens, heads, width), None).

    Raises:
        ValueError: the layer asks for something else.
    """
    documents: Layout | None = options.pop("documents", None)
    if unknown := [name for name in _UNKNOWN if options.get(name) is not None]:
        raise ValueError(f"attention with {unknown[0]} is not computed per document")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    kind = Kind(scale, options.get("sliding_window"), options.get("softcap"), dropout)
    if documents is not None:
        by_device = _on_cuda if query.device.type == "cuda" else _one_by_one
        computed = documents.without_padding()
        if documents.num_padding:
            num_tokens = query.shape[2] - documents.num_padding
            query, key, value = (tensor[:, :, :num_tokens] for tensor in (query, key, value))
        output = attend(partial(by_device, documents=computed, kind=kind), documents.group, query, key, value)
        return functional.pad(output, (0, 0, 0, 0, 0, documents.num_padding)), None
    if kind.softcap is not None:
        is_causal = attention_mask is None
        mask = _causal_mask(query.shape[2], key.shape[2], None, query.device) if is_causal else attention_mask
        return _with_softcap(query, key, value, mask, kind).transpose(1, 2), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    found: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
    )
    return found


def _one_by_one(query: Tensor, key: Tensor, value: Tensor, documents: Layout, kind: Kind) -> Tensor:
    """A call for each run of documents of one length. Differentiable on any device."""
    runs = documents.runs()
    sizes = [number * length for number, length in runs]
    # A backward pass through `split` joins the pieces once; through slices it would fill a whole row for each.
    pieces = zip(*(torch.split(tensor, sizes, 2) for tensor in (query, key, value)), strict=True)
    found = []
    for (number, length), piece in zip(runs, pieces, strict=True):
        q, k, v = (tensor[0].unflatten(1, (number, length)).transpose(0, 1) for tensor in piece)
        together = _causal(q, k, v, documents, kind.within(length)).transpose(1, 2)
        found.append(together.reshape(1, number * length, *together.shape[2:]))
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def _causal(query: Tensor, key: Tensor, value: Tensor, documents: Layout, kind: Kind) -> Tensor:
    """(documents, heads, tokens, width) → the same."""
    length = query.shape[2]
    mask = None
    if kind.window is not None or kind.softcap is not None:
        name = (length, kind.window)
        if name not in documents.masks:
            documents.masks[name] = _causal_mask(length, length, kind.window, query.device)
        mask = documents.masks[name]
    if kind.softcap is not None:
        return _with_softcap(query, key, value, mask, kind)
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=kind.dropout,
        is_causal=mask is None,
        scale=kind.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _causal_mask(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """True where the query sees the key; the last query is the last key."""
    mask = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril_(num_keys - num_queries)
    return mask if window is None else mask.triu_(num_keys - num_queries - window + 1)


def _with_softcap(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kind: Kind) -> Tensor:
    """Attention with capped scores, which torch's scaled_dot_product_attention does not know."""
    assert kind.softcap is not None
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, 1) if groups > 1 else tensor for tensor in (key, value))
    scores = torch.tanh(query @ key.transpose(-1, -2) * (kind.scale / kind.softcap)) * kind.softcap
    if mask is not None:
        # Not −∞: a place that sees nothing, padding on the left, would become NaN and reach all others through 0 × NaN.
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask
    probabilities = functional.dropout(scores.softmax(-1, dtype=torch.float32), kind.dropout)
    return probabilities.to(value.dtype) @ value


# On CUDA. Written for torch 2.10–2.13 from their documentation; where no kernel fits, documents go one by one.


def _on_cuda(query: Tensor, key: Tensor, value: Tensor, documents: Layout, kind: Kind) -> Tensor:
    """By the first kernel that takes these tensors: flash-attn if it is installed, torch's own, FlexAttention."""
    kind = kind.within(max(documents.lengths))
    device = query.device.type
    if torch.is_autocast_enabled(device):  # it knows torch's own attention, not these
        query, key, value = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (query, key, value))
    is_half = query.dtype in (torch.float16, torch.bfloat16) and query.dtype == key.dtype == value.dtype
    width = query.shape[-1]
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    limits = (documents.starts, documents.starts, max(documents.lengths), max(documents.lengths))
    window = (-1 if kind.window is None else kind.window - 1, 0)
    if is_half and width <= 256 and (flash := _flash_attn()):
        cap = kind.softcap or 0.0
        found: Tensor = flash(
            *rows, *limits, kind.dropout, kind.scale, causal=True, window_size=(window[0], -1 if window[0] < 0 else 0),
            softcap=cap,
        )  # fmt: skip
        return found.unsqueeze(0)
    is_plain = not kind.dropout and kind.softcap is None
    if is_half and width <= 256 and is_plain and (varlen := _torch_varlen(kind.window is not None)):
        return varlen(rows, limits, kind.scale, window).unsqueeze(0)
    if not kind.dropout and (flex := _flex()):
        found = flex(query, key, value, documents, kind)
        return found.transpose(1, 2)
    return _one_by_one(query, key, value, documents, kind)


@cache
def _flash_attn() -> Any:
    try:
        from flash_attn import flash_attn_varlen_func  # type: ignore[import-not-found]
    except ImportError:
        return None
    return flash_attn_varlen_func


@cache
def _torch_varlen(with_window: bool) -> Callable[..., Tensor] | None:
    """torch's varlen_attn, whose arguments have changed from release to release; None if it is not there."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    if "window_size" not in known and (with_window or "is_causal" not in known):
        return None

    def attend(rows: list[Tensor], limits: tuple[Any, ...], scale: float, window: tuple[int, int]) -> Tensor:
        query, key, value = rows
        options: dict[str, Any] = {"scale": scale} if "scale" in known else {}
        if "scale" not in known:
            query = query * (scale * query.shape[-1] ** 0.5)
        if "is_causal" in known:
            options["is_causal"] = True
        if "window_size" in known:
            options["window_size"] = window
        if query.shape[1] != key.shape[1]:
            if "enable_gqa" in known:
                options["enable_gqa"] = True
            else:
                groups = query.shape[1] // key.shape[1]
                key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        found = varlen_attn(query, key, value, *limits, **options)
        return found if isinstance(found, Tensor) else found[0]

    return attend


@cache
def _flex() -> Callable[..., Tensor] | None:
    """FlexAttention, compiled, with a block mask that all layers of a kind share; None if it is not there."""
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    except ImportError:
        return None
    compiled = torch.compile(flex_attention, dynamic=True)

    def attend(query: Tensor, key: Tensor, value: Tensor, documents: Layout, kind: Kind) -> Tensor:
        num_tokens = query.shape[2]
        name = ("blocks", kind.window)
        if name not in documents.masks:
            places = torch.arange(num_tokens, device=query.device)
            numbers = torch.searchsorted(documents.starts[1:].to(places.dtype), places, right=True)

            def sees(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
                inside = (numbers[q] == numbers[k]) & (q >= k)
                return inside if kind.window is None else inside & (q - k < kind.window)

            documents.masks[name] = create_block_mask(sees, None, None, num_tokens, num_tokens, device=query.device)

        def capped(score: Tensor, *_place: Tensor) -> Tensor:
            return score if kind.softcap is None else torch.tanh(score / kind.softcap) * kind.softcap

        found: Any = compiled(
            query,
            key,
            value,
            score_mod=None if kind.softcap is None else capped,
            block_mask=documents.masks[name],
            scale=kind.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return found  # type: ignore[no-any-return]

    return attend
