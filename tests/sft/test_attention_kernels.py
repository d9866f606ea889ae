"""What each CUDA kernel for attention per document is told, by stand-ins that compute on the CPU: none has run here."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from sft import attention
from sft.attention import Kind, Layout

LENGTHS = (3, 9, 9, 1, 14)


def expected(query: Tensor, key: Tensor, value: Tensor, kind: Kind) -> Tensor:
    """Attention by its formula, one document and one token at a time: (tokens, heads, width)."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    found, start = torch.zeros_like(query), 0
    for length in LENGTHS:
        for place in range(start, start + length):
            first = start if kind.window is None else max(start, place - kind.window + 1)
            scores = torch.einsum("hd,khd->hk", query[place], key[first : place + 1]) * kind.scale
            if kind.softcap is not None:
                scores = torch.tanh(scores / kind.softcap) * kind.softcap
            found[place] = torch.einsum("hk,khd->hd", scores.softmax(-1), value[first : place + 1])
        start += length
    return found


def by_arguments(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, window: tuple[int, int], **kind: Any
) -> Tensor:
    """What the documentation of the kernels says that they compute."""
    assert starts.tolist() == [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    assert starts.dtype == torch.int32
    assert longest == max(LENGTHS)
    left, right = window
    assert right == 0
    return expected(query, key, value, Kind(window=None if left < 0 else left + 1, dropout=0.0, **kind))


def torch_2_10(q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, is_causal: bool = False) -> Tensor:
    assert q.shape[1] == k.shape[1]
    assert is_causal
    return by_arguments(q, k, v, cu_q, max_q, (-1, 0), scale=q.shape[-1] ** -0.5, softcap=None)


def torch_2_11(
    q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, *, scale: float, window_size: Any = (-1, -1)
) -> Tensor:
    assert q.shape[1] == k.shape[1]
    return by_arguments(q, k, v, cu_q, max_q, window_size, scale=scale, softcap=None)


def torch_2_13(
    q: Any,
    k: Any,
    v: Any,
    cu_q: Any,
    cu_k: Any,
    max_q: int,
    max_k: int,
    *,
    scale: Any = None,
    window_size: Any = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    assert enable_gqa == (q.shape[1] != k.shape[1])
    return by_arguments(q, k, v, cu_q, max_q, window_size, scale=scale, softcap=None)


def flash_attn(
    q: Any,
    k: Any,
    v: Any,
    cu_q: Any,
    cu_k: Any,
    max_q: int,
    max_k: int,
    dropout: float,
    scale: float,
    *,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
) -> Tensor:
    assert causal
    assert dropout == 0.0
    return by_arguments(q, k, v, cu_q, max_q, (window_size[0], 0), scale=scale, softcap=softcap or None)


def tensors(dtype: torch.dtype, num_key_heads: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, heads, sum(LENGTHS), 8, dtype=dtype) for heads in (4, num_key_heads, num_key_heads)]


def assert_kernel_is_told(
    monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., Tensor], kind: Kind, *, used: bool = True
) -> None:
    calls = []

    def counted(*inputs: Any, **options: Any) -> Tensor:
        calls.append(options)
        return kernel(*inputs, **options)

    if kernel is flash_attn:
        module = ModuleType("flash_attn")
        module.flash_attn_varlen_func = counted  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "flash_attn", module)
    else:
        counted.__signature__ = inspect.signature(kernel)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "flash_attn", None)
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", counted)
    monkeypatch.setattr(attention, "_flex", lambda: None)
    attention._flash_attn.cache_clear()
    attention._torch_varlen.cache_clear()
    try:
        for num_key_heads in (4, 2):
            inputs = tensors(torch.bfloat16, num_key_heads)
            found = attention._on_cuda(*inputs, Layout.of(LENGTHS), kind)
            assert found.shape == (1, sum(LENGTHS), 4, 8)
            rows = [tensor[0].transpose(0, 1).float() for tensor in inputs]
            torch.testing.assert_close(found[0].float(), expected(*rows, kind), atol=5e-2, rtol=5e-2)
    finally:
        attention._flash_attn.cache_clear()
        attention._torch_varlen.cache_clear()
    assert len(calls) == (2 if used else 0)


@pytest.mark.parametrize("window", [None, 4, 100], ids=["whole", "window", "wide window"])
@pytest.mark.parametrize("kernel", [torch_2_10, torch_2_11, torch_2_13, flash_attn])
def test_kernels_are_told_boundaries_scale_and_window(
    kernel: Callable[..., Tensor], window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = kernel is not torch_2_10 or window != 4  # which knows no window: documents go one by one
    assert_kernel_is_told(monkeypatch, kernel, Kind(0.3, window, None, 0.0), used=used)


def test_only_kernels_that_know_softcapping_are_used_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Kind(0.3, 4, 0.7, 0.0)
    assert_kernel_is_told(monkeypatch, torch_2_13, kind, used=False)
    assert_kernel_is_told(monkeypatch, flash_attn, kind)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 4])
def test_flex_attention_gets_the_same_mask(
    window: int | None, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    attention._flash_attn.cache_clear()
    attention._flex.cache_clear()
    kind = Kind(0.3, window, softcap, 0.0)
    try:
        inputs = tensors(torch.float32, 2)  # no other kernel takes float32
        found = attention._on_cuda(*inputs, Layout.of(LENGTHS), kind)
    finally:
        attention._flash_attn.cache_clear()
        attention._flex.cache_clear()
    rows = [tensor[0].transpose(0, 1) for tensor in inputs]
    torch.testing.assert_close(found[0], expected(*rows, kind), atol=1e-5, rtol=1e-5)
