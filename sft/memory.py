"""Memory of one device: what a way of sharing a model out holds beside one pass's activations. Pure arithmetic.

`memory_trace` says what forward and backward hold at each moment and how many gradients are done by then; here is what
weights, gradients, optimizer states and the frameworks' own buffers add to it. The peak is the greatest sum, over the
moments of the passes and the optimizer's step. AdamW's states are two float32 numbers per trained weight.

Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models" (2020) for the shares; the
buffers as DeepSpeed 0.19 and torch 2.13 allocate them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sft.deepspeed_config import zero_stage
from sft.memory_trace import Moment, Trace

DDP_BUCKET_BYTES = 25 * 2**20
"""What DistributedDataParallel reduces at once, by default."""
ZERO0_BUCKET = 500_000_000
"""Elements that DeepSpeed's stage 0 reduces at once."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of weights of a model."""

    total: int
    trained: int
    largest_layer: int
    """Of the decoder layer that has most."""
    outside_layers: int
    """Embeddings, output layer and last norm."""
    numbers: tuple[int, ...] = ()
    """Of each parameter."""
    small_trained: int = 0
    """Of the trained tensors that AdamW in eight bits keeps in float32."""
    loadable_in_few_bits: int = 0
    """Of the frozen matrices of the layers."""
    largest_of_them: int = 0


@dataclass(frozen=True)
class Sharing:
    """A way of sharing a model out over the ranks."""

    name: str
    zero_stage: int | None = None
    """DeepSpeed's; None: plain torch."""
    fsdp: bool = False
    shard_size: int | None = None
    """FSDP2's `fsdp_shard_size`: ranks that share one copy; None: all."""
    offloads_optimizer: bool = False
    offloads_weights: bool = False
    reduce_bucket: int = 500_000_000
    """DeepSpeed's `reduce_bucket_size`, in elements."""
    num_buckets: int = 1
    """Two with `overlap_comm`."""
    live_parameters: int = 1_000_000_000
    """DeepSpeed's `stage3_max_live_parameters`, and the distance at which it lets go of a weight."""
    prefetch: int = 50_000_000
    """DeepSpeed's `stage3_prefetch_bucket_size`."""
    persistent_below: int = 100_000
    """DeepSpeed's `stage3_param_persistence_threshold`: parameters of up to so many elements stay whole."""
    hpz_size: int = 1
    """DeepSpeed's `zero_hpz_partition_size`: ranks that share a second copy of the weights; 1: there is none."""

    @classmethod
    def of_deepspeed(cls, name: str, config: Mapping[str, Any]) -> Sharing:
        """What a DeepSpeed settings file asks for."""
        zero = config.get("zero_optimization", {})
        stage = zero_stage(config)
        overlaps = zero.get("overlap_comm")
        return cls(
            name,
            stage,
            offloads_optimizer=_is_on(zero.get("offload_optimizer")),
            offloads_weights=_is_on(zero.get("offload_param")),
            reduce_bucket=int(zero.get("reduce_bucket_size", 500_000_000)),
            num_buckets=2 if (stage == 3 if overlaps is None else overlaps) else 1,
            live_parameters=int(zero.get("stage3_max_live_parameters", 1_000_000_000)),
            prefetch=int(zero.get("stage3_prefetch_bucket_size", 50_000_000)),
            persistent_below=int(zero.get("stage3_param_persistence_threshold", 100_000)),
            hpz_size=int(zero.get("zero_hpz_partition_size", 1)),
        )


@dataclass(frozen=True)
class Setting:
    """What else the memory depends on."""

    world_size: int
    bf16: bool
    num_micro_batches: int
    """Per optimizer step."""
    counts_untouched: bool
    """True on CUDA, where a buffer is taken when it is made; on the CPU it is when it is written to."""
    bf16_parameters: bool = False
    """The torch engines compute with bfloat16 parameters beside their float32 masters."""
    adamw_8bit: bool = False
    few_bits: int | None = None
    """4 or 8: so many for the frozen matrices of the layers."""


@dataclass(frozen=True)
class Peak:
    """The moment at which a device holds most."""

    parts: Mapping[str, int]
    """Bytes of: weights, gradients, optimizer states, activations, logits and loss, buffers."""
    host_bytes: int = 0
    """What this rank holds in the machine's memory instead, where something is offloaded."""

    @property
    def total_bytes(self) -> int:
        """On the device."""
        return sum(self.parts.values())


PARTS = ("weights", "gradients", "optimizer states", "activations", "logits and loss", "buffers")


def peak(sharing: Sharing, sizes: Sizes, trace: Trace, setting: Setting) -> Peak:
    """The most that a rank's device holds in an optimizer step after the first.

    Args:
        sharing: who holds what.
        sizes: of the model.
        trace: of a model whose weights are as `weights_in_bf16` says.
        setting: world and numbers.
    """
    if sharing.zero_stage is None:
        moments = _fsdp(sharing, sizes, trace, setting) if sharing.fsdp else _replicated(sizes, trace, setting)
    elif sharing.zero_stage == 3:
        moments = _zero3(sharing, sizes, trace, setting)
    elif sharing.zero_stage in (1, 2):
        moments = _zero12(sharing, sizes, trace, setting)
    else:
        moments = _zero0(sizes, trace, setting)
    return max(moments, key=lambda found: found.total_bytes)


def weights_in_bf16(sharing: Sharing, *, bf16: bool, bf16_parameters: bool = False) -> bool:
    """Whether layers compute with bfloat16 weights; plain torch, unless told otherwise, and DeepSpeed as we set its
    stage 0 keep float32 and cast while they compute."""
    return bf16 and (bf16_parameters or bool(sharing.zero_stage) or sharing.fsdp)


def _replicated(sizes: Sizes, trace: Trace, setting: Setting) -> Iterator[Peak]:
    """One process, or DDP, whose buckets hold the gradients from its first step on."""
    fixed = {"weights": _replicated_weights(sizes, setting), "optimizer states": _adamw(sizes, setting)}
    whole = 4 * sizes.trained
    # Masters let go of their gradients after each step; DDP's buckets stay.
    is_ddp = setting.world_size > 1 and not setting.bf16_parameters
    keeps = setting.num_micro_batches > 1
    reducing = min(DDP_BUCKET_BYTES, whole) if setting.world_size > 1 else 0
    if setting.few_bits:  # one matrix at a time, as it is computed with
        reducing += (2 if setting.bf16 else 4) * sizes.largest_of_them
    for moment in trace.moments:
        gradients = whole if is_ddp or keeps else 4 * moment.num_gradients
        yield _peak(fixed, moment, gradients=gradients, buffers=reducing)
    yield _peak(fixed, gradients=whole)


def _replicated_weights(sizes: Sizes, setting: Setting) -> int:
    plain = sizes.total - (sizes.loadable_in_few_bits if setting.few_bits else 0)
    weights = 2 * plain + 4 * sizes.trained if setting.bf16_parameters else 4 * plain
    # In four bits: a scale in eight bits for each 64 weights, and one in 32 for each 256 scales. In eight: one per row.
    per_weight = {4: 0.5 + 1 / 64 + 4 / (64 * 256), 8: 1.0, None: 0.0}[setting.few_bits]
    return weights + round(per_weight * sizes.loadable_in_few_bits)


def _adamw(sizes: Sizes, setting: Setting) -> int:
    """Two means; in eight bits with a float32 scale for each 256 numbers."""
    if not setting.adamw_8bit:
        return 8 * sizes.trained
    return 8 * sizes.small_trained + round(2 * (1 + 4 / 256) * (sizes.trained - sizes.small_trained))


def _fsdp(sharing: Sharing, sizes: Sizes, trace: Trace, setting: Setting) -> Iterator[Peak]:
    """FSDP2: shards in float32; weights are gathered layer by layer, those outside the layers for the whole pass."""
    share, compute = 1 / (sharing.shard_size or setting.world_size), 2 if setting.bf16 else 4
    fixed = {"weights": round(4 * sizes.total * share), "optimizer states": round(8 * sizes.trained * share)}
    # Besides the outer weights: the layer that computes, the next one on its way, and the buffer that it arrives in.
    outer, layers = compute * sizes.outside_layers, 3 * compute * sizes.largest_layer
    whole = round(4 * sizes.trained * share)
    for moment in trace.moments:
        done = moment.num_gradients
        # The last layer's forward pass is over, its backward pass has not begun: no layer is whole.
        gathered = outer + (layers if done else 0)
        unreduced = (4 + compute) * min(done, sizes.largest_layer)
        # They are scattered in the last micro-batch alone; until then every rank adds up all of them.
        gradients = 4 * sizes.trained if setting.num_micro_batches > 1 else round(4 * done * share)
        yield _peak(fixed, moment, gradients=gradients, buffers=gathered + unreduced)
    yield _peak(fixed, gradients=whole)


def _zero0(sizes: Sizes, trace: Trace, setting: Setting) -> Iterator[Peak]:
    """DeepSpeed without sharding, with float32 weights as `deepspeed_engine.complete_config` asks for."""
    fixed = {"weights": 4 * sizes.total, "optimizer states": 8 * sizes.trained}
    whole = 4 * sizes.trained
    for moment in trace.moments:
        yield _peak(fixed, moment, gradients=whole if setting.num_micro_batches > 1 else 4 * moment.num_gradients)
    # Ranks add gradients up in flat copies of them.
    flat = min(whole, 4 * ZERO0_BUCKET) if setting.world_size > 1 else 0
    yield _peak(fixed, gradients=whole, buffers=flat)


def _zero12(sharing: Sharing, sizes: Sizes, trace: Trace, setting: Setting) -> Iterator[Peak]:
    share, size = 1 / setting.world_size, 2 if setting.bf16 else 4
    own = round(sizes.trained * share)
    fixed = {"weights": size * sizes.total}
    host = 0
    if sharing.offloads_optimizer:
        host = (4 + 8 + 4 + size) * own
    else:
        fixed |= {"weights": fixed["weights"] + 4 * own, "optimizer states": 8 * own}
    # Gradients lie in the bucket until they are reduced; only a rank's own share is copied out of it, in both stages.
    bucket = min(sharing.reduce_bucket, sizes.trained)
    for moment in trace.moments:
        accumulated = 0
        if setting.num_micro_batches > 1:
            # Stage 1 reduces in the last micro-batch alone; until then every rank adds up all of them.
            accumulated = size * (own if sharing.zero_stage == 2 else sizes.trained - moment.num_gradients)
        filled = size * min(bucket, moment.num_gradients)
        if setting.counts_untouched:
            filled = size * sharing.reduce_bucket * sharing.num_buckets
        reduced = 0 if sharing.offloads_optimizer else accumulated + size * round(moment.num_gradients * share)
        yield _peak(fixed, moment, gradients=reduced, buffers=filled, host=host)
    # The step flattens its share of the gradients into float32.
    flat = 0 if sharing.offloads_optimizer else 4 * own
    yield _peak(fixed, gradients=size * own if flat else 0, buffers=flat, host=host)


def _zero3(sharing: Sharing, sizes: Sizes, trace: Trace, setting: Setting) -> Iterator[Peak]:
    share, size = 1 / setting.world_size, 2 if setting.bf16 else 4
    own = round(sizes.trained * share)
    kept = round(size * sizes.total * share)
    if sharing.hpz_size > 1:
        kept += round(size * sizes.total / sharing.hpz_size)
    weights, host = (0, kept) if sharing.offloads_weights else (kept, 0)
    fixed = {"weights": weights, "optimizer states": 0}
    if sharing.offloads_optimizer:
        host += (4 + 8 + 4) * own
    else:
        fixed = {"weights": weights + 4 * own, "optimizer states": 8 * own}
    gradients = 0 if sharing.offloads_optimizer else size * own
    persistent = sum(number for number in sizes.numbers if number <= sharing.persistent_below)
    gathered = size * min(sizes.total, max(sharing.live_parameters, persistent))
    # Made once and kept; what has been written to stays.
    bucket = size * (sharing.reduce_bucket if setting.counts_untouched else min(sharing.reduce_bucket, sizes.trained))
    for moment in trace.moments:
        yield _peak(fixed, moment, gradients=gradients, buffers=gathered + bucket, host=host)
    # A full bucket is laid out anew by ranks, and scattered.
    laid_out = size * min(sharing.reduce_bucket, sizes.trained)
    scattered = laid_out + round(laid_out * share)
    yield _peak(fixed, gradients=gradients, buffers=gathered + bucket + scattered, host=host)
    flat = 0 if sharing.offloads_optimizer else 4 * own
    yield _peak(fixed, gradients=gradients, buffers=flat + bucket + size * persistent, host=host)


def _peak(
    fixed: Mapping[str, int], moment: Moment | None = None, *, gradients: int = 0, buffers: int = 0, host: int = 0
) -> Peak:
    held = moment.held_bytes if moment is not None else {}
    parts = {
        **fixed,
        "gradients": gradients,
        "activations": held.get("activations", 0) + held.get("weights in bf16", 0),
        "logits and loss": held.get("logits and loss", 0),
        "buffers": buffers,
    }
    return Peak({name: parts.get(name, 0) for name in PARTS}, host)


def _is_on(offload: Any) -> bool:
    return isinstance(offload, Mapping) and offload.get("device", "none") != "none"
