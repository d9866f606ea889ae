"""Memory and time of a run before it: every way of sharing the model out, and the first that fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sft.activation_offload import Elsewhere, offload_inputs
from sft.attention import use_document_attention
from sft.batching import Batch, collate, collate_flat, collate_packed
from sft.config import Args
from sft.deepspeed_config import read_deepspeed_config, zero_stage
from sft.documents import Document
from sft.eight_bit import SMALLEST
from sft.engine import decoder_layers
from sft.flops import ModelShape, Work, causal_flops, palm_flops, recomputed_flops
from sft.memory import Peak, Setting, Sharing, Sizes, peak, weights_in_bf16
from sft.memory_trace import Trace, without_casts, without_memory
from sft.model import build_model
from sft.packing_check import stateful_part
from sft.sequence_shards import shard_of
from sft.trace_depth import trace_of_any_depth
from sft.ways import REPLICATED, Way, ways
from sft.world import SequenceGroup
from strict_settings import Problem, SettingsError

GIB = 2**30
RESERVED_BYTES = {"cuda": round(1.5 * GIB), "cpu": round(0.6 * GIB)}
"""What a process takes before it holds a tensor: CUDA's context and NCCL's buffers; the libraries' code."""
RESERVED_SHARE = 0.05
"""What an allocator cannot use because it lies in pieces."""
USUAL_MFU = {"cuda": 0.45, "cpu": 0.3}
"""Share of the matmul rate that dense models reach: 0.40–0.46 on H100 (llm-foundry, 1–7B), 0.2–0.35 on CPUs."""


@dataclass(frozen=True)
class Machine:
    """Where the run would be, and how it would be shared out."""

    device: str
    """cuda or cpu."""
    num_nodes: int
    procs_per_node: int
    memory_bytes: int
    """Of one device."""
    bf16: bool
    matmul_flops_per_s: float | None = None
    """Of one device."""
    emulates_bf16: bool = False
    """It has no units for bfloat16: a CPU without AVX-512 BF16 and AMX."""

    @property
    def world_size(self) -> int:
        """Ranks."""
        return self.num_nodes * self.procs_per_node

    @property
    def usable_bytes(self) -> int:
        """What is left for tensors."""
        return round(self.memory_bytes * (1 - RESERVED_SHARE)) - RESERVED_BYTES[self.device]


@dataclass(frozen=True)
class Rows:
    """The rows that a micro-batch is taken to have."""

    length: int
    """Tokens of a document."""
    trained_share: float


@dataclass(frozen=True)
class Choice:
    """One way to run, with what it takes."""

    sharing: Sharing
    settings: tuple[str, ...]
    """What to write to get it, beside what the settings have already."""
    is_yours: bool
    is_lora: bool
    is_checkpointed: bool
    peak: Peak
    fits: bool


@dataclass(frozen=True)
class StepTime:
    """An optimizer step, in which every rank has full micro-batches."""

    num_tokens: int
    """Of all ranks."""
    causal_flops: float
    palm_flops: float
    """By both conventions, all ranks."""
    fastest_s: float | None
    """If all were matrix products at their full rate."""
    usual_s: float | None
    """At the usual share of it."""


@dataclass(frozen=True)
class Estimate:
    """What `python -m sft estimate` tells."""

    machine: Machine
    rows: Rows
    sizes: Sizes
    shape: ModelShape
    choices: Sequence[Choice]
    left_out: Mapping[str, str]
    """Ways that the settings do not go with → why."""
    recommended: Choice | None
    """The first that fits; None if none does."""
    time: StepTime
    loading_bytes: int
    """Of the machine's memory, by one rank, while the model is loaded in float32."""


@dataclass(frozen=True)
class _Traced:
    sizes: Sizes
    shape: ModelShape
    trace: Trace
    offloaded_bytes: int
    """Inputs of recomputed layers in the host's memory."""


def estimate(args: Args, tokenizer: Any, machine: Machine, rows: Rows) -> Estimate:
    """Every choice for these settings, by what it takes.

    Raises:
        SettingsError: the model cannot be built, or `train_batch_size` cannot be shared out.
    """
    setting = _setting(args, machine)
    traced: dict[tuple[bool, bool, bool], _Traced] = {}

    def choice(way: Way, is_lora: bool, is_checkpointed: bool) -> Choice:
        wanted = way.variant(is_lora=is_lora, is_checkpointed=is_checkpointed)
        in_bf16 = _in_bf16(way.sharing, args, machine)
        key = (is_lora, is_checkpointed, in_bf16)
        if key not in traced:
            traced[key] = _traced(wanted, tokenizer, rows, machine, in_bf16=in_bf16)
        found = _peak(way.sharing, traced[key], setting)
        fits = found.total_bytes <= machine.usable_bytes
        is_yours = way.is_yours and (is_lora, is_checkpointed) == (args.lora.enabled, args.gradient_checkpointing)
        return Choice(way.sharing, way.changes(args, wanted), is_yours, is_lora, is_checkpointed, found, fits)

    every = list(ways(args, machine.world_size))
    left_out = {way.sharing.name: way.refusal for way in every if way.refusal is not None}
    possible = [way for way in every if way.refusal is None]
    choices = [choice(way, args.lora.enabled, each) for way in possible for each in (False, True)]
    if not args.lora.enabled:
        replicated = [way for way in possible if way.sharing.name == REPLICATED]
        try:
            choices += [choice(way, True, each) for way in replicated for each in (False, True)]
        except SettingsError as error:  # adapters that nobody asked for, on a model that takes none
            left_out["LoRA"] = error.problems[0].remedy
    yours = next(one for key, one in traced.items() if key[0] == args.lora.enabled)
    time = _step_time(yours.shape, args, machine, rows)
    loads_whole = args.deepspeed is None or args.model_config is not None or not _is_stage3(args)
    loading = 4 * yours.sizes.total // (1 if loads_whole else machine.world_size)
    best = recommended(choices)
    return Estimate(machine, rows, yours.sizes, yours.shape, choices, left_out, best, time, loading)


def own_peak(args: Args, tokenizer: Any, machine: Machine, rows: Rows) -> Peak:
    """The peak for the settings as they are, without any other choice."""
    if args.deepspeed is not None:
        sharing = Sharing.of_deepspeed("yours", read_deepspeed_config(args.deepspeed))
    else:
        name = "FSDP" if args.fsdp else REPLICATED
        sharing = Sharing(name, fsdp=args.fsdp, shard_size=args.fsdp_shard_size)
    in_bf16 = _in_bf16(sharing, args, machine)
    traced = _traced(args, tokenizer, rows, machine, in_bf16=in_bf16)
    return _peak(sharing, traced, _setting(args, machine))


def own_step_time(args: Args, tokenizer: Any, machine: Machine, rows: Rows) -> StepTime:
    """The time of a full step for the settings as they are."""
    model = without_memory(lambda: build_model(args, tokenizer, with_weights=False).model)
    return _step_time(ModelShape.of(model), args, machine, rows)


def recommended(choices: Sequence[Choice]) -> Choice | None:
    """The first that fits: the lowest stage as the settings have it, then with checkpointing, then what is offloaded,
    then adapters."""

    def order(choice: Choice) -> tuple[bool, bool, bool]:
        offloads = choice.sharing.offloads_optimizer or choice.sharing.offloads_weights
        return choice.is_lora, offloads, choice.is_checkpointed

    return next((choice for choice in sorted(choices, key=order) if choice.fits), None)


def full_batch(args: Args, rows: Rows, *, is_flat: bool) -> Batch:
    """A micro-batch of one rank with rows as long as they get, end to end or in the older forms."""
    prompt = min(round(rows.length * (1 - rows.trained_share)), rows.length - 1)
    document = Document([0] * rows.length, [False] * prompt + [True] * (rows.length - prompt))
    per_row = max(args.max_length // rows.length, 1) if args.packing else 1
    size = args.per_device_train_batch_size
    if is_flat:
        return collate_flat([document] * per_row * size, 0)
    if args.packing:
        return collate_packed([[document] * per_row] * size, 0, args.max_length)
    return collate([document] * size, 0)


def _is_stage3(args: Args) -> bool:
    config = read_deepspeed_config(args.deepspeed) if args.deepspeed is not None else {}
    return zero_stage(config) == 3


def _traced(args: Args, tokenizer: Any, rows: Rows, machine: Machine, *, in_bf16: bool) -> _Traced:
    def build() -> Any:
        model = build_model(args, tokenizer, with_weights=False).model
        return model.to(torch.bfloat16) if in_bf16 else model

    model, store = without_memory(build), Elsewhere()
    offloads = args.activation_offload and args.gradient_checkpointing
    num_offloaded = offload_inputs(model, store) if offloads else 0
    batch = full_batch(args, rows, is_flat=_attends_per_document(model, args))
    group_size = args.sequence_parallel_size
    # Of the ranks that share a row the last one has most trained tokens.
    batch = shard_of(batch, SequenceGroup(group_size - 1, group_size))
    try:
        found = trace_of_any_depth(model, batch, autocast=machine.bf16 and not in_bf16, emulated=machine.emulates_bf16)
    except ValueError as error:  # of heads that cannot be shared out
        raise SettingsError(Problem("sequence_parallel_size", group_size, "suit the model", str(error))) from error
    found = without_casts(found) if _few_bits(args) else found
    return _Traced(sizes_of(model), ModelShape.of(model), found, num_offloaded * store.largest_bytes)


def _peak(sharing: Sharing, traced: _Traced, setting: Setting) -> Peak:
    found = peak(sharing, traced.sizes, traced.trace, setting)
    return replace(found, host_bytes=found.host_bytes + traced.offloaded_bytes)


def _attends_per_document(model: Any, args: Args) -> bool:
    """Makes attention per document the model's, where it can be and is not forbidden. Whether it is right shows only on
    real weights (`sft.model_check`); architectures that cannot do it at all are known here."""
    if args.attn_implementation != "auto" or stateful_part(model.config, by_layers_alone=True):
        return False
    try:
        use_document_attention(model)
    except ValueError:
        return False
    return True


def sizes_of(model: Any) -> Sizes:
    """Numbers of weights."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    layers = [sum(parameter.numel() for parameter in layer.parameters()) for layer in decoder_layers(model)]
    total = sum(count for count, _ in counts)
    trained = [count for count, is_trained in counts if is_trained]
    frozen = [
        module.weight.numel()
        for layer in decoder_layers(model)
        for module in layer.modules()
        if isinstance(module, torch.nn.Linear) and not module.weight.requires_grad
    ]
    return Sizes(
        total,
        sum(trained),
        max(layers, default=0),
        total - sum(layers),
        tuple(count for count, _ in counts),
        sum(count for count in trained if count < SMALLEST),
        sum(frozen),
        max(frozen, default=0),
    )


def _setting(args: Args, machine: Machine) -> Setting:
    accumulation = args.accumulation_steps(machine.world_size)
    halves = machine.bf16 and args.param_dtype == "bfloat16"
    in_8bit = args.optim == "adamw_8bit"
    is_cuda = machine.device == "cuda"
    return Setting(machine.world_size, machine.bf16, accumulation, is_cuda, halves, in_8bit, _few_bits(args))


def _few_bits(args: Args) -> int | None:
    return 4 if args.load_in_4bit else 8 if args.load_in_8bit else None


def _in_bf16(sharing: Sharing, args: Args, machine: Machine) -> bool:
    return weights_in_bf16(sharing, bf16=machine.bf16, bf16_parameters=args.param_dtype == "bfloat16")


def _step_time(shape: ModelShape, args: Args, machine: Machine, rows: Rows) -> StepTime:
    batch = full_batch(args, rows, is_flat=True)
    num_batches = args.accumulation_steps(machine.world_size) * machine.world_size // args.sequence_parallel_size
    num_documents = batch.num_tokens // rows.length * num_batches
    beyond = max(rows.length - shape.window, 0) if shape.window else 0
    work = Work(
        batch.num_tokens * num_batches,
        batch.num_trained_tokens * num_batches,
        batch.num_tokens * rows.length * num_batches,
        num_documents * beyond**2,
    )
    computed = causal_flops(shape, work) + args.recomputed_share * recomputed_flops(shape, work)
    rate = machine.matmul_flops_per_s
    fastest = computed / machine.world_size / rate if rate else None
    usual = fastest / USUAL_MFU[machine.device] if fastest else None
    return StepTime(work.num_tokens, causal_flops(shape, work), palm_flops(shape, work), fastest, usual)
