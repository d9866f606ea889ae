"""Claim: from the start of a process to its first optimizer step it takes 3.5 s, and 4.5 s with two.

    python benchmarks/startup.py [--rounds 5] [--imports 20]

The quick start's tokenizer, 20 conversations that are encoded anew, a two-layer model of random weights, the defaults
otherwise. The clock runs from the command until `training_log.json` holds the first step. Two processes are started by
torchrun by hand, each of which imports for itself, and by the launcher, which forks them from one that has imported
(docs/decisions/2026-11-21-startup.md), without its audit of the data; with torchrun, and
with `--launcher direct`. `floor` is a process that imports torch and the model's own module from transformers and does
nothing else.
Nothing may be compiled: a run that leaves anything in TORCH_EXTENSIONS_DIR ends the benchmark.

With --imports N, the N dearest modules that a run with one process imports, themselves and with all that they import.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks import rounds  # noqa: E402

TINY = {
    "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
SCRIPT = str(ROOT / "sft" / "train.py")
LAUNCH = [
    sys.executable, "-m", "launch", "run", "--executor", "local", "--nodes", "1", "--skip-audit", "--name", "run",
]  # fmt: skip
COMMANDS = {
    "floor": [sys.executable, "-c", "import torch, transformers.models.qwen3.modeling_qwen3"],
    "one process": [sys.executable, SCRIPT],
    "torchrun, two processes":
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", SCRIPT],
    "launch, two processes": [*LAUNCH, "--procs-per-node", "2", "--cpus-per-task", "2"],
    "launch, two processes, no torchrun":
        [*LAUNCH, "--procs-per-node", "2", "--cpus-per-task", "2", "--launcher", "direct"],
}  # fmt: skip
"""What is started; the settings file follows."""
_POLL_S = 0.002
_TIMEOUT_S = 300.0


def main(words: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rounds.add_conditions(parser, threads=1, rounds=5)
    parser.add_argument("--imports", type=int, metavar="N", help="show the N dearest imports instead")
    parser.add_argument("--sides", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    options = parser.parse_args(words)
    conditions = rounds.conditions(options)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        if options.imports:
            print(imports(work, conditions, options.imports))
            return
        found = rounds.in_turn(
            options.sides, options.rounds, work, lambda side, path: measure(side, path, work, conditions)
        )
    print(f"commit {rounds.commit()}, {options.rounds} rounds; {rounds.load_averages(found)}\n")
    print("| | seconds, median | least–greatest |\n|---|---|---|")
    for side, records in found.items():
        median, least, greatest = rounds.summary([record["seconds"] for record in records])
        print(f"| {side} | {median:.2f} | {least:.2f}–{greatest:.2f} |")


def settings(work: Path) -> tuple[Path, Path]:
    """(settings file, output directory) of a run whose conversations are in no cache."""
    folder = Path(tempfile.mkdtemp(dir=work))
    rows = [
        {"messages": [{"role": "user", "content": f"{n} and {n}?"}, {"role": "assistant", "content": f"{n + n}."}]}
        for n in range(20)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {
        "model_config": TINY, "tokenizer_name": str(ROOT / "sft" / "quickstart" / "tokenizer"), "max_steps": 1,
        "train_file": str(folder / "train.jsonl"), "dataset_cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "out"), "launch": {"runs_dir": str(folder)},
    }  # fmt: skip
    (folder / "run.yaml").write_text(json.dumps(values), encoding="utf-8")
    return folder / "run.yaml", folder / "out"


def measure(side: str, path: Path, work: Path, conditions: rounds.Conditions) -> None:
    """Writes the seconds until the first step; the run goes on to its end before the next one starts."""
    run, output_dir = settings(work)
    extensions = run.parent / "extensions"
    environment = {"TORCH_EXTENSIONS_DIR": str(extensions)}
    command = COMMANDS[side] if side == "floor" else [*COMMANDS[side], "--config", str(run)]
    started = time.perf_counter()
    process = conditions.start(command, environment)
    logs = [output_dir / "training_log.json", run.parent / "run" / "training_log.json"]
    while (
        process.poll() is None and not any(log.is_file() for log in logs) and time.perf_counter() - started < _TIMEOUT_S
    ):
        time.sleep(_POLL_S)
    seconds = time.perf_counter() - started
    said, _ = process.communicate(timeout=_TIMEOUT_S)
    if process.returncode or (side != "floor" and not any(log.is_file() for log in logs)):
        raise SystemExit(f"{side} ended with {process.returncode}\n{said}")
    if extensions.is_dir() and any(extensions.iterdir()):
        raise SystemExit(f"{side} compiled something: {[found.name for found in extensions.iterdir()]}")
    path.write_text(json.dumps({"seconds": seconds}), encoding="utf-8")


def imports(work: Path, conditions: rounds.Conditions, number: int) -> str:
    """A table of the dearest imports of a run, by the time with all that they import."""
    run, _ = settings(work)
    command = [sys.executable, "-X", "importtime", SCRIPT, "--config", str(run)]
    process = conditions.start(command, {})
    said, _ = process.communicate(timeout=_TIMEOUT_S)
    rows = [
        line.removeprefix("import time:").split("|") for line in said.splitlines() if line.startswith("import time:")
    ]
    times = [(int(own), int(whole), name.strip()) for own, whole, name in rows if own.strip().isdigit()]
    dearest = sorted(times, key=lambda row: -row[1])[:number]
    lines = [f"{whole / 1e3:8.0f}{own / 1e3:9.0f}  {name}" for own, whole, name in dearest]
    return "\n".join(["      ms  ms alone  module", *lines])


if __name__ == "__main__":
    main()
