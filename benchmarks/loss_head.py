"""Claim: with a vocabulary of 152,000, the output layer and the loss take a third of the time of cross-entropy in
float32 over all positions, on the CPU, forward and backward.

    python benchmarks/loss_head.py [--tokens 1024] [--trained 0.45 1.0] [--rounds 5] [--threads 2]

The model has one frozen layer of width 512 below its output layer, so that the head is nearly all of the time; the
weights of the head and of the norm below it are trained. Each round runs every side once, in turn, in one process,
in bfloat16 autocast where the CPU has units for it, else in float32:

    cleansft       the project's loss on a batch
    fp32           logits of all positions, made float32, then cross-entropy that ignores what is not trained: what
                   transformers does
    bf16           the same without making them float32: the fastest plain way, with worse sums (in bfloat16 only)

Losses must be within 1e-3 of fp32's and gradients within 2e-2 of their norm (bf16's are shown, not held).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks import rounds  # noqa: E402

VOCABULARY, WIDTH, NUM_DOCUMENTS = 151_936, 512, 4
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-3, 2e-2


def main(words: list[str] | None = None) -> None:
    """Prints a table for each share of trained tokens."""
    options = arguments(words)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    bf16 = rounds.is_bf16(options.dtype)
    sides = make_sides(options.vocabulary, options.width, bf16=bf16)
    print(f"commit {rounds.commit()}, {options.tokens} tokens, {'bfloat16' if bf16 else 'float32'}, "
          f"{options.threads} threads, {options.rounds} rounds, load average {os.getloadavg()[0]:.1f}")  # fmt: skip
    for share in options.trained:
        documents = make_documents(options.tokens, share, options.vocabulary)
        num_trained = sum(document.num_trained_tokens for document in documents)
        gate(documents, sides)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, side in sides.items():
                taken[name].append(side.seconds(documents))
        print(f"\n{num_trained} of {options.tokens} tokens trained\n")
        print(
            "| | seconds, median | least–greatest | ÷ cleansft | CPU seconds | ÷ cleansft |\n|---|---|---|---|---|---|"
        )
        wall_reference, cpu_reference = (rounds.summary(times)[0] for times in zip(*taken["cleansft"], strict=True))
        for name, values in taken.items():
            (median, least, greatest), (cpu, *_) = (rounds.summary(times) for times in zip(*values, strict=True))
            ratios = f"{median / wall_reference:.2f} | {cpu:.3f} | {cpu / cpu_reference:.2f}"
            print(f"| {name} | {median:.3f} | {least:.3f}–{greatest:.3f} | {ratios} |")


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--trained", type=float, nargs="+", default=[0.45, 1.0], help="shares of the tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    rounds.add_dtype(parser)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--width", type=int, default=WIDTH)
    return parser.parse_args(words)


class Side:
    """A model with its way to the loss: a function of documents."""

    def __init__(self, model: Any, loss: Callable[[Any], Any], bf16: bool) -> None:
        self.model, self.loss, self.bf16 = model, loss, bf16

    def seconds(self, documents: list[Any]) -> tuple[float, float]:
        """(wall, CPU) of one forward and backward pass, from the batch on."""
        import torch

        self.model.zero_grad(set_to_none=True)
        batch_loss = self.loss(documents)
        started, cpu_started = time.perf_counter(), time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = batch_loss()
        loss.backward()
        return time.perf_counter() - started, time.process_time() - cpu_started

    def loss_and_gradient(self, documents: list[Any]) -> tuple[float, Any]:
        """Mean loss, and the gradient of all that is trained as one vector."""
        import torch

        self.seconds(documents)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = float(self.loss(documents)())
        return loss, torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])


def make_sides(vocabulary: int, width: int, *, bf16: bool) -> dict[str, Side]:
    """The sides; the plain ones share a model with its own attention, of the same weights as ours."""
    from sft.batching import collate
    from sft.model_check import prepare_model
    from sft.step_data import batch_of

    args, world, engine = build(vocabulary, width, bf16)
    collation = prepare_model(engine, args, world)
    *_, plain_engine = build(vocabulary, width, bf16)

    def ours(documents: list[Any]) -> Callable[[], Any]:
        batch = batch_of([[number] for number in range(len(documents))], documents, args, collation)
        return lambda: engine.loss_module(batch) / batch.total_weight

    def plain(in_float32: bool, documents: list[Any]) -> Callable[[], Any]:
        return partial(plain_loss, plain_engine.model, collate(documents, 0), in_float32)

    sides = {
        "cleansft": Side(engine.model, ours, bf16),
        "fp32": Side(plain_engine.model, partial(plain, True), bf16),
        "bf16": Side(plain_engine.model, partial(plain, False), bf16),
    }
    return sides if bf16 else {name: sides[name] for name in ("cleansft", "fp32")}


def build(vocabulary: int, width: int, bf16: bool) -> tuple[Any, Any, Any]:
    """(settings, world, engine) of a model of one frozen layer under a trained norm and output layer."""
    import torch

    from sft.config import Args
    from sft.tokenizer import build_tokenizer
    from sft.train import build_engine
    from sft.world import World

    config = {
        "model_type": "qwen3", "hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 32,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": vocabulary, "tie_word_embeddings": False,
    }  # fmt: skip
    args = Args(model_config=config, tokenizer_name=str(ROOT / "sft" / "quickstart" / "tokenizer"), bf16=bf16)
    world = World(0, 0, 1, torch.device("cpu"))
    _, engine = build_engine(args, build_tokenizer(args), [], ROOT, world)
    model = engine.model.train()
    trained = {id(parameter) for part in (model.lm_head, model.model.norm) for parameter in part.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    return args, world, engine


def make_documents(num_tokens: int, share: float, vocabulary: int) -> list[Any]:
    """A few equal documents of random tokens, the last share of each trained."""
    import numpy as np

    from sft.documents import Document

    rng = np.random.default_rng(0)
    length = num_tokens // NUM_DOCUMENTS
    trained = np.arange(length) >= max(1, round(length * (1 - share)))
    return [
        Document(rng.integers(0, vocabulary, length).astype(np.int32), trained.copy()) for _ in range(NUM_DOCUMENTS)
    ]


def plain_loss(model: Any, batch: Any, in_float32: bool) -> Any:
    """Mean cross-entropy over the logits of all positions."""
    import torch
    from torch.nn import functional

    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    labels = functional.pad(batch.labels[:, 1:], (0, 1), value=-100).flatten()
    with torch.autocast("cpu", enabled=False):  # which would make the logits float32 in any case
        logits = logits.flatten(0, 1).float() if in_float32 else logits.flatten(0, 1)
        return functional.cross_entropy(logits, labels, ignore_index=-100)


def gate(documents: list[Any], sides: dict[str, Side]) -> None:
    """Prints how far losses and gradients are from fp32's; it is also every side's warm-up.

    Raises:
        SystemExit: the project's are not the same.
    """
    reference, gradient = sides["fp32"].loss_and_gradient(documents)
    for name, side in sides.items():
        loss, other = side.loss_and_gradient(documents)
        error = float((other - gradient).norm() / gradient.norm())
        difference = abs(loss - reference) / abs(reference)
        print(f"{name}: loss {loss:.5f}, differs by {difference:.1e}; gradient by {error:.1e} of its norm")
        if name == "cleansft" and not (difference <= LOSS_TOLERANCE and error <= GRADIENT_TOLERANCE):
            raise SystemExit("not the same loss: nothing is timed")


if __name__ == "__main__":
    main()
