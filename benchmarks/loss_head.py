"""Claim: with a vocabulary of 152,000, the output layer and the loss take a third of the time of cross-entropy in
float32 over all positions, on the CPU, forward and backward.

    python benchmarks/loss_head.py [--tokens 1024] [--trained 0.45 1.0] [--rounds 5] [--threads 2]

The model has one frozen layer of width 1024 below its output layer, so that the head is nearly all of the time; the
weights of the head and the norm below it are trained. Each round runs every side once, in turn, in one process, under
bfloat16 autocast:

    cleansft       the project's loss on a batch
    fp32           logits of all positions, made float32, then cross-entropy that ignores what is not trained: what
                   transformers does
    bf16           the same without making them float32: the fastest plain way, with worse sums

Losses must be within 1e-3 of fp32's and gradients within 2e-2 of their norm (bf16's are shown, not held).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks import rounds  # noqa: E402

VOCABULARY, WIDTH, NUM_DOCUMENTS = 151_936, 1024, 4
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-3, 2e-2


def main(words: list[str] | None = None) -> None:
    """Prints a table for each share of trained tokens."""
    options = arguments(words)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    model = head_model(options.vocabulary, options.width)
    print(f"commit {rounds.commit()}, {options.tokens} tokens, {options.threads} threads, {options.rounds} rounds, "
          f"load average {os.getloadavg()[0]:.1f}")  # fmt: skip
    for share in options.trained:
        batch = make_batch(options.tokens, share, options.vocabulary)
        sides = {"cleansft": ours, "fp32": plain_fp32, "bf16": plain_bf16}
        gate(model, batch, sides)
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, side in sides.items():
                taken[name].append(seconds(model, batch, side))
        print(f"\n{batch.num_trained_tokens} of {batch.num_tokens} tokens trained\n")
        print("| | seconds, median | least–greatest | ÷ cleansft |\n|---|---|---|---|")
        reference = rounds.summary(taken["cleansft"])[0]
        for name, values in taken.items():
            median, least, greatest = rounds.summary(values)
            print(f"| {name} | {median:.3f} | {least:.3f}–{greatest:.3f} | {median / reference:.2f} |")


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--trained", type=float, nargs="+", default=[0.45, 1.0], help="shares of the tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--width", type=int, default=WIDTH)
    return parser.parse_args(words)


def head_model(vocabulary: int, width: int) -> Any:
    """A model of one frozen layer under a trained norm and output layer, in the project's way."""
    import torch

    from sft.config import Args
    from sft.model import build_model
    from sft.tokenizer import build_tokenizer

    config = {
        "model_type": "qwen3", "hidden_size": width, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 32,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": vocabulary, "tie_word_embeddings": False,
    }  # fmt: skip
    args = Args(model_config=config, tokenizer_name=str(ROOT / "sft" / "quickstart" / "tokenizer"))
    model = build_model(args, build_tokenizer(args)).model.train()
    trained = {id(parameter) for part in (model.lm_head, model.model.norm) for parameter in part.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    torch.manual_seed(0)
    return model


def make_batch(num_tokens: int, share: float, vocabulary: int) -> Any:
    """A batch of a few equal documents of random tokens, as the loop makes it."""
    import numpy as np

    from sft.batching import collate
    from sft.documents import Document

    rng = np.random.default_rng(0)
    length = num_tokens // NUM_DOCUMENTS
    documents = []
    for _ in range(NUM_DOCUMENTS):
        trained = np.arange(length) >= round(length * (1 - share))
        documents.append(Document(rng.integers(0, vocabulary, length).astype(np.int32), trained))
    return collate(documents, 0)


def ours(model: Any, batch: Any) -> Any:
    """The project's loss."""
    from sft.loss import sum_of_token_losses

    return sum_of_token_losses(model, batch) / batch.total_weight


def plain_fp32(model: Any, batch: Any) -> Any:
    """Cross-entropy in float32 over the logits of all positions."""
    return _plain(model, batch, lambda logits: logits.float())


def plain_bf16(model: Any, batch: Any) -> Any:
    """Cross-entropy over the logits as autocast makes them."""
    import torch

    with torch.autocast("cpu", enabled=False):  # which would make the loss float32 again
        return _plain(model, batch, lambda logits: logits)


def _plain(model: Any, batch: Any, cast: Callable[[Any], Any]) -> Any:
    import torch
    from torch.nn import functional

    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    labels = functional.pad(batch.labels[:, 1:], (0, 1), value=-100)
    return functional.cross_entropy(cast(logits).flatten(0, 1), labels.flatten(), ignore_index=-100)


def seconds(model: Any, batch: Any, side: Callable[[Any, Any], Any]) -> float:
    """Of one forward and backward pass."""
    import torch

    model.zero_grad(set_to_none=True)
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        loss = side(model, batch)
    loss.backward()
    return time.perf_counter() - started


def gate(model: Any, batch: Any, sides: dict[str, Callable[[Any, Any], Any]]) -> None:
    """Prints how far losses and gradients are from fp32's; it is also every side's warm-up.

    Raises:
        SystemExit: the project's are not the same.
    """
    import torch

    found = {}
    for name in ("fp32", *sides):
        seconds(model, batch, sides[name])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            loss = float(sides[name](model, batch))
        found[name] = loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    reference, gradient = found["fp32"]
    for name, (loss, other) in found.items():
        error = float((other - gradient).norm() / gradient.norm())
        difference = abs(loss - reference) / abs(reference)
        line = f"{name}: loss {loss:.5f}, differs by {difference:.1e}; gradient by {error:.1e} of its norm"
        print(line)
        if name == "cleansft" and not (difference <= LOSS_TOLERANCE and error <= GRADIENT_TOLERANCE):
            raise SystemExit("not the same loss: nothing is timed")


if __name__ == "__main__":
    main()
