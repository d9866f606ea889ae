"""Claim: one H200 in bfloat16 computes 0.55 of its 989 TFLOP/s in full fine-tuning of 4B parameters with rows of
16,384 tokens, 0.50 of 1.7B, and trains 15,000 tokens per second with LoRA (r = 16) on 8B with rows of 4,096. (Not
measured yet.)

    python benchmarks/gpu.py [--cases 4B 1.7B 8B-LoRA] [--rounds 3] [--steps 24] [--warmup 4] [--with compile=false]

Models of the published shapes with random weights, conversations with a median of 900 tokens, 45 % of them trained,
packed. FLOPs are those that have to be computed (`sft/flops.py`): attention within each document, the output layer at
trained positions alone, nothing for what checkpointing computes again. The table has them beside the datasheet's rate,
the rate measured for plain products, and PaLM's convention.

Needs one CUDA GPU of 141 GB, 64 GB of main memory and 50 GB of disk; torch 2.11 and transformers 5.17 or newer, peft
and tensorboard, no DeepSpeed, nothing from a network. `train.py --device cuda` compares with TRL. `--small` tries a
case in a minute or two, also on a CPU, with models that prove nothing. Where a command has a time limit, run one case
at a time with the same `--work FOLDER`: what was measured is not measured again.

The gate: transformers' own model with its own attention, one document at a time, with the same weights and AdamW, must
have the losses of 20 steps of our first run within 1e-3 and its gradient norms within 1e-2. A case that does not pass
has no further runs and no line in the table; the other cases are measured, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import operator
import sys
import tempfile
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks import rounds  # noqa: E402
from benchmarks.corpus import CHAT, MODELS, small, write_conversations, write_tokenizer  # noqa: E402
from sft.arguments import load_args  # noqa: E402
from sft.config import Args  # noqa: E402
from strict_settings import SettingsError  # noqa: E402
from strict_settings.scalars import resolve  # noqa: E402
from strict_settings.yaml_file import read_collection  # noqa: E402

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
    mfu: float = 0.0
    """The least share of the datasheet's rate that is claimed; 0: `tokens_per_s` is claimed."""
    tokens_per_s: float = 0.0


_FULL = {"param_dtype": "bfloat16", "compile": True}
CASES = {
    "4B": Case("4B", 16_384, _FULL | {"gradient_checkpointing": True, "gradient_checkpointing_every": 2}, mfu=0.55),
    "1.7B": Case("1.7B", 16_384, _FULL, mfu=0.50),
    "8B-LoRA": Case("8B", 4096, _FULL | {"lora": {"r": 16}, "per_device_train_batch_size": 4}, tokens_per_s=15_000),
}


def main(words: list[str] | None = None) -> None:
    """For each case the gate, the runs, and a line of the table as soon as it is known.

    Raises:
        SystemExit: the settings cannot be, or a case could not be measured.
    """
    options = arguments(words)
    if not options.small:
        rounds.require("cuda")
    conditions, failed = rounds.conditions(options), []
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: (options.work or Path(temporary)) / name for name in options.cases}
        for name, folder in folders.items():
            prepare(folder, CASES[name], options, conditions)
        print(f"commit {rounds.commit()}, {rounds.name_of(rounds.here())}, {rounds.versions()}, "
              f"{options.rounds} rounds, steps {options.warmup + 1} to {options.steps}"
              f"{'; small: it proves nothing, met or missed' if options.small else ''}\n")  # fmt: skip
        print("| | tokens/s, median | least–greatest | TFLOP/s | of 989 | of measured | PaLM's | goal | peak GiB |")
        print("|---|---|---|---|---|---|---|---|---|", flush=True)
        for name, folder in folders.items():
            try:
                print(line(name, measured(folder, options.rounds, conditions), options.warmup), flush=True)
            except rounds.Unmeasured as error:
                print(error, file=sys.stderr, flush=True)
                failed.append(name)
    if failed:
        raise SystemExit(f"error: not measured, for the reasons above: {', '.join(failed)}")


def measured(folder: Path, num_rounds: int, conditions: rounds.Conditions) -> list[dict[str, Any]]:
    """Our runs, of which the first has passed the gate.

    Raises:
        Unmeasured: it has not, or a process failed.
    """

    def measure(part: str, path: Path) -> None:
        said = conditions.run([sys.executable, PARTS, part, folder, path], rounds.on(rounds.here()))
        for told in filter(lambda line: line.startswith(("attention per", "output layer")), said.splitlines()):
            print(told, file=sys.stderr)  # what the model could not have

    first = rounds.in_turn(["weights", "reference", "cleansft"], 1, folder, measure)
    print(compared(folder.name, first["cleansft"][0], first["reference"][0]), file=sys.stderr)
    return rounds.in_turn(["cleansft"], num_rounds, folder, measure)["cleansft"]


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    rounds.add_steps(parser, steps=24, warmup=4)
    parser.add_argument("--with", dest="changes", nargs="+", default=[], type=_setting, metavar="SETTING=VALUE",
                        help="other settings than the case's")  # fmt: skip
    parser.add_argument("--small", action="store_true", help="tiny models and short rows, to try the script")
    rounds.add_conditions(parser, threads=8, rounds=3)
    options = rounds.parsed(parser, words)
    if options.steps < GATE_STEPS:
        parser.error(f"--steps is {options.steps}; it must be at least {GATE_STEPS}, as many as the gate compares")
    return options


def _setting(word: str) -> tuple[str, Any]:
    name, sign, value = word.partition("=")
    if name in ("", "max_steps") or not sign:
        rule = "it must be a setting, =, and its value: compile=false (for max_steps, --steps)"
        raise argparse.ArgumentTypeError(f"{word!r}: {rule}")
    try:
        return name, read_collection(value, name) if value[:1] in ("{", "[") else resolve(value)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def prepare(folder: Path, case: Case, options: argparse.Namespace, conditions: rounds.Conditions) -> None:
    """Conversations, tokenizer and settings.

    Raises:
        SystemExit: the settings cannot be, or the folder is for something else.
    """
    shorter = 64 if options.small else 1
    config = small(MODELS[case.model]) if options.small else MODELS[case.model]
    lengths, max_length = CHAT.shorter(shorter), case.max_length // shorter
    paths = {
        "model_name_or_path": str(folder / "model"), "train_file": str(folder / "train.jsonl"),
        "dataset_cache_dir": str(folder / "cache"), "output_dir": str(folder / "out"),
    }  # fmt: skip
    settings = {
        "packing": True, "max_length": max_length, "max_steps": options.steps, "per_device_train_batch_size": 1,
        "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "warmup_steps": 0, "seed": SEED,
        "report_to": "none", "save_steps": 0, "save_dtype": "bfloat16", "resume_from_checkpoint": "none",
        **case.settings, **dict(options.changes),
    }  # fmt: skip
    here = paths | settings
    args = checked(here)
    what = {**settings, "model": config, "device": rounds.name_of(rounds.here()), **asdict(conditions)}
    is_new = rounds.describe(folder, what)
    (folder / "run.yaml").write_text(json.dumps(here), encoding="utf-8")  # JSON is YAML; the folder may have moved
    if not is_new and (folder / "model.json").is_file():
        return
    write_tokenizer(folder / "tokenizer", config["vocab_size"])
    num_tokens = options.steps * args.per_device_train_batch_size * args.max_length
    num_documents = 2 * num_tokens // round(lengths.median) + 8  # the mean is above the median
    write_conversations(folder / "train.jsonl", num_documents, lengths, config["vocab_size"], SEED)
    (folder / "model").mkdir(exist_ok=True)  # its weights are made by the first part
    (folder / "model.json").write_text(json.dumps(config), encoding="utf-8")


def checked(settings: dict[str, Any]) -> Args:
    """The settings, before anything is made.

    Raises:
        SystemExit: they cannot be.
    """
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "run.yaml"
        # Paths that are there stand for the conversations and the model, which are made for settings that can be.
        paths = {"train_file": str(file), "model_name_or_path": temporary}
        file.write_text(json.dumps(settings | paths), encoding="utf-8")
        try:
            return load_args(config=file)
        except SettingsError as error:
            raise SystemExit(f"error: --with: {str(error).replace(f'{file}:1: ', '')}") from None


def compared(name: str, ours: dict[str, Any], reference: dict[str, Any]) -> str:
    """How far our first steps are from the reference's.

    Raises:
        Unmeasured: too far.
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
    case, (rate, least, greatest) = CASES[name], rounds.summary(rates)
    tflops, mfu, palm = (rounds.summary(found)[0] for found in shares.values())
    peak = max(run["peak_gib"] for run in runs)
    if case.mfu:
        goal, is_met = f"MFU {case.mfu:.2f}", tflops / PEAK_TFLOPS >= case.mfu
    else:
        goal, is_met = f"{case.tokens_per_s:,.0f} tokens/s", rate >= case.tokens_per_s
    return (
        f"| {name} | {rate:,.0f} | {least:,.0f}–{greatest:,.0f} | {tflops:,.4g} | {tflops / PEAK_TFLOPS:.3f} | "
        f"{mfu:.3f} | {palm:.3f} | {goal}: {'met' if is_met else 'missed'} | {peak:.1f} |"
    )


if __name__ == "__main__":
    main()
