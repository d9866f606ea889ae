"""DeepSpeed's ZeRO behind the Engine protocol. The only file that imports deepspeed."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sft.batching import Batch
from sft.config import Args
from sft.deepspeed_config import zero_stage
from sft.engine import adamw_state, require_finite
from sft.loss import LossModule
from sft.metering import StepTimer
from sft.optimizer import set_learning_rate
from sft.pieces import KINDS, Piece, TensorKind
from sft.world import World
from strict_settings import Problem, SettingsError


def complete_config(
    config: dict[str, Any], args: Args, world: World, *, bf16: bool, accumulation: int
) -> dict[str, Any]:
    """The settings that DeepSpeed gets: the file's, and what follows from ours.

    Stages 1 to 3 keep float32 weights beside bfloat16 ones. Stage 0 has only one set: they stay float32, and what is
    computed with them is cast, as under DDP.
    """
    shared_by = config.get("zero_optimization", {}).get("zero_hpz_partition_size", 1)
    if world.size % shared_by:
        rule, remedy = f"divide the {world.size} processes", "Take the number of processes of a node."
        raise SettingsError(Problem("zero_hpz_partition_size", shared_by, rule, remedy, where=str(args.deepspeed)))
    casts = bf16 and zero_stage(config) == 0
    return {
        # Our AdamW is torch's fused one: no C++ is compiled, and it is faster than DeepSpeed's on the CPU.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        **config,
        "train_micro_batch_size_per_gpu": args.per_device_train_batch_size,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": args.per_device_train_batch_size * accumulation * world.size,
        "gradient_clipping": args.max_grad_norm,
        "bf16": {"enabled": bf16 and not casts},
        "torch_autocast": {"enabled": casts, "dtype": "bfloat16"},
    }


@contextlib.contextmanager
def partitioned_loading(config: dict[str, Any], world: World, *, enabled: bool) -> Iterator[None]:
    """While it is open, transformers loads a model under ZeRO-3 without holding all of it in any one process.

    Random weights are made whole (`enabled=False`): on partitioned ones transformers' initialisation has no effect.
    """
    if zero_stage(config) < 3 or not enabled:
        yield
        return
    initialize_deepspeed(world)
    from transformers.integrations import HfDeepSpeedConfig

    registration = HfDeepSpeedConfig(config)  # transformers looks for it through a weak reference
    yield
    del registration


def initialize_deepspeed(world: World) -> Any:
    """The deepspeed module, using the process group that is there, with nothing compiled."""
    if world.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", str(world.local_rank))
    import deepspeed
    from deepspeed.ops.op_builder.builder import OpBuilder  # noqa: F401  (probing operators needs it loaded)
    from deepspeed.runtime.zero import stage_1_and_2
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # torch 2.13 has other words for collectives, which DeepSpeed does not know yet: several lines of a log per step.
    warnings.filterwarnings("ignore", message="`torch.distributed.* is deprecated", category=FutureWarning)
    if world.device.type == "cpu":
        # Otherwise the first use compiles a shared-memory all-reduce in C++, for half a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        stage_1_and_2.all_gather_dp_groups = _gather_by_broadcasts
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)
    return deepspeed


def _gather_by_broadcasts(
    *, partitioned_param_groups: Sequence[Sequence[Tensor]], dp_process_group: Sequence[Any], **_: Any
) -> None:
    """Sends every rank's part of the updated weights to all others, for gloo: its all-gather copies through lists, at
    0.4 GB/s between two ranks where broadcasts reach 3.4. The arguments are those of DeepSpeed's own."""
    for parts, group in zip(partitioned_param_groups, dp_process_group, strict=True):
        for rank, part in enumerate(parts):
            dist.broadcast(part, dist.get_global_rank(group, rank), group=group)


class DeepSpeedEngine:
    """ZeRO 0–3 with torch's fused AdamW as the client optimizer."""

    def __init__(self, model: Any, optimizer: torch.optim.Optimizer, world: World, config: dict[str, Any]) -> None:
        """
        Args:
            model: under ZeRO-3 loaded within `partitioned_loading`.
            optimizer: over the model's trainable parameters.
            world: the ranks; the process group must be there.
            config: from `complete_config`.
        """
        deepspeed = initialize_deepspeed(world)
        self.model = model
        self.timer = StepTimer(world.device)
        self.loss_module = LossModule(model)
        self._world = world
        self._stage = zero_stage(config)
        self._gathered = deepspeed.zero.GatheredParameters
        self._engine, *_ = deepspeed.initialize(
            model=self.loss_module, optimizer=optimizer, config=config, dist_init_required=False
        )
        self._parameters = dict(model.named_parameters())
        self._steps_own_optimizer = self._engine.optimizer is optimizer

    def accumulate(self, batch: Batch, total_weight: float, *, is_last: bool) -> Tensor:
        self._engine.set_gradient_accumulation_boundary(is_last)
        with self.timer("forward"):
            loss_sum: Tensor = self._engine(batch)
        # DeepSpeed averages gradients over ranks; our loss is already divided by the weight of all ranks.
        with self.timer("backward"):
            self._engine.backward(loss_sum * (self._world.size / total_weight), scale_wrt_gas=False)
        return loss_sum.detach()

    def step(self, learning_rate: float, loss: Tensor, highest_loss: float = math.inf) -> tuple[float, float]:
        found_loss = float(loss)  # DeepSpeed computes the norm and updates the weights in one
        require_finite("loss", found_loss)
        set_learning_rate(self._engine.optimizer, learning_rate)
        own_norm = self._norm_of_replicated_gradients() if self._steps_own_optimizer else None
        with self._without_updates() if found_loss > highest_loss else contextlib.nullcontext():
            self._engine.step()
        grad_norm = float(self._engine.get_global_grad_norm() if own_norm is None else own_norm)
        require_finite("grad_norm", grad_norm)
        return found_loss, grad_norm

    @contextlib.contextmanager
    def _without_updates(self) -> Iterator[None]:
        """While it is open a step clears the gradients and computes their norm, and AdamW leaves everything as it is:
        DeepSpeed itself has a way to leave a step out for an overflow alone."""
        optimizer = self._base_optimizer
        optimizer.step = lambda *_, **__: None
        try:
            yield
        finally:
            del optimizer.step  # the instance's, which has hidden the class's

    def _norm_of_replicated_gradients(self) -> Tensor:
        """What DeepSpeed does not tell in stage 0 with float32, where it steps our optimizer as it is."""
        return nn.utils.get_total_norm([p.grad for p in self._parameters.values() if p.grad is not None])

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        found: Tensor = self._engine(batch)
        return found

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        found: Tensor = self._engine(batch, only_logits=True)
        return found

    @torch.no_grad()
    def gather(self, name: str) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        self._world.heartbeat.again()
        parameter = self._parameters[name]
        if self._is_partitioned(parameter):
            whole: Tensor = safe_get_full_fp32_param(parameter)
            return whole.view(getattr(parameter, "ds_shape", parameter.shape))
        with self._gathered([parameter], enabled=self._stage == 3):
            value: Tensor = parameter.detach().clone()
            return value

    def pieces(self) -> list[Piece]:
        trained = [(name, parameter) for name, parameter in self._parameters.items() if parameter.requires_grad]
        found = [self._piece(name, kind, parameter) for kind in KINDS for name, parameter in trained]
        return [piece for piece in found if piece is not None]

    def _piece(self, name: str, kind: TensorKind, parameter: Any) -> Piece | None:
        if self._stage == 0:
            size = parameter.numel()
            return Piece(name, kind, 0, size, size, self._world.rank, self._world.size)
        if self._stage == 3:
            # Each rank has an equal part of the flattened parameter, the last ones padded.
            whole_size, padded = int(parameter.ds_numel), int(parameter.ds_tensor.ds_numel)
            start = min(self._world.rank * padded, whole_size)
            return Piece(name, kind, start, min(padded, whole_size - start), whole_size)
        if parameter._hp_mapping is None:  # other ranks update it
            return None
        address = parameter._hp_mapping.lp_fragment_address
        return Piece(name, kind, address.start, address.numel, parameter.numel())

    @torch.no_grad()
    def read_piece(self, piece: Piece) -> Tensor:
        self._world.heartbeat.again()
        parameter, is_weight = self._parameters[piece.name], piece.kind == "weight"
        if self._stage == 0:
            held: Tensor = parameter.detach() if is_weight else self._base_optimizer.state[parameter][piece.kind]
            return held.view(-1)
        if self._stage == 3:
            from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

            part: Tensor = (
                safe_get_local_fp32_param(parameter)
                if is_weight
                else safe_get_local_optimizer_state(parameter, piece.kind)
            )
            return part.view(-1)[: piece.size]
        fragment: Tensor = parameter._hp_mapping.get_hp_fragment(None if is_weight else piece.kind)
        return fragment

    @torch.no_grad()
    def write_piece(self, piece: Piece, values: Tensor) -> None:
        if self._stage < 3:
            self.read_piece(piece).copy_(values)
            return
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        parameter = self._parameters[piece.name]
        padded = torch.zeros(int(parameter.ds_tensor.ds_numel), device=self._world.device)
        padded[: piece.size] = values
        if piece.kind == "weight":
            safe_set_local_fp32_param(parameter, padded)
        else:
            safe_set_local_optimizer_state(parameter, padded, piece.kind)

    @torch.no_grad()
    def weights_changed(self) -> None:
        if self._stage in (1, 2):
            self._engine.optimizer.update_lp_params()
        if self._stage == 3:
            for name, parameter in self._parameters.items():
                if parameter.requires_grad:
                    whole = self.gather(name)
                    with self._gathered([parameter], modifier_rank=0):
                        parameter.copy_(whole)

    def start_from(self, num_steps: int) -> None:
        zero_optimizer, state = self._engine.optimizer, self._base_optimizer.state
        for partition in self._own_partitions(zero_optimizer):
            state[partition] = adamw_state(partition, num_steps)
        if self._stage in (1, 2):
            zero_optimizer._lazy_init_hp_params_optimizer_state()

    def _own_partitions(self, zero_optimizer: Any) -> list[Tensor]:
        """The float32 tensors that this rank's AdamW updates."""
        if self._stage == 3:
            return list(zero_optimizer.fp32_partitioned_groups_flat)
        return [parameter for group in self._base_optimizer.param_groups for parameter in group["params"]]

    @property
    def _base_optimizer(self) -> Any:
        """torch's AdamW, which DeepSpeed may have wrapped."""
        return getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)

    @staticmethod
    def _is_partitioned(parameter: Any) -> bool:
        """True if DeepSpeed keeps the float32 values apart from the parameter."""
        if not parameter.requires_grad:
            return False
        return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")
