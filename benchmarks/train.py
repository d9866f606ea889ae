"""Claim: on long-tailed conversations the project trains several times more tokens per second than TRL and
transformers' Trainer do, at the speed of a bare loop, with the same losses.

    python benchmarks/train.py [--peers FOLDER] [--rounds 5] [--steps 7] [--warmup 3] [--threads 2] [--work FOLDER]
    python benchmarks/train.py --device cuda --model 0.6B --documents 32 --threads 8 --steps 23 \
        --sides cleansft trl_best trl_default --rounds 3 --work FOLDER [--peers FOLDER]

A Qwen3-shaped model of 41M parameters and a vocabulary of 32,000, 8 documents per optimizer step, on the CPU, in
bfloat16 autocast where the device has units for it (as the project does by itself), else in float32. On a GPU the
goals, not measured yet, are 4 times TRL as it comes and 1.2 times its best. A token counts if it belongs to a document
that reached the optimizer; padding does not. The sides:

    cleansft       `run_training`, as it comes
    bare           the same model, batches, loss and allocator in a loop of ten lines; batches are made beforehand
    trl_best       TRL, packing=bfd into rows of 4,096 tokens, no gradient checkpointing, the same allocator; SDPA, on a
                   GPU our attention per document and Liger's norms, RoPE and SwiGLU
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
import importlib.util
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402

from benchmarks import rounds  # noqa: E402
from benchmarks.corpus import (  # noqa: E402
    LONG_TAIL,
    MODELS,
    Lengths,
    encoded,
    small,
    write_conversations,
    write_model,
    write_tokenizer,
)
from benchmarks.train_sides import MICRO_BATCH  # noqa: E402

_TRL = ("trl==1.16.0", "datasets==5.2.0", "dill==0.4.1", "multiprocess==0.70.19")
PEERS = {"cpu": _TRL, "cuda": (*_TRL, "liger-kernel==0.8.5")}
"""TRL, with what it imports and a GPU machine may lack."""
SIDES = ("cleansft", "bare", "trl_best", "hf_padded", "trl_default")
WITH_ALLOCATOR = ("bare", "trl_best", "trl_flattened")
GATE_STEPS, GATE_SHORTER = 20, 8
LEARNING_RATE, SEED = 1e-4, 0


def main(words: list[str] | None = None) -> None:
    """Runs the gate, the rounds, and prints the table."""
    options = arguments(words)
    case = case_of(options)
    peers = install_peers(options.peers, case.device) if any(side.startswith("trl") for side in options.sides) else None
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(options.work or Path(temporary), rounds.conditions(options), peers, case)
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
    rounds.add_steps(parser, steps=7, warmup=3)
    parser.add_argument("--gate-steps", type=int, default=GATE_STEPS, help=f"[{GATE_STEPS}]; 0: no gate, and no claim")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of all sides [cpu]")
    parser.add_argument("--model", choices=MODELS, default="41M", help="[41M]")
    parser.add_argument("--documents", type=int, default=8, help="of an optimizer step [8]")
    rounds.add_dtype(parser)
    parser.add_argument("--small", action="store_true", help="a tiny model and short documents, to try the script")
    return rounds.parsed(parser, words, least_rounds=0)


@dataclass(frozen=True)
class Case:
    """What is trained, and where."""

    config: dict[str, Any]
    lengths: Lengths
    documents_per_step: int = 8
    bf16: bool = False
    device: str = "cpu"


def case_of(options: argparse.Namespace) -> Case:
    """The case that the options describe.

    Raises:
        SystemExit: there is no such device, or no way to share the documents out.
    """
    rounds.require(options.device)
    if options.documents > MICRO_BATCH and options.documents % MICRO_BATCH:
        raise SystemExit(f"error: --documents is {options.documents}; it must be a multiple of {MICRO_BATCH}.")
    config, lengths = MODELS[options.model], LONG_TAIL
    if options.small:
        config, lengths = small(config), lengths.shorter(16)
    return Case(config, lengths, options.documents, rounds.is_bf16(options.dtype, options.device), options.device)


def install_peers(folder: Path, device: str) -> Path:
    """The folder with the peers in it; what is not there, or in another version, is installed.

    Raises:
        SystemExit: it cannot be.
    """
    missing = [name for name in PEERS[device] if not _is_there(folder, name)]
    if missing:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
        command += ["--target", str(folder), *missing]
        print(f"installing {', '.join(missing)} into {folder}", file=sys.stderr)
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(
                f"error: --peers: {folder} lacks {', '.join(missing)}, and pip could not install them; bring the "
                "folder from a machine with a network (benchmarks/README.md has the command)."
            )
    return folder


def _is_there(folder: Path, requirement: str) -> bool:
    """Whether a package is in the folder in this version, or, one that TRL needs, in the project's environment."""
    name, version = requirement.split("==")
    is_needed = name not in ("trl", "liger-kernel") and importlib.util.find_spec(name) is not None
    return is_needed or (folder / f"{name.replace('-', '_')}-{version}.dist-info").is_dir()


class Bench:
    """The data and the weights in a folder, and what is run on them."""

    def __init__(self, work: Path, conditions: rounds.Conditions, peers: Path | None, case: Case) -> None:
        self._work, self._conditions, self._peers, self._case = work, conditions, peers, case

    def gate(self, sides: list[str], num_steps: int) -> str:
        """One line for each side, if all agree with the first.

        Raises:
            SystemExit: a side's losses or gradient norms differ.
        """
        folder = self._prepared("gate", num_steps, self._case.lengths.shorter(GATE_SHORTER))
        names = ["trl_flattened" if side == "trl_best" else side for side in sides]
        found = rounds.in_turn(names, 1, folder, lambda side, path: self._run(side, folder, path))
        return self._compared({side: rounds.measured(records[0]) for side, records in found.items()})

    def timed(self, sides: list[str], num_rounds: int, num_warmup: int, num_steps: int) -> str:
        """The table."""
        folder = self._prepared("timed", num_steps, self._case.lengths)
        found = rounds.in_turn(sides, num_rounds, folder, lambda side, path: self._run(side, folder, path))
        runs = {side: [rounds.measured(record) for record in records] for side, records in found.items()}
        same_steps = {side: measured[0] for side, measured in runs.items() if side != "trl_best"}
        rates = {side: rounds.summary([run.rate(num_warmup) for run in measured]) for side, measured in runs.items()}
        ours = rates[sides[0]][0]
        lines = [
            self._compared(same_steps),
            f"commit {rounds.commit()}, {num_rounds} rounds, {num_steps - num_warmup} steps of "
            f"{self._case.documents_per_step} documents after {num_warmup}, {rounds.versions()}, "
            f"{rounds.name_of(self._case.device)}, "
            f"{self._conditions.threads} threads, {'bfloat16' if self._case.bf16 else 'float32'}; "
            f"{rounds.load_averages(found)}\n",
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
        wanted = ours.losses, ours.grad_norms
        lines = [rounds.compared(side, (run.losses, run.grad_norms), first, wanted) for side, run in others]
        return "\n".join([*lines, f"loss {ours.losses[0]:.4f} → {ours.losses[-1]:.4f}"])

    def _run(self, side: str, folder: Path, path: Path) -> None:
        environment = dict(rounds.ALLOCATOR) if side in WITH_ALLOCATOR else {}
        environment |= rounds.on(self._case.device)
        if side.startswith("trl"):
            environment["PYTHONPATH"] = rounds.python_path(self._peers)
        script = ROOT / "benchmarks" / "train_sides.py"
        self._conditions.run([sys.executable, script, side, folder, path], environment)

    def _prepared(self, name: str, num_steps: int, lengths: Lengths) -> Path:
        """The folder of a comparison, with its conversations, weights, settings and the documents of each step."""
        folder, case = self._work / name, self._case
        what = {**asdict(case), "lengths": asdict(lengths), "num_steps": num_steps, **asdict(self._conditions)}
        what["device_name"] = rounds.name_of(case.device)
        is_new = rounds.describe(folder, what)
        if not is_new and (folder / "plan.json").is_file():
            return folder
        write_tokenizer(folder / "tokenizer", case.config["vocab_size"])
        write_model(folder / "model", case.config, folder / "tokenizer", SEED)
        num_documents = num_steps * case.documents_per_step
        write_conversations(folder / "train.jsonl", num_documents, lengths, case.config["vocab_size"], SEED)
        settings = self._settings(folder, num_steps, lengths.longest)
        (folder / "run.yaml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
        steps = write_documents(folder, case.documents_per_step)
        plan = {"steps": steps, "documents_per_step": case.documents_per_step, "learning_rate": LEARNING_RATE,
                "bf16": case.bf16, "device": case.device, "max_length": lengths.longest}  # fmt: skip
        (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        return folder

    def _settings(self, folder: Path, num_steps: int, max_length: int) -> dict[str, Any]:
        return {
            "model_name_or_path": str(folder / "model"), "train_file": str(folder / "train.jsonl"),
            "dataset_cache_dir": str(folder / "cache"), "max_length": max_length, "max_steps": num_steps,
            "per_device_train_batch_size": self._case.documents_per_step, "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 1.0, "weight_decay": 0.0,
            "bf16": self._case.bf16, "seed": SEED, "report_to": "none", "save_steps": 0, "logging_steps": 1,
        }  # fmt: skip


def write_documents(folder: Path, documents_per_step: int) -> list[list[int]]:
    """The document numbers of each step, as the project's plan takes them; the documents go to `documents.npz` in that
    order."""
    from sft.arguments import load_args
    from sft.packing import TrainingRows
    from sft.tokenizer import build_tokenizer

    args = load_args(config=folder / "run.yaml")
    tokenizer = build_tokenizer(args)
    data = encoded(args, tokenizer)
    rows = TrainingRows(len(data), args.seed)
    steps = [
        [document for row in rows.step(step, documents_per_step) for document in row]
        for step in range(len(data) // documents_per_step)
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
