"""What recomputed layers save for the backward pass, their inputs, kept in the host's memory.

With gradient checkpointing a layer keeps (tokens × width) numbers, which for long rows and many layers is most of what
is left of the activations. They go to the host while the next layer computes, and come back one layer ahead.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from strict_settings import Problem, SettingsError


class Store(Protocol):
    """Where saved tensors are kept."""

    def put(self, tensor: Tensor) -> Any:
        """Takes a tensor; what to bring to `get`. The store holds no reference to the tensor's memory after it."""

    def get(self, kept: Any) -> Tensor:
        """The tensor, where it was."""


def offload_inputs(model: Any, store: Store) -> int:
    """Makes every recomputed decoder layer keep its input in the store; how many layers there are.

    Raises:
        SettingsError: the model does not recompute layer by layer.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    layers = [layer for layer in layers if layer.gradient_checkpointing]
    if not layers:
        rule = f"be false with {model.config.model_type}, whose layers are not recomputed one by one"
        raise SettingsError(Problem("activation_offload", True, rule))
    for layer in layers:
        layer._gradient_checkpointing_func = partial(_storing, layer._gradient_checkpointing_func, store)
    return len(layers)


def _storing(checkpoint: Any, store: Store, *args: Any, **kwargs: Any) -> Any:
    """The checkpoint's own hooks are inside of these: what reaches the store is what the checkpoint itself saves."""
    with saved_tensors_hooks(store.put, store.get):
        return checkpoint(*args, **kwargs)


class _Kept:
    """A tensor in pinned memory."""

    def __init__(self, host: Tensor, device: torch.device, copied: Any, before: _Kept | None) -> None:
        self.host, self.device, self.copied = host, device, copied
        self.before = before
        """What was kept before it, and will be needed after it."""
        self.fetched: tuple[Tensor, Any] | None = None


def require_gpu(device: torch.device) -> None:
    """
    Raises:
        SettingsError: the device is none.
    """
    if device.type != "cuda":
        rule = f"be false on a {device.type}, whose activations are in the host's memory already"
        raise SettingsError(Problem("activation_offload", True, rule, "Leave it out, or run on a GPU (CUDA)."))


class PinnedMemory:
    """The host's pinned memory, to and from which a GPU copies on streams of their own while it computes."""

    def __init__(self, device: torch.device) -> None:
        """
        Args:
            device: a GPU.

        Raises:
            SettingsError: it is none.
        """
        require_gpu(device)
        self._leaving = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._returning = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._last: _Kept | None = None

    def put(self, tensor: Tensor) -> _Kept | Tensor:
        if not tensor.is_floating_point() or tensor.device.type != "cuda":
            return tensor
        host = torch.empty_like(tensor, device="cpu", pin_memory=True)
        self._leaving.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(self._leaving):
            host.copy_(tensor, non_blocking=True)
            copied = self._leaving.record_event()
        tensor.record_stream(self._leaving)  # its memory is given to nobody before it has been copied
        self._last = _Kept(host, tensor.device, copied, self._last)
        return self._last

    def get(self, kept: _Kept | Tensor) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        self._fetch(kept)
        assert kept.fetched is not None
        tensor, arrived = kept.fetched
        current = torch.cuda.current_stream(kept.device)
        current.wait_event(arrived)
        tensor.record_stream(current)
        if kept.before is not None:
            self._fetch(kept.before)
        # The last of a pass is the first to be asked for again; nothing of this pass is held beyond it.
        self._last, kept.before, kept.fetched = None, None, None
        return tensor

    def _fetch(self, kept: _Kept) -> None:
        if kept.fetched is not None:
            return
        self._returning.wait_event(kept.copied)
        with torch.cuda.stream(self._returning):
            tensor = kept.host.to(kept.device, non_blocking=True)
            kept.fetched = tensor, self._returning.record_event()


class Elsewhere:
    """No memory at all: for passes on tensors that have none either (`memory_trace`). Counts what it would hold."""

    def __init__(self) -> None:
        self.largest_bytes = 0
        """Of one tensor."""

    def put(self, tensor: Tensor) -> Any:
        if not tensor.is_floating_point():
            return tensor
        self.largest_bytes = max(self.largest_bytes, tensor.nbytes)
        return tensor.shape, tensor.dtype

    def get(self, kept: Any) -> Tensor:
        return kept if isinstance(kept, Tensor) else torch.empty(kept[0], dtype=kept[1])
