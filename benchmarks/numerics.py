"""Does bfloat16 train as well as float32? `python benchmarks/numerics.py`, a minute or two on two cores.

Runs of 200 steps with the same data, seed and settings: float32 under plain torch, then bfloat16 (autocast, FSDP2's and
DeepSpeed's) through the project's own engines. The bar: the mean loss of the last 20 steps, and the loss of the last
step, are within 1 % of float32's. Before that is believed, the float32 run must have learned something.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import rounds
from sft.config import ROOT, Args
from sft.train import train_in_world
from sft.world import world_from_env

NUM_STEPS, LAST, BAR = 200, 20, 0.01
ENGINES: dict[str, dict[str, Any]] = {
    "torch fp32": {"bf16": False},
    "torch bf16": {"bf16": True},
    "torch bf16 parameters": {"bf16": True, "param_dtype": "bfloat16"},
    "FSDP2 bf16": {"bf16": True, "fsdp": True},
    "ZeRO-2 bf16": {"bf16": True, "deepspeed": str(ROOT / "ds_configs" / "zero2.json")},
    "ZeRO-3 bf16": {"bf16": True, "deepspeed": str(ROOT / "ds_configs" / "zero3.json")},
}
MODEL = {
    "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}  # fmt: skip


def conversations(path: Path, num_rows: int = 800) -> Path:
    """Sums, and words to be said backwards: not learned within 200 steps, so that the loss stays well above 0."""
    rng = random.Random(0)
    words = ["sun", "moon", "star", "river", "stone", "leaf", "wind", "fire", "snow", "rain", "field", "road", "house"]
    with path.open("w") as file:
        for _ in range(num_rows):
            messages = []
            for _ in range(rng.randint(1, 2)):
                first, second = rng.randint(10, 99), rng.randint(10, 99)
                chosen = rng.choices(words, k=rng.randint(2, 6))
                asked = f"{first} + {second}; backwards: {' '.join(chosen)}"
                answer = f"{first + second}; {' '.join(reversed(chosen))}"
                messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def main() -> int:
    """Prints a line for each run; returns 1 if one misses the bar."""
    rounds.parse_no_options(__doc__)
    with tempfile.TemporaryDirectory() as folder, world_from_env(600, always_group=True) as world:
        args = Args(
            model_config=MODEL,
            tokenizer_name=str(ROOT / "sft" / "quickstart" / "tokenizer"),
            train_file=str(conversations(Path(folder) / "train.jsonl")),
            dataset_cache_dir=f"{folder}/cache",
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            max_steps=NUM_STEPS,
            save_steps=0,
            report_to="none",
        )
        results, expected, missed = [], (0.0, 0.0), False
        for number, (label, settings) in enumerate(ENGINES.items()):
            started = time.monotonic()
            own = replace(args, output_dir=f"{folder}/{number}", **settings)
            train_in_world(own, world)
            records = json.loads(Path(own.output_dir, "training_log.json").read_text())
            losses = [record["loss"] for record in records if record["type"] == "train"]
            found = (sum(losses[-LAST:]) / LAST, losses[-1])
            if not results:
                expected = found
                assert expected[0] < 0.8 * losses[0], f"float32 learns nothing: {losses[0]:.3f} → {expected[0]:.3f}"
            off = [value / wanted - 1 for value, wanted in zip(found, expected, strict=True)]
            missed |= any(abs(share) > BAR for share in off)
            results.append(
                f"| {label} | {losses[0]:.4f} | {found[0]:.4f} | {off[0]:+.3%} | {found[1]:.4f} | {off[1]:+.3%} | "
                f"{time.monotonic() - started:.0f} |"
            )
    print(f"\n| run | first loss | last {LAST} steps, mean | off | step {NUM_STEPS} | off | s |")
    print("|---|---|---|---|---|---|---|", *results, sep="\n")
    print(f"bar of {BAR:.0%}: {'missed' if missed else 'met'}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
