"""Claim: on long-tailed conversations the project trains several times more tokens per second than TRL and
transformers' Trainer do, at the speed of a bare loop, with the same losses.

    python benchmarks/train.py [--peers FOLDER] [--rounds 5] [--steps 7] [--warmup 3] [--threads 2] [--work FOLDER]

A Qwen3-shaped model of 41M parameters and a vocabulary of 32,000, 8 documents per optimizer step, on the CPU, in
bfloat16 autocast where the CPU has units for it (as the project does by itself), else in float32. A token counts if it
belongs to a document that reached the optimizer; padding does not. The sides:

    cleansft       `run_training`, as it comes
    bare           the same model, batches, loss and allocator in a loop of ten lines; batches are made beforehand
    trl_best       TRL, packing=bfd into rows of 4,096 tokens, no gradient checkpointing, SDPA, the same allocator
    hf_padded      transformers' Trainer with padded rows, as it comes
    trl_default    TRL as it comes

First the gate: 20 steps on documents an eighth as long. Nothing is timed unless every side's losses are within 1e-3 of
ours in every step, and its gradient norms within 1e-2. TRL packs other documents into a step; in the gate it is given
rows with the documents of our steps. The losses of the timed runs are compared too.

Peers are not dependencies: TRL is installed into --peers FOLDER (by default in the user's cache) with `pip install
--no-deps --target`; torch and transformers are the project's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402

from benchmarks import rounds  # noqa: E402
from benchmarks.corpus import LONG_TAIL, MODEL_T, Lengths, write_conversations, write_model, write_tokenizer  # noqa: E402

PEERS = ("trl==1.16.0",)
SIDES = ("cleansft", "bare", "trl_best", "hf_padded", "trl_default")
WITH_ALLOCATOR = ("bare", "trl_best", "trl_flattened")
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-3, 1e-2
DOCUMENTS_PER_STEP, GATE_STEPS, GATE_SHORTER = 8, 20, 8
LEARNING_RATE, SEED = 1e-4, 0


def main(words: list[str] | None = None) -> None:
    """Runs the gate, the rounds, and prints the table."""
    options = arguments(words)
    peers = install_peers(options.peers) if any(side.startswith("trl") for side in options.sides) else None
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        bench = Bench(work, rounds.conditions(options), peers, bf16=rounds.is_bf16(options.dtype), small=options.small)
        if options.gate_steps:
            print(bench.gate(options.sides, options.gate_steps))
        if options.rounds:
            print(bench.timed(options.sides, options.rounds, options.warmup, options.steps))


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rounds.add_conditions(parser, threads=2, rounds=5)
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache" / "cleansft" / "benchmark-peers")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--steps", type=int, default=7, help="optimizer steps of a run, with the warm-up [7]")
    parser.add_argument("--warmup", type=int, default=3, help="first steps that are not timed [3]")
    parser.add_argument("--gate-steps", type=int, default=GATE_STEPS, help=f"[{GATE_STEPS}]; 0: no gate, and no claim")
    rounds.add_dtype(parser)
    parser.add_argument("--small", action="store_true", help="a tiny model and short documents, to try the script")
    return parser.parse_args(words)


def install_peers(folder: Path) -> Path:
    """The folder with the peers in it; installed if they are not there."""
    if not (folder / "trl").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PEERS]
        print(f"installing {', '.join(PEERS)} into {folder}", file=sys.stderr)
        subprocess.run(command, check=True)
    return folder


class Bench:
    """The data and the weights in a folder, and what is run on them."""

    def __init__(
        self, work: Path, conditions: rounds.Conditions, peers: Path | None, *, bf16: bool, small: bool
    ) -> None:
        self._work, self._conditions, self._peers, self._bf16 = work, conditions, peers, bf16
        self._config = MODEL_T | ({"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 500} if small else {})
        self._lengths = LONG_TAIL.shorter(16) if small else LONG_TAIL

    def gate(self, sides: list[str], num_steps: int) -> str:
        """One line for each side, if all agree with the first.

        Raises:
            SystemExit: a side's losses or gradient norms differ.
        """
        folder = self._prepared("gate", num_steps, self._lengths.shorter(GATE_SHORTER))
        names = ["trl_flattened" if side == "trl_best" else side for side in sides]
        found = rounds.in_turn(names, 1, folder, lambda side, path: self._run(side, folder, path))
        return self._compared({side: rounds.measured(records[0]) for side, records in found.items()})

    def timed(self, sides: list[str], num_rounds: int, num_warmup: int, num_steps: int) -> str:
        """The table."""
        folder = self._prepared("timed", num_steps, self._lengths)
        found = rounds.in_turn(sides, num_rounds, folder, lambda side, path: self._run(side, folder, path))
        runs = {side: [rounds.measured(record) for record in records] for side, records in found.items()}
        same_steps = {side: measured[0] for side, measured in runs.items() if side != "trl_best"}
        rates = {side: rounds.summary([run.rate(num_warmup) for run in measured]) for side, measured in runs.items()}
        ours = rates[sides[0]][0]
        lines = [
            self._compared(same_steps),
            f"commit {rounds.commit()}, {num_rounds} rounds, {num_steps - num_warmup} steps of {DOCUMENTS_PER_STEP} "
            f"documents after {num_warmup}, {self._conditions.threads} threads, "
            f"{'bfloat16' if self._bf16 else 'float32'}; {rounds.load_averages(found)}\n",
            f"| | tokens/s, median | least–greatest | trained tokens/s | CPU s per 1,000 tokens | {sides[0]} ÷ it |",
            "|---|---|---|---|---|---|",
        ]
        for side, (median, least, greatest) in rates.items():
            trained, *_ = rounds.summary([run.trained_rate(num_warmup) for run in runs[side]])
            cpu, *_ = rounds.summary([run.cpu_per_1000_tokens(num_warmup) for run in runs[side]])
            spread = f"{least:,.0f}–{greatest:,.0f}"
            lines.append(f"| {side} | {median:,.0f} | {spread} | {trained:,.0f} | {cpu:.2f} | {ours / median:.2f} |")
        return "\n".join(lines)

    def _compared(self, runs: dict[str, rounds.Measured]) -> str:
        (first, ours), *others = runs.items()
        lines = []
        for side, run in others:
            loss = rounds.differences(run.losses, ours.losses)
            norm = rounds.differences(run.grad_norms, ours.grad_norms)
            lines.append(f"{side}: losses of {len(ours.losses)} steps differ from {first}'s by {loss:.1e} at most, "
                         f"gradient norms by {norm:.1e}")  # fmt: skip
            if not (loss <= LOSS_TOLERANCE and norm <= NORM_TOLERANCE):
                pairs = "\n".join(f"{a:.5f} {b:.5f}" for a, b in zip(run.losses, ours.losses, strict=True))
                raise SystemExit(f"{lines[-1]}: not the same training, nothing is timed.\n{pairs}")
        return "\n".join([*lines, f"loss {ours.losses[0]:.4f} → {ours.losses[-1]:.4f}"])

    def _run(self, side: str, folder: Path, path: Path) -> None:
        environment = dict(rounds.ALLOCATOR) if side in WITH_ALLOCATOR else {}
        if side.startswith("trl"):
            environment["PYTHONPATH"] = f"{ROOT}:{self._peers}"
        script = ROOT / "benchmarks" / "train_sides.py"
        self._conditions.run([sys.executable, script, side, folder, path], environment)

    def _prepared(self, name: str, num_steps: int, lengths: Lengths) -> Path:
        """The folder of a comparison, with its conversations, weights, settings and the documents of each step."""
        folder = self._work / name
        if (folder / "plan.json").is_file():
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        vocab_size = self._config["vocab_size"]
        write_tokenizer(folder / "tokenizer", vocab_size)
        write_model(folder / "model", self._config, folder / "tokenizer", SEED)
        num_documents = num_steps * DOCUMENTS_PER_STEP
        write_conversations(folder / "train.jsonl", num_documents, lengths, vocab_size, SEED)
        settings = self._settings(folder, num_steps, lengths.longest)
        (folder / "run.yaml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
        steps = write_documents(folder)
        plan = {"steps": steps, "documents_per_step": DOCUMENTS_PER_STEP, "learning_rate": LEARNING_RATE,
                "bf16": self._bf16}  # fmt: skip
        (folder / "plan.json").write_text(json.dumps({**plan, "max_length": lengths.longest}), encoding="utf-8")
        return folder

    def _settings(self, folder: Path, num_steps: int, max_length: int) -> dict[str, Any]:
        return {
            "model_name_or_path": str(folder / "model"), "train_file": str(folder / "train.jsonl"),
            "dataset_cache_dir": str(folder / "cache"), "max_length": max_length, "max_steps": num_steps,
            "per_device_train_batch_size": DOCUMENTS_PER_STEP, "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 1.0, "weight_decay": 0.0,
            "bf16": self._bf16, "seed": SEED, "report_to": "none", "save_steps": 0, "logging_steps": 1,
        }  # fmt: skip


def write_documents(folder: Path) -> list[list[int]]:
    """The document numbers of each step, as the project's plan takes them; the documents go to `documents.npz` in that
    order."""
    from sft.arguments import load_args
    from sft.dataset import ConversationDataset
    from sft.masking import Masker
    from sft.packing import TrainingRows
    from sft.sources import read_conversations
    from sft.tokenizer import build_tokenizer, pad_token_id

    args = load_args(config=folder / "run.yaml")
    tokenizer = build_tokenizer(args)
    masker = Masker(tokenizer, pad_token_id(tokenizer))
    data = ConversationDataset(read_conversations(str(args.train_file)), masker, args.max_length)
    rows = TrainingRows(len(data), args.seed)
    steps = [
        [document for row in rows.step(step, DOCUMENTS_PER_STEP) for document in row]
        for step in range(len(data) // DOCUMENTS_PER_STEP)
    ]
    documents = [data[number] for step in steps for number in step]
    np.savez(
        folder / "documents.npz",
        ids=np.concatenate([np.asarray(document.input_ids) for document in documents]),
        trained=np.concatenate([np.asarray(document.trained) for document in documents]),
        lengths=np.array([len(document) for document in documents]),
    )
    return steps


if __name__ == "__main__":
    main()
