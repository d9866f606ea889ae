"""What metering costs a step: `python benchmarks/metering.py [--device cuda]`.

Every row is the time per optimizer step of what the loop does for its log and nothing else, in a loop of its own, with
no training around it: the median of repetitions of 1,000 steps of 64 documents, two micro-batches each. The last rows
log every step, with TensorBoard; training_log.json is left out, which any run writes every ten seconds. On CUDA the
spans record events on an idle stream, which are read where a step is logged. The script ends with code 1 if all of it
takes more than 0.15 ms.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from sft.batching import collate_flat
from sft.documents import Document
from sft.flops import ModelShape
from sft.history import History
from sft.metering import Meter, StepTimer
from sft.step_data import sum_of_squares
from sft.world import World

LIMIT_S = 0.15e-3
NUM_STEPS = 1000
SHAPE = ModelShape(body=25_000_000, adapters=0, head=16_000_000, attention=4096, is_body_trained=True)
LENGTHS = np.random.default_rng(0).integers(20, 2000, 10_000).astype(np.int32)
ROWS = np.random.default_rng(1).integers(0, len(LENGTHS), (64, 1)).tolist()
BATCH = collate_flat([Document([0] * 8, [True] * 8)] * 64, 0)


def spans(timer: StepTimer) -> None:
    """The spans of a step of two micro-batches."""
    with timer("data"):
        pass
    with timer("communication"):
        pass
    for _ in range(2):
        with timer("forward"):
            pass
        with timer("backward"):
            pass
    with timer("communication"):
        pass
    with timer("optimizer"):
        pass


def per_step(function: Callable[[int], object], repetitions: int) -> float:
    """Median seconds per call over repetitions of `NUM_STEPS` calls."""
    found = []
    for _ in range(repetitions):
        started = time.perf_counter()
        for step in range(NUM_STEPS):
            function(step)
        found.append((time.perf_counter() - started) / NUM_STEPS)
    return statistics.median(found)


def main() -> int:
    """Prints the table; 1 if it costs too much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    timer = StepTimer(torch.device(options.device))
    meter = Meter(SHAPE, timer, World(0, 0, 1, torch.device(options.device)), 1e12)
    base = {"epoch": 0.5, "loss": 2.0, "learning_rate": 1e-5, "grad_norm": 1.0, "num_tokens": 9, "elapsed_s": 1.0}

    def timed(step: int) -> None:
        spans(timer)
        if step % 10 == 9:
            timer.take()

    def metered(step: int) -> None:
        spans(timer)
        meter.step(60_000, 30_000, 90_000, sum_of_squares(BATCH, ROWS, LENGTHS))
        if step % 10 == 9:
            meter.record()

    with tempfile.TemporaryDirectory() as folder, History(Path(folder), 0, is_main=True, tensorboard=True) as history:
        history.start(0)

        def bare_log(step: int) -> None:
            history.records.clear()
            history.log_step({"step": step, **base, "tokens_per_s": 1.0})

        def whole_log(step: int) -> None:
            metered(step)
            history.records.clear()
            history.log_step({"step": step, **base, **meter.record()})

        times = {
            "spans, read every 10 steps": per_step(timed, options.repetitions),
            "and the step's work": per_step(metered, options.repetitions),
            "logging each step as before metering": per_step(bare_log, options.repetitions),
            "metering and logging each step": per_step(whole_log, options.repetitions),
        }
    for name, seconds in times.items():
        print(f"{name:<40}{seconds * 1e6:>8.1f} µs")
    *_, before, after = times.values()
    print(f"{'metering, where each step is logged':<40}{(after - before) * 1e6:>8.1f} µs; limit {LIMIT_S * 1e6:.0f}")
    return 0 if after - before <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
