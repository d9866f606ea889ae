"""bfloat16 parameters that a model computes with, and their float32 masters, which the optimizer updates.

A learning rate moves a weight by less than bfloat16 can hold (it has 8 bits; 1 + 2⁻⁹ is 1), so what is updated must be
float32 (Micikevicius et al., "Mixed Precision Training", 2018). Gradients leave the parameters as soon as they are
done, and are added up over micro-batches and over ranks in float32. FSDP2 and DeepSpeed do the like by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sft.attention import transformers_model
from sft.world import World

BUCKET_BYTES = 25 * 2**20
"""What is reduced over ranks at once while the backward pass goes on; DistributedDataParallel's default."""


class MasterWeights:
    """The masters of a model's trained parameters. The model's own become bfloat16, frozen ones too."""

    def __init__(self, model: Any, world: World, bucket_bytes: int = BUCKET_BYTES) -> None:
        """
        Args:
            model: in float32, the same on every rank. It is moved to the world's device.
            world: the ranks.
            bucket_bytes: of the gradients that are reduced together.
        """
        strict = getattr(transformers_model(model), "_keep_in_fp32_modules_strict", None) or ()
        halved = [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if parameter.is_floating_point() and not set(name.split(".")) & set(strict)
        ]
        for _, parameter in halved:
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
        model.to(world.device)
        self._world = world
        self._parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.masters = {name: nn.Parameter(parameter.data) for name, parameter in self._parameters.items()}
        for _, parameter in halved:
            parameter.data = parameter.data.bfloat16()
        self._buckets = _in_buckets([*reversed(self.masters)], self.masters, bucket_bytes)
        self._is_last = False
        self._missing: list[set[str]] = []
        self._running: list[Any] = []
        for number, bucket in enumerate(self._buckets):
            for name in bucket:
                done = partial(self._take, name, self.masters[name], number)
                self._parameters[name].register_post_accumulate_grad_hook(done)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name in the model, master): what an optimizer is made of."""
        yield from self.masters.items()

    def expect(self, *, is_last: bool) -> None:
        """Before a backward pass: whether it is the step's last, in which gradients are reduced over ranks."""
        self._is_last = is_last and self._world.size > 1
        self._missing = [set(bucket) for bucket in self._buckets]
        self._running.clear()

    def finish(self) -> None:
        """After it: waits for the sums over ranks."""
        if not self._is_last:
            return
        for missing in self._missing:
            for name in missing:  # what this rank's part of the model did not use, another rank's did
                master = self.masters[name]
                master.grad = torch.zeros_like(master) if master.grad is None else master.grad
            missing.clear()
        self._reduce_what_is_done()
        for work in self._running:
            work.wait()

    @torch.no_grad()
    def publish(self) -> None:
        """Gives the parameters their masters' values."""
        torch._foreach_copy_([*self._parameters.values()], [*self.masters.values()])

    @torch.no_grad()
    def _take(self, name: str, master: nn.Parameter, bucket: int, parameter: Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad += parameter.grad
        parameter.grad = None
        if self._is_last:
            self._missing[bucket].discard(name)
            self._reduce_what_is_done()

    def _reduce_what_is_done(self) -> None:
        """Starts the sums over ranks of complete buckets, in the order that all ranks have."""
        while len(self._running) < len(self._buckets) and not self._missing[len(self._running)]:
            masters = [self.masters[name] for name in self._buckets[len(self._running)]]
            gradients = [master.grad for master in masters if master.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            for master, part in zip(masters, flat.split([master.numel() for master in masters]), strict=True):  # type: ignore[no-untyped-call]
                master.grad = part.view_as(master)
            self._running.append(dist.all_reduce(flat, async_op=True))


def _in_buckets(names: Sequence[str], masters: dict[str, nn.Parameter], bucket_bytes: int) -> list[list[str]]:
    """The names in runs of about so many bytes."""
    buckets: list[list[str]] = []
    size = bucket_bytes
    for name in names:
        if size >= bucket_bytes:
            buckets.append([])
            size = 0
        buckets[-1].append(name)
        size += masters[name].numel() * 4
    return buckets
