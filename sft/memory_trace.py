"""What a forward and a backward pass keep in memory, found by going through them without computing anything.

The model's own forward, the loss and torch's autograd run on fake tensors (`FakeTensorMode`): they have shapes, types
and a device, and no memory. Every tensor's storage is counted from the operation that makes it until it is freed.
Whatever the model, the attention or the loss is, this holds for it, and no figure stands here for any architecture.

Integers of the batch stay real, because programs branch on them: lengths of documents, positions that are trained.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from sft.attention import transformers_model
from sft.batching import Batch
from sft.engine import decoder_layers
from sft.loss import LossModule
from sft.output_layer import output_layer_of

Kind = Literal["activations", "weights in bf16", "logits and loss"]
"""What a tensor of a pass is: something of the layers, a parameter's copy in the number format of computing, or
something that came after the last layer."""


@dataclass(frozen=True)
class Moment:
    """What is held at one moment, gradients of parameters aside."""

    num_gradients: int
    """Elements of parameters whose gradient is done."""
    held_bytes: Mapping[Kind, int]

    @property
    def total_bytes(self) -> int:
        """All that is held."""
        return sum(self.held_bytes.values())


@dataclass(frozen=True)
class Trace:
    """One micro-batch's passes.

    Attributes:
        moments: for each number of finished gradients the moment at which most is held, in order.
        saved_bytes: what the forward pass leaves for the backward pass.
    """

    moments: tuple[Moment, ...]
    saved_bytes: int


_INDEXED_BY_LISTS = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)

_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm", "aten::baddbmm_")
_DEVICE = torch.ops.prim.device.default
_GROUPED_MM = torch.ops.aten._grouped_mm.default


def without_memory(build: Callable[[], Any]) -> Any:
    """The model that `build` makes, with parameters that have shape, type and device and no memory, of whatever size.

    Built on torch's meta device, on which no operation computes; then each tensor becomes a fake one of the CPU, for
    programs look at where a tensor is.
    """
    with torch.device("meta"):
        model = build()
    fake = FakeTensorMode(allow_non_fake_inputs=True)  # what comes from the batch is real
    made: dict[int, Tensor] = {}  # tied parameters stay one
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = made.setdefault(id(parameter), _fake_parameter(parameter, fake))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = made.setdefault(id(buffer), _fake_like(buffer, fake))
    return model


def _fake_parameter(parameter: Tensor, fake: FakeTensorMode) -> Tensor:
    return nn.Parameter(_fake_like(parameter, fake), requires_grad=parameter.requires_grad)


def _fake_like(tensor: Tensor, fake: FakeTensorMode) -> Tensor:
    with fake:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")


def trace(model: Any, batch: Batch, *, autocast: bool, emulated: bool = False) -> Trace:
    """What forward and backward of one micro-batch hold beside weights and gradients, with the loss in tiles where the
    output layer is of a kind that can.

    Args:
        model: from `without_memory`, in the number format that the engine has its weights in.
        batch: real.
        autocast: compute in bfloat16 with float32 weights, as the torch engines do.
        emulated: the processor has no units for bfloat16. Its matrix products are then added up in float32, in a buffer
            as large as the whole product (oneDNN 3.12).
    """
    module = LossModule(model)
    module.output_layer = output_layer_of(transformers_model(model))
    counter = _Counter(model, emulated)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handles = [parameter.register_post_accumulate_grad_hook(counter.gradient_done) for parameter in parameters]
    handles.append(decoder_layers(model)[-1].register_forward_hook(counter.layers_done))
    device = next(model.parameters()).device.type
    model.train()
    try:
        with counter:
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                loss_sum = module(batch)
            saved_bytes = counter.start_backward()
            torch.autograd.backward(loss_sum * 1.0)
    finally:
        for handle in handles:
            handle.remove()
    return Trace(tuple(counter.moments.values()), saved_bytes)


def without_casts(found: Trace) -> Trace:
    """The same passes with weights that are made anew whenever they are needed, as those in four and eight bits are."""
    moments = (
        Moment(moment.num_gradients, {kind: n for kind, n in moment.held_bytes.items() if kind != "weights in bf16"})
        for moment in found.moments
    )
    return Trace(tuple(moments), found.saved_bytes)


@dataclass
class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages that are alive."""

    model: nn.Module
    emulated: bool = False
    moments: dict[int, Moment] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        tensors = [*self.model.parameters(), *self.model.buffers()]
        self._fake: FakeTensorMode = tensors[0].fake_mode  # type: ignore[attr-defined]
        self._weights = {tensor.untyped_storage()._cdata for tensor in tensors}
        self._alive: dict[int, tuple[Kind, int, Any]] = {}
        self._held: Counter[Kind] = Counter()
        self._num_gradients = 0
        self._kind: Kind = "activations"
        self._in_backward = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # asked for two times out of three; makes nothing
        kwargs = kwargs or {}
        out = self._run(func, args, kwargs)
        kind = self._kind
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func is torch.ops.aten._to_copy.default and inputs[0].untyped_storage()._cdata in self._weights:
            kind = "weights in bf16"
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf, kind)
        added_up = self._added_up(func, out)
        self._held[kind] += added_up
        self._note()
        self._held[kind] -= added_up
        return out

    def _added_up(self, func: Any, out: Any) -> int:
        """Bytes of the float32 buffer that a product takes while it is computed."""
        is_product = self.emulated and func._schema.name in _PRODUCTS
        return 4 * out.numel() if is_product and out.dtype == torch.bfloat16 else 0

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        are_real = bool(tensors) and not any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if are_real:
            out = func(*args, **kwargs)
            # Only integers stay real: what is computed from them as floating point may become large.
            return tree_map_only(Tensor, self._as_fake_if_floating, out)
        if func in _INDEXED_BY_LISTS:
            args = (args[0], [number for index in args[1] for number in _as_numbers(index)], *args[2:])
        with self._fake:
            out = _grouped_mm(func, *args, **kwargs) if func is _GROUPED_MM else func(*args, **kwargs)
        if not tensors and not _has_floating(out):
            return func(*args, **kwargs)  # made from nothing but numbers, such as arange
        return out

    def _as_fake_if_floating(self, tensor: Tensor) -> Tensor:
        return self._fake.from_tensor(tensor) if tensor.is_floating_point() else tensor

    def _count(self, tensor: Tensor, kind: Kind) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._weights or key in self._alive:
            return
        num_bytes = storage.nbytes()
        self._alive[key] = (kind, num_bytes, weakref.ref(storage, lambda _: self._freed(key)))
        self._held[kind] += num_bytes

    def _freed(self, key: int) -> None:
        kind, num_bytes, _ = self._alive.pop(key)
        self._held[kind] -= num_bytes

    def _note(self) -> None:
        so_far = self.moments.get(self._num_gradients)
        if so_far is None or self._held.total() > so_far.total_bytes:
            self.moments[self._num_gradients] = Moment(self._num_gradients, dict(self._held))

    def layers_done(self, *_: Any) -> None:
        """What is made from here to the start of the backward pass belongs to the loss."""
        if not self._in_backward:
            self._kind = "logits and loss"

    def start_backward(self) -> int:
        """Bytes that the forward pass left."""
        self._in_backward = True
        return self._held.total()

    def gradient_done(self, parameter: Tensor) -> None:
        """Takes a finished gradient out of the count: where it goes is the engine's affair."""
        self._num_gradients += parameter.numel()
        parameter.grad = None
        self._kind = "activations"


def _as_numbers(index: Tensor | None) -> Sequence[Tensor | None]:
    """A real mask as the numbers of its places, one tensor for each of its dimensions: a fake mask has no number of
    places."""
    is_mask = isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor)
    return index.nonzero(as_tuple=True) if is_mask and index is not None else [index]


def _grouped_mm(func: Any, left: Tensor, right: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The experts' product. Its fake form takes bfloat16 alone, which the real one on the CPU does not insist on."""
    out: Tensor = func(left.to(torch.bfloat16), right.to(torch.bfloat16), *args, **kwargs)
    return torch.empty_like(out, dtype=left.dtype)


def _has_floating(out: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in tree_leaves(out))
