"""Claim: one H200 in bfloat16 computes 0.55 of its 989 TFLOP/s in full fine-tuning of 4B parameters with rows of
16,384 tokens, 0.50 of 1.7B, and trains 15,000 tokens per second with LoRA (r = 16) on 8B with rows of 4,096. (Not
measured yet.)

    python benchmarks/gpu.py [--cases 4B 1.7B 8B-LoRA] [--rounds 3] [--steps 24] [--warmup 4] [--with compile=false]

Models of the published shapes with random weights, conversations with a median of 900 tokens, 45 % of them trained,
packed. FLOPs are those that have to be computed (`sft/flops.py`): attention within each document, the output layer at
trained positions alone, nothing for what checkpointing computes again. The table has them beside the datasheet's rate,
the rate measured for plain products, and PaLM's convention.

Needs one CUDA GPU of 141 GB, 64 GB of main memory and 40 GB of disk; torch 2.11 and transformers 5.17 or newer, peft
and tensorboard, no DeepSpeed, nothing from a network. `train.py --device cuda` compares with TRL. `--small` tries the
script in a minute, also on a CPU, with models that prove nothing.

First the gate: transformers' own model with its own attention, one document at a time, with the same weights and AdamW,
must have our losses of 20 steps within 1e-3 and our gradient norms within 1e-2.
"""

from __future__ import annotations

import argparse
import json
import operator
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks import rounds  # noqa: E402
from benchmarks.corpus import CHAT, MODELS, small, write_conversations, write_tokenizer  # noqa: E402

GATE_STEPS = 20
PEAK_TFLOPS = 989.0
"""Of an H100 or H200 (SXM), dense bfloat16, by the vendor's datasheet."""
PARTS = ROOT / "benchmarks" / "gpu_parts.py"
LEARNING_RATE, SEED = 1e-4, 0


@dataclass(frozen=True)
class Case:
    """A model, the settings that it is trained with, and what is claimed of it."""

    model: str
    max_length: int
    settings: dict[str, Any]
    goal: str


_FULL = {"param_dtype": "bfloat16", "compile": True}
CASES = {
    "4B": Case("4B", 16_384, _FULL | {"gradient_checkpointing": True, "gradient_checkpointing_every": 2}, "MFU 0.55"),
    "1.7B": Case("1.7B", 16_384, _FULL, "MFU 0.50"),
    "8B-LoRA": Case("8B", 4096, _FULL | {"lora": {"r": 16}, "per_device_train_batch_size": 4}, "15,000 tokens/s"),
}


def main(words: list[str] | None = None) -> None:
    """For each case the gate, the runs, and a line of the table as soon as it is known."""
    options = arguments(words)
    if not options.small:
        rounds.require("cuda")
    print(f"commit {rounds.commit()}, {rounds.name_of(rounds.here())}, {rounds.versions()}, {options.rounds} rounds, "
          f"steps {options.warmup + 1} to {options.steps}\n")  # fmt: skip
    print("| | tokens/s, median | least–greatest | TFLOP/s | of 989 | of measured | PaLM's | goal | peak GiB |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.cases:
            folder = (options.work or Path(temporary)) / name
            prepare(folder, CASES[name], options)
            ours = measured(folder, options)
            print(line(name, ours, options.warmup), flush=True)


def measured(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Our runs, of which the first has passed the gate.

    Raises:
        SystemExit: it has not.
    """
    conditions = rounds.conditions(options)

    def measure(part: str, path: Path) -> None:
        said = conditions.run([sys.executable, PARTS, part, folder, path], rounds.on(rounds.here()))
        for told in filter(lambda line: line.startswith(("attention per", "output layer")), said.splitlines()):
            print(told, file=sys.stderr)  # what the model could not have

    reference = rounds.in_turn(["reference"], 1, folder, measure)["reference"][0]
    ours = rounds.in_turn(["cleansft"], options.rounds, folder, measure)["cleansft"]
    print(compared(folder.name, ours[0], reference), file=sys.stderr)
    return ours


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps of a run, with the warm-up [24]")
    parser.add_argument("--warmup", type=int, default=4, help="first steps that are not timed [4]")
    parser.add_argument("--with", dest="changes", nargs="+", default=[], metavar="SETTING=VALUE",
                        help="other settings than the case's")  # fmt: skip
    parser.add_argument("--small", action="store_true", help="tiny models and short rows, to try the script")
    rounds.add_conditions(parser, threads=8, rounds=3)
    options = parser.parse_args(words)
    if not (1 <= options.warmup < options.steps and options.steps >= GATE_STEPS):
        parser.error(f"--steps must be above --warmup and at least {GATE_STEPS}, and --warmup at least 1")
    return options


def prepare(folder: Path, case: Case, options: argparse.Namespace) -> None:
    """Conversations, tokenizer and settings."""
    shorter = 64 if options.small else 1
    config = small(MODELS[case.model]) if options.small else MODELS[case.model]
    lengths, max_length = CHAT.shorter(shorter), case.max_length // shorter
    rows = options.steps * case.settings.get("per_device_train_batch_size", 1)
    num_documents = 2 * rows * max_length // round(lengths.median) + 8  # the mean is above the median
    settings = {
        "model_config": config, "tokenizer_name": str(folder / "tokenizer"), "train_file": str(folder / "train.jsonl"),
        "dataset_cache_dir": str(folder / "cache"), "output_dir": str(folder / "out"), "packing": True,
        "max_length": max_length, "max_steps": options.steps, "per_device_train_batch_size": 1,
        "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "warmup_steps": 0, "seed": SEED,
        "report_to": "none", "save_steps": 0, "save_dtype": "bfloat16", "resume_from_checkpoint": "none",
        **case.settings,
    }  # fmt: skip
    for change in options.changes:
        name, _, value = change.partition("=")
        settings[name] = yaml.safe_load(value)
    rounds.describe(folder, settings)
    (folder / "run.yaml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    write_tokenizer(folder / "tokenizer", config["vocab_size"])
    write_conversations(folder / "train.jsonl", num_documents, lengths, config["vocab_size"], SEED)


def compared(name: str, ours: dict[str, Any], reference: dict[str, Any]) -> str:
    """How far our first steps are from the reference's.

    Raises:
        SystemExit: too far.
    """
    number = len(reference["loss"])
    own, wanted = ((found["loss"][:number], found["grad_norm"][:number]) for found in (ours, reference))
    return rounds.compared(name, own, "the reference", wanted)


def line(name: str, runs: list[dict[str, Any]], num_warmup: int) -> str:
    """A row of the table, from the steps after the warm-up."""
    rates: list[float] = []
    shares: dict[str, list[float]] = {"tflops_per_s": [], "mfu": [], "mfu_palm": []}
    for run in runs:
        ends_s, tokens = run["elapsed_s"][num_warmup - 1 :], run["num_tokens"]
        seconds = [after - before for before, after in pairwise(ends_s)]
        rates.append((tokens[-1] - tokens[num_warmup - 1]) / sum(seconds))
        for of, found in shares.items():
            found.append(sum(map(operator.mul, run[of][num_warmup:], seconds)) / sum(seconds))
    rate, least, greatest = rounds.summary(rates)
    tflops, mfu, palm = (rounds.summary(found)[0] for found in shares.values())
    peak = max(run["peak_gib"] for run in runs)
    return (
        f"| {name} | {rate:,.0f} | {least:,.0f}–{greatest:,.0f} | {tflops:,.4g} | {tflops / PEAK_TFLOPS:.3f} | "
        f"{mfu:.3f} | {palm:.3f} | {CASES[name].goal} | {peak:.1f} |"
    )


if __name__ == "__main__":
    main()
