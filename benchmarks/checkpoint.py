"""What a checkpoint costs the training: `python benchmarks/checkpoint.py [--parameters MILLIONS] [--rounds N]`.

One process on the CPU trains nothing: its step is a product of matrices on one thread, so that all that is seen is
what saving takes away. Printed are the time for which `save` holds the step up, beside the time that copying the same
bytes in memory takes; and the time that is lost to the steps while a thread hashes, writes and syncs. Before the table
is printed the last checkpoint is compared with its manifest and its values with those that were saved.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from sft.checkpoint import Checkpoints, RunState
from sft.engine import TorchEngine
from sft.fence import Holder, take
from sft.identity import Identity
from sft.pieces import PartFiles
from sft.world import World

SOLO = World(0, 0, 1, torch.device("cpu"))
ROWS = 1024
INTERVAL_S = 60.0
"""Between two checkpoints, for the share of the training time."""


def engine_of(millions: int) -> TorchEngine:
    """Parameters in matrices of 1024 × 1024, with AdamW's state."""
    model = nn.ModuleList(nn.Linear(ROWS, ROWS, bias=False) for _ in range(max(millions * 10**6 // ROWS**2, 1)))
    engine = TorchEngine(
        model, lambda m: torch.optim.AdamW(m.parameters()), SOLO, bf16=False, max_grad_norm=1.0, fsdp=False
    )
    engine.start_from(1)
    for piece in engine.pieces():
        engine.read_piece(piece).normal_()
    return engine


def timed(body: Callable[[], Any]) -> float:
    """Seconds."""
    started = time.perf_counter()
    body()
    return time.perf_counter() - started


def step(matrix: torch.Tensor) -> None:
    """Some ten milliseconds of training."""
    torch.mm(matrix, matrix)


def measured(engine: TorchEngine, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round: a copy in memory, `save`, until the checkpoint is there, and what steps beside it lost."""
    checkpoints = Checkpoints(
        folder / "checkpoints", SOLO, Identity({}, {}), 1, cursor=lambda number: (0, number),
        fence=take(folder, Holder.this_process({})), say=lambda _: None,
    )  # fmt: skip
    pieces = engine.pieces()
    source = torch.cat([engine.read_piece(piece) for piece in pieces])
    target, matrix = torch.zeros_like(source), torch.randn(768, 768)
    found: dict[str, list[float]] = {"copy": [], "save": [], "until there": [], "lost": []}
    for number in range(rounds + 1):  # the first makes the buffer
        alone = statistics.median(timed(lambda: step(matrix)) for _ in range(100))
        copy = timed(lambda: target.copy_(source))
        started = time.perf_counter()
        save = timed(lambda number=number: checkpoints.save(engine, RunState(step=number + 1)))  # type: ignore[misc]
        num_steps = 0
        while not checkpoints.path(number + 1).exists():
            step(matrix)
            num_steps += 1
        whole = time.perf_counter() - started
        checkpoints.finish()
        if number:
            lost = max(whole - save - num_steps * alone, 0.0)
            for name, seconds in zip(found, (copy, save, whole, lost), strict=True):
                found[name].append(seconds)
    path = checkpoints.find("auto")
    assert path is not None
    files = PartFiles(sorted(path.glob("*.safetensors")))
    assert all(torch.equal(files.read(piece), engine.read_piece(piece)) for piece in pieces)
    return found


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=50, help="millions; a checkpoint has 12 bytes of each")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=Path, default=None, help="where checkpoints go; by default a temporary folder")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    engine = engine_of(args.parameters)
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        found = measured(engine, Path(folder), args.rounds)
    num_bytes = 4 * sum(piece.size for piece in engine.pieces())
    middle = {name: statistics.median(seconds) for name, seconds in found.items()}
    print(f"{num_bytes / 1e9:.2f} GB, {args.rounds} rounds: median (least–most)\n\n| | seconds | GB/s |\n|---|---|---|")
    for name, seconds in found.items():
        spread = f"{middle[name]:.3f} ({min(seconds):.3f}–{max(seconds):.3f})"
        print(f"| {name} | {spread} | {num_bytes / 1e9 / max(middle[name], 1e-9):.2f} |")
    waiting = middle["save"] / INTERVAL_S
    print(f"\nsave is {middle['save'] / middle['copy']:.2f} × a copy in memory. At one checkpoint a minute it takes")
    print(
        f"{waiting:.2%} of the training time, and {middle['lost'] / INTERVAL_S:.2%} are lost beside hashing and writing"
    )


if __name__ == "__main__":
    main()
