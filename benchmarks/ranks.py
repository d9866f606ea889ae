"""Claim: two ranks with one thread each train 1.85 times as fast as one with DDP, ZeRO-1 and ZeRO-2, and 1.5 times
with ZeRO-3 (CPU, gloo).

    python benchmarks/ranks.py [--engines ddp zero1 zero2 zero3] [--rounds 5] [--steps 7] [--warmup 3]

The model and the long-tailed conversations of train.py, 16 documents per optimizer step in micro-batches of 8: one rank
runs two of them, two ranks run one each. Every run is `torchrun sft/train.py`, in the number format that the project
chooses; `one process` is the same without torchrun and without an engine's collectives.

After the first round the losses of two ranks must be within 1e-3 of those of one rank with the same engine in every
step, and the gradient norms within 1e-2; else nothing more is measured. How far one rank is from `one process` is
printed: in float32 it must be within 1e-3 too. In bfloat16 DeepSpeed's weights are rounded, not the products alone;
what that comes to in the end is `numerics.py`'s claim.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks import rounds  # noqa: E402
from benchmarks.corpus import LONG_TAIL, MODEL_T, small, write_conversations, write_model, write_tokenizer  # noqa: E402

ENGINES = {"ddp": None, **{f"zero{stage}": f"ds_configs/zero{stage}.json" for stage in (1, 2, 3)}}
MICRO_BATCH, DOCUMENTS_PER_STEP, SEED = 8, 16, 0
SCRIPT = ROOT / "sft" / "train.py"


def main(words: list[str] | None = None) -> None:
    """Runs the rounds, compares the losses and prints the table."""
    options = arguments(words)
    conditions = rounds.conditions(options)
    sides = ["one process", *(f"{engine} × {size}" for engine in options.engines for size in (1, 2))]
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        prepare(work, options.steps, options.small, conditions)
        for number in (1, options.rounds):  # what the first round has measured is not measured again
            found = rounds.in_turn(sides, number, work, lambda side, path: measure(side, path, work, conditions))
            if number == 1:
                compare({side: records[0] for side, records in found.items()}, bf16=rounds.is_bf16("auto"))
    print(f"commit {rounds.commit()}, {options.rounds} rounds, {options.steps - options.warmup} steps of "
          f"{DOCUMENTS_PER_STEP} documents after {options.warmup}; {rounds.load_averages(found)}\n")  # fmt: skip
    rates = {
        side: rounds.summary([rate(record, options.warmup) for record in records]) for side, records in found.items()
    }
    print("| | tokens/s, median | least–greatest | ÷ one rank | ÷ one process |\n|---|---|---|---|---|")
    for side, (median, least, greatest) in rates.items():
        one_rank = rates[f"{side.split()[0]} × 1"][0] if "×" in side else median
        ratios = f"{median / one_rank:.2f} | {median / rates['one process'][0]:.2f}"
        print(f"| {side} | {median:,.0f} | {least:,.0f}–{greatest:,.0f} | {ratios} |")


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rounds.add_conditions(parser, threads=1, rounds=5)
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    rounds.add_steps(parser, steps=7, warmup=3)
    parser.add_argument("--small", action="store_true", help="a tiny model and short documents, to try the script")
    return rounds.parsed(parser, words)


def prepare(work: Path, num_steps: int, is_small: bool, conditions: rounds.Conditions) -> None:
    """Conversations, first weights and settings."""
    config = small(MODEL_T) if is_small else MODEL_T
    lengths = LONG_TAIL.shorter(16) if is_small else LONG_TAIL
    is_new = rounds.describe(work, {"model": config, "num_steps": num_steps, **asdict(conditions)})
    if not is_new and (work / "run.yaml").is_file():
        return
    write_tokenizer(work / "tokenizer", config["vocab_size"])
    write_model(work / "model", config, work / "tokenizer", SEED)
    write_conversations(work / "train.jsonl", num_steps * DOCUMENTS_PER_STEP, lengths, config["vocab_size"], SEED)
    settings = {
        "model_name_or_path": str(work / "model"), "train_file": str(work / "train.jsonl"),
        "dataset_cache_dir": str(work / "cache"), "max_length": lengths.longest, "max_steps": num_steps,
        "per_device_train_batch_size": MICRO_BATCH, "train_batch_size": DOCUMENTS_PER_STEP, "learning_rate": 1e-4,
        "lr_scheduler_type": "constant", "warmup_steps": 0, "seed": SEED, "report_to": "none",
        "save_steps": 0, "logging_steps": 1, "resume_from_checkpoint": "none",
    }  # fmt: skip
    (work / "run.yaml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML


def measure(side: str, path: Path, work: Path, conditions: rounds.Conditions) -> None:
    """Runs a side and keeps what its training log says of each step."""
    engine, _, size = side.partition(" × ")
    output_dir = work / f"out-{engine}-{size}".replace(" ", "-")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", size] if size else []
    words: list[str | Path] = [sys.executable, *launcher, SCRIPT, "--config", work / "run.yaml"]
    words += ["--output_dir", output_dir]
    if ENGINES.get(engine):
        words += ["--deepspeed", str(ENGINES[engine])]
    conditions.run(words, {})
    log = json.loads((output_dir / "training_log.json").read_text(encoding="utf-8"))
    records = [record for record in log if record["type"] == "train"]
    names = ("loss", "grad_norm", "elapsed_s", "num_tokens")
    path.write_text(json.dumps({name: [record[name] for record in records] for name in names}), encoding="utf-8")


def rate(record: dict[str, Any], num_warmup: int) -> float:
    """Tokens per second after the warm-up; the log counts both from the beginning of the run."""
    tokens, seconds = record["num_tokens"], record["elapsed_s"]
    return float((tokens[-1] - tokens[num_warmup - 1]) / (seconds[-1] - seconds[num_warmup - 1]))


def compare(runs: dict[str, dict[str, Any]], *, bf16: bool) -> None:
    """Prints how far two ranks are from one, and one rank from the one process.

    Raises:
        SystemExit: they are not the same training.
    """
    for side, run in runs.items():
        is_two, is_rounded = side.endswith("× 2"), bf16 and side.startswith("zero")
        other = side.replace("× 2", "× 1") if is_two else "one process"
        own, wanted = ((found["loss"], found["grad_norm"]) for found in (run, runs[other]))
        print(rounds.compared(side, own, other, wanted, is_gate=is_two or not is_rounded), flush=True)


if __name__ == "__main__":
    main()
