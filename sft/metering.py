"""Metering: where a step's time goes, how many tokens per second, and what share of the hardware's rate that is.

Costs some microseconds per step. On a GPU, times come from events on its stream that are read when a step is logged:
nothing waits for the device in between.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from sft.config import Args
from sft.flops import ModelShape, Work, causal_flops, palm_flops
from sft.matmul_rate import measured_flops_per_s
from sft.pace import Pace, slowest_phase
from sft.world import World, has_bf16

Phase = Literal["data", "forward", "backward", "optimizer", "communication", "evaluation", "checkpoint"]
PHASES: tuple[Phase, ...] = ("data", "forward", "backward", "optimizer", "communication", "checkpoint")
"""Those that a step's record has. `communication` is what the loop itself waits for: gradients are reduced while the
backward pass runs and, under ZeRO, weights are gathered in the optimizer's step; that is part of those."""
_OWN_PHASES: tuple[Phase, ...] = ("data", "forward")
"""Those without what waits for others: in the backward pass and the optimizer's step ranks look alike; under FSDP and
ZeRO-3 they do so in a forward pass too."""
_ON_THE_HOST = ("data", "evaluation", "checkpoint")


class StepTimer:
    """Seconds in each phase of training: `with timer("forward"): …`. Phases do not nest."""

    def __init__(self, device: torch.device) -> None:
        """
        Args:
            device: on CUDA, phases that compute are measured on its stream.
        """
        self._is_cuda = device.type == "cuda"
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self.totals: defaultdict[str, float] = defaultdict(float)
        """Seconds of each phase up to the last call of `take`."""
        self._spans: dict[str, _Span] = {}
        self._pending: list[tuple[str, Any, Any]] = []
        self._unused: list[Any] = []

    def __call__(self, phase: Phase) -> _Span:
        """A context whose time is added to the phase."""
        span = self._spans.get(phase)
        if span is None:
            on_stream = self._is_cuda and phase not in _ON_THE_HOST
            span = self._spans[phase] = (_StreamSpan if on_stream else _Span)(self, phase)
        return span

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last call. On CUDA this waits for the last event: call it where a value is
        fetched from the device anyway."""
        if self._pending:
            self._pending[-1][2].synchronize()
        for phase, first, last in self._pending:
            self._seconds[phase] += first.elapsed_time(last) / 1000.0
            self._unused += (first, last)
        self._pending.clear()
        found = dict(self._seconds)
        for phase, seconds in found.items():
            self.totals[phase] += seconds
        self._seconds.clear()
        return found

    def _event(self) -> Any:
        return self._unused.pop() if self._unused else torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class _Span:
    """A phase on the host's clock."""

    __slots__ = ("_phase", "_started", "_timer")

    def __init__(self, timer: StepTimer, phase: str) -> None:
        self._timer = timer
        self._phase = phase
        self._started: Any = None

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self._timer._seconds[self._phase] += time.perf_counter() - self._started


class _StreamSpan(_Span):
    """A phase on the device's stream."""

    __slots__ = ()

    def __enter__(self) -> None:
        self._started = self._timer._event()
        self._started.record()

    def __exit__(self, *exception: object) -> None:
        event = self._timer._event()
        event.record()
        self._timer._pending.append((self._phase, self._started, event))


class Meter:
    """Rates over the steps since the last record."""

    def __init__(self, shape: ModelShape, timer: StepTimer, world: World, matmul_flops_per_s: float | None) -> None:
        """
        Args:
            shape: of the model.
            timer: the engine's.
            world: the ranks, each with a device.
            matmul_flops_per_s: what one device reaches in plain matrix products, for MFU; None: MFU is not given.
        """
        self._shape = shape
        self._timer = timer
        self._world = world
        self._rate = matmul_flops_per_s
        self._pace = Pace(world.size)
        self._restart()

    @classmethod
    def of(cls, shape: ModelShape, timer: StepTimer, args: Args, world: World) -> Meter:
        """The meter of a run. Measures the matmul rate where the settings do not say it, on all ranks at once."""
        if args.matmul_tflops is not None:
            rate = args.matmul_tflops * 1e12
        else:
            bf16 = args.in_bf16(has_bf16(world.device))
            rate = world.sum(measured_flops_per_s(world.device, bf16=bf16))[0] / world.size
        return cls(shape, timer, world, rate)

    def _restart(self) -> None:
        self._num_tokens = self._num_trained_tokens = 0
        self._own_slots = self._own_squares = self._own_beyond = 0
        self._num_steps = 0
        self._started = time.perf_counter()

    def step(
        self, num_tokens: int, num_trained_tokens: int, own_slots: int, own_squares: int, own_beyond: int = 0
    ) -> None:
        """Takes a step into account.

        Args:
            num_tokens: of the step's documents, all ranks.
            num_trained_tokens: likewise.
            own_slots: tokens that this rank computed, with padding; less than its documents have where what stands
                behind the last trained token is left out.
            own_squares: sum of the squared lengths of the documents that it computed.
            own_beyond: the same of what they have beyond the model's window.
        """
        self._num_tokens += num_tokens
        self._num_trained_tokens += num_trained_tokens
        self._own_slots += own_slots
        self._own_squares += own_squares
        self._own_beyond += own_beyond
        self._num_steps += 1

    def record(self) -> dict[str, float | None]:
        """Rates and mean seconds per step since the last record: tokens_per_s and trained_tokens_per_s (all ranks),
        padding (share of the computed tokens), tflops_per_s (one device, by what has to be computed), mfu and mfu_palm
        (shares of the matmul rate, by both conventions of `sft.flops`), and `<phase>_s`, of this rank.

        Evaluation and checkpoints are left out of the rates. A collective.
        """
        spent = self._timer.take()
        elapsed_s = time.perf_counter() - self._started - spent.get("evaluation", 0.0) - spent.get("checkpoint", 0.0)
        elapsed_s = max(elapsed_s, 1e-9)
        size = self._world.size
        busy_s = [0.0] * size * len(_OWN_PHASES)
        busy_s[self._world.rank :: size] = [spent.get(phase, 0.0) for phase in _OWN_PHASES]
        num_slots, squares, beyond, *busy_s = self._world.sum(
            self._own_slots, self._own_squares, self._own_beyond, *busy_s
        )
        self._tell_slow_ranks(
            {phase: busy_s[size * number : size * (number + 1)] for number, phase in enumerate(_OWN_PHASES)}
        )
        computed = Work(min(self._num_tokens, int(num_slots)), self._num_trained_tokens, int(squares), int(beyond))
        device_s = elapsed_s * self._world.size
        flops_per_s = causal_flops(self._shape, computed) / device_s
        found: dict[str, float | None] = {
            "tokens_per_s": self._num_tokens / elapsed_s,
            "trained_tokens_per_s": self._num_trained_tokens / elapsed_s,
            "padding": 1.0 - computed.num_tokens / max(num_slots, 1),
            "tflops_per_s": flops_per_s / 1e12,
            "mfu": flops_per_s / self._rate if self._rate else None,
            "mfu_palm": palm_flops(self._shape, computed) / device_s / self._rate if self._rate else None,
            **{f"{phase}_s": spent.get(phase, 0.0) / max(self._num_steps, 1) for phase in PHASES},
        }
        self._restart()
        return found

    def _tell_slow_ranks(self, phases_s: Mapping[str, Sequence[float]]) -> None:
        slowness = self._pace.see([sum(own) for own in zip(*phases_s.values(), strict=True)], max(self._num_steps, 1))
        rank = self._world.rank
        is_slow = slowness[rank] > 0
        self._world.heartbeat.tell_slowness(slowness[rank], slowest_phase(phases_s, rank) if is_slow else "")
        for line in self._pace.news(slowness, phases_s):
            if self._world.is_main:
                print(line, flush=True)
