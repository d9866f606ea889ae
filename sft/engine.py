"""Engine: forward, backward and step of one kind of parallelism, behind one narrow protocol.

Here are the protocol and the plain torch engines (one process, DDP, FSDP2); DeepSpeed's is in `deepspeed_engine.py`.
Every engine minimises the same thing: the sum of token losses over all ranks and micro-batches of an optimizer step,
each times its weight, divided by the sum of the weights in all of them. What a framework divides on top of that is
undone inside its engine and nowhere else.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.nn.parallel import DistributedDataParallel

from sft.batching import Batch
from sft.eight_bit import is_8bit, make_state, read_mean, write_mean
from sft.errors import NonFiniteError
from sft.loss import LossModule
from sft.master_weights import MasterWeights
from sft.metering import StepTimer
from sft.optimizer import set_learning_rate
from sft.pieces import KINDS, Piece, TensorKind
from sft.world import World


class Forward(Protocol):
    """What runs a model without training it; every engine does."""

    model: Any
    """The transformers (or peft) model whose parameters and configuration these are."""
    loss_module: LossModule
    """The model with its loss: what runs."""

    def evaluate(self, batch: Batch) -> Tensor:
        """The batch's sum of token losses, without gradients."""

    def logits(self, batch: Batch) -> Tensor:
        """The model's logits where trained tokens are predicted, (places, vocabulary), without gradients."""


class Engine(Forward, Protocol):
    """What the loop, the checkpoints and the export know of parallelism."""

    timer: StepTimer
    """Where the engine tells how long forward and backward passes take."""

    def accumulate(self, batch: Batch, total_weight: float, *, is_last: bool) -> Tensor:
        """Runs forward and backward of one micro-batch and adds up gradients.

        Args:
            batch: this rank's rows.
            total_weight: of the trained tokens of the whole optimizer step, over all ranks and micro-batches: their
                number where none is weighted.
            is_last: True in the last micro-batch of the step, when gradients are reduced over ranks.

        Returns:
            The batch's sum of token losses, detached.
        """

    def step(self, learning_rate: float, loss: Tensor, highest_loss: float = math.inf) -> tuple[float, float]:
        """Clips, updates the weights, clears the gradients.

        Args:
            learning_rate: of this step.
            loss: of the whole step, the same on every rank; not read before the gradient's norm, so that the host
                waits for the device once in a step.
            highest_loss: where the loss is above it, weights and AdamW's state stay to the bit as they are.

        Returns:
            (loss, the gradient's global 2-norm before clipping).

        Raises:
            NonFiniteError: one of them is no number, on every rank alike. The weights are as they were; DeepSpeed alone
                has changed them where the loss is finite and the norm is not.
        """

    def gather(self, name: str) -> Tensor:
        """One parameter's value in full precision, whole, on every rank (a collective). Only one is whole at a time."""

    def pieces(self) -> list[Piece]:
        """What this rank holds of trained parameters and of AdamW's state, in the same order whenever it is asked."""

    def read_piece(self, piece: Piece) -> Tensor:
        """The values of one of `pieces`: (size,), float32; a view of them where there is one."""

    def write_piece(self, piece: Piece, values: Tensor) -> None:
        """Sets what `read_piece` gives. After the last weight `weights_changed` must follow."""

    def weights_changed(self) -> None:
        """Brings what is computed with, such as bfloat16 copies, up to weights that were written (a collective)."""

    def start_from(self, num_steps: int) -> None:
        """Makes room for AdamW's state as after so many updates, before it is written."""


class TorchEngine:
    """Plain torch: one process, DDP, or FSDP2. The weights that are updated, and AdamW's state, are float32; bfloat16
    is for computing."""

    def __init__(
        self,
        model: Any,
        optimizer_factory: Any,
        world: World,
        *,
        bf16: bool,
        max_grad_norm: float,
        fsdp: bool,
        fsdp_shard_size: int | None = None,
        bf16_parameters: bool = False,
    ) -> None:
        """
        Args:
            model: on the CPU, the same on every rank.
            optimizer_factory: the model → its optimizer; called after sharding, when the parameters are final.
            world: the ranks.
            bf16: compute in bfloat16.
            max_grad_norm: clipping threshold.
            fsdp: shard by FSDP2 instead of replicating by DDP.
            fsdp_shard_size: neighbouring ranks that share one copy of the state; by default all ranks.
            bf16_parameters: with bf16, keep the parameters in bfloat16 beside their float32 masters. FSDP2 gathers
                them in bfloat16 in any case.
        """
        self.model = model
        self.timer = StepTimer(world.device)
        self.loss_module = LossModule(model)
        self._world = world
        self._max_grad_norm = max_grad_norm
        self._fsdp = fsdp
        self._masters = MasterWeights(model, world) if bf16_parameters and not fsdp else None
        self._autocast = bf16 and not fsdp and self._masters is None
        if fsdp:
            _shard(self.loss_module, bf16, world, fsdp_shard_size or world.size)
        model.to(world.device)
        self._forward: nn.Module = self.loss_module
        if world.is_distributed and not fsdp and self._masters is None:
            device_ids = [world.device.index] if world.device.type == "cuda" else None
            with warnings.catch_warnings():
                # torch 2.13 has another word for it, which older ones do not know.
                warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
                self._forward = DistributedDataParallel(
                    self.loss_module, device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True
                )
        self._parameters = dict(model.named_parameters())
        if self._masters is not None:
            self._parameters |= self._masters.masters
        self.optimizer: torch.optim.Optimizer = optimizer_factory(self._masters or model)

    def accumulate(self, batch: Batch, total_weight: float, *, is_last: bool) -> Tensor:
        with self._gradient_sync(is_last):
            with self._computing(), self.timer("forward"):
                loss_sum: Tensor = self._forward(batch)
            # DDP and FSDP2 average gradients over ranks; our loss is already divided by the weight of all ranks.
            averaged_over = 1 if self._masters is not None else self._world.size
            with self.timer("backward"):
                torch.autograd.backward(loss_sum * (averaged_over / total_weight))
                if self._masters is not None:
                    self._masters.finish()
        return loss_sum.detach()

    def step(self, learning_rate: float, loss: Tensor, highest_loss: float = math.inf) -> tuple[float, float]:
        trainable = [parameter for parameter in self._parameters.values() if parameter.requires_grad]
        norm = nn.utils.clip_grad_norm_(trainable, self._max_grad_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        found_loss, grad_norm = torch.stack([loss, norm.to(loss.dtype)]).tolist()
        require_finite("loss", found_loss)
        require_finite("grad_norm", grad_norm)
        set_learning_rate(self.optimizer, learning_rate)
        if found_loss <= highest_loss:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self._masters is not None:
            self._masters.publish()
        return found_loss, grad_norm

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        with self._computing():
            found: Tensor = self.loss_module(batch)
        return found

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        with self._computing():
            found: Tensor = self.loss_module(batch, only_logits=True)
        return found

    @torch.no_grad()
    def gather(self, name: str) -> Tensor:
        self._world.heartbeat.again()
        parameter = self._parameters[name]
        return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()

    def pieces(self) -> list[Piece]:
        trained = [(name, parameter) for name, parameter in self._parameters.items() if parameter.requires_grad]
        return [self._piece(name, kind, parameter) for kind in KINDS for name, parameter in trained]

    def _piece(self, name: str, kind: TensorKind, parameter: Tensor) -> Piece:
        size = parameter.numel()
        if not isinstance(parameter, DTensor):
            return Piece(name, kind, 0, size, size, self._world.rank, self._world.size)
        mesh, placements = parameter.device_mesh, parameter.placements
        shape, offset = compute_local_shape_and_global_offset(parameter.shape, mesh, placements)
        # FSDP2 shards rows, so that what a rank holds is one run of elements; the mesh's first axis has the copies.
        start = offset[0] * (size // parameter.shape[0]) if parameter.dim() and math.prod(shape) else 0
        copy, num_copies = (mesh.get_local_rank(0), mesh.size(0)) if mesh.ndim > 1 else (0, 1)
        return Piece(name, kind, start, math.prod(shape), size, copy, num_copies)

    @torch.no_grad()
    def read_piece(self, piece: Piece) -> Tensor:
        self._world.heartbeat.again()
        parameter = self._parameters[piece.name]
        if piece.kind != "weight" and is_8bit(self.optimizer):
            return read_mean(self.optimizer.state[parameter], piece.kind).view(-1)
        tensor = parameter if piece.kind == "weight" else self.optimizer.state[parameter][piece.kind]
        return (tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()).view(-1)

    @torch.no_grad()
    def write_piece(self, piece: Piece, values: Tensor) -> None:
        if piece.kind != "weight" and is_8bit(self.optimizer):
            write_mean(self.optimizer.state[self._parameters[piece.name]], piece.kind, values)
            return
        self.read_piece(piece).copy_(values)

    def weights_changed(self) -> None:
        if self._masters is not None:
            self._masters.publish()

    def start_from(self, num_steps: int) -> None:
        if is_8bit(self.optimizer):
            make_state(self.optimizer, num_steps)
            return
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                self.optimizer.state[parameter] = adamw_state(parameter, num_steps)

    def _computing(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._autocast)

    @contextlib.contextmanager
    def _gradient_sync(self, is_last: bool) -> Iterator[None]:
        """Gradients are reduced over ranks once per step, in its last micro-batch."""
        if self._masters is not None:
            self._masters.expect(is_last=is_last)
        if isinstance(self._forward, DistributedDataParallel) and not is_last:
            with self._forward.no_sync():
                yield
            return
        if isinstance(self._forward, FSDPModule):
            self._forward.set_requires_gradient_sync(is_last)
        yield


def _shard(module: LossModule, bf16: bool, world: World, shard_size: int) -> None:
    """Applies FSDP2 to each decoder layer and then to the rest.

    With several copies of the state (hybrid sharding) weights are gathered within a copy's ranks alone; gradients are
    scattered there, and then averaged over the copies.
    """
    mesh = None
    if shard_size < world.size:
        names = ("copy", "shard")
        mesh = init_device_mesh(world.device.type, (world.size // shard_size, shard_size), mesh_dim_names=names)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32)
    for layer in decoder_layers(module):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)


def compile_layers(module: nn.Module, *, fixed_sizes: bool = False) -> None:
    """Compiles each decoder layer by itself: the code of the first serves all that are alike, and nothing around them
    has to be traced.

    Sizes are symbols, so that batches of other lengths run the same code; or those of the first batch, with a second
    code, of symbols, for any other.
    """
    dynamic = None if fixed_sizes else True
    for layer in decoder_layers(module):
        layer.compile(dynamic=dynamic)
        _compile_recomputed(layer, dynamic)


def _compile_recomputed(layer: Any, dynamic: bool | None) -> None:
    """Newer transformers (5.23 does, 5.17 does not) checkpoint a layer within its `forward`. A checkpoint in which the
    graph breaks, as it does at our attention, is not compiled at all: what it calls has to be."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    is_within = isinstance(layer, GradientCheckpointingLayer) and "__call__" not in vars(GradientCheckpointingLayer)
    if not (is_within and layer.gradient_checkpointing):
        return
    # A recomputation must take the code that its forward took, not what was used last (pytorch issue 166926).
    torch._C._dynamo.eval_frame._set_lru_cache(False)  # type: ignore[attr-defined]
    compiled = torch.compile(type(layer).forward.__wrapped__, dynamic=dynamic)
    layer._gradient_checkpointing_func = partial(_checkpoint, layer._gradient_checkpointing_func, compiled)


def _checkpoint(checkpoint: Any, compiled: Any, forward: partial[Any], *args: Any) -> Any:
    return checkpoint(partial(compiled, *forward.args, **forward.keywords), *args)


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a transformer: the entries of its longest ModuleList."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def adamw_state(parameter: Tensor, num_steps: int) -> dict[str, Tensor]:
    """AdamW's state of a parameter as `torch.optim.AdamW(fused=True)` makes it, with zero means."""
    return {
        "step": torch.tensor(float(num_steps), device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


def require_finite(name: str, value: float) -> None:
    """
    Raises:
        NonFiniteError: `value` is infinite or no number.
    """
    if not math.isfinite(value):
        remedy = "The run ends here, and no checkpoint holds it. Lower learning_rate, or look at the rows of this step."
        raise NonFiniteError(f"{name} is {value}; it must be finite. {remedy}")
