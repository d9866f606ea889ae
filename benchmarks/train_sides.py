"""One side of train.py, in a process of its own: `python benchmarks/train_sides.py SIDE FOLDER RESULT`.

FOLDER is made by train.py: `plan.json`, the first weights in `model/`, the conversations, and the documents of every
optimizer step in `documents.npz`, in the order in which the project's own plan takes them. All sides begin with the
same weights and have AdamW (fused), clipping, a constant learning rate and the number format in common.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np  # noqa: E402

from benchmarks.rounds import Measured  # noqa: E402

Rows = list[dict[str, list[int]]]


class Clock:
    """When each step ended, and the CPU seconds until then."""

    def __init__(self) -> None:
        self.ends_s: list[float] = []
        self.cpu_s: list[float] = []

    def step_is_over(self) -> None:
        """Called after the weights were updated."""
        self.ends_s.append(time.perf_counter())
        self.cpu_s.append(time.process_time())


def read_steps(folder: Path) -> list[Rows]:
    """The documents of every step: ids, and labels with −100 where nothing is trained."""
    held = np.load(folder / "documents.npz")
    ends = np.cumsum(held["lengths"])
    documents = [
        {"input_ids": ids.tolist(), "labels": np.where(trained, ids, -100).tolist()}
        for ids, trained in zip(np.split(held["ids"], ends[:-1]), np.split(held["trained"], ends[:-1]), strict=True)
    ]
    size = json.loads((folder / "plan.json").read_text())["documents_per_step"]
    return [documents[start : start + size] for start in range(0, len(documents), size)]


def all_rows(steps: list[Rows]) -> Rows:
    """The rows of all steps, in order."""
    return [row for step in steps for row in step]


def counts(rows: list[Rows]) -> tuple[list[int], list[int]]:
    """(tokens, trained tokens) of each step. The first token of a document has no label."""
    tokens = [sum(len(row["input_ids"]) for row in step) for step in rows]
    trained = [sum(label != -100 for row in step for label in row["labels"][1:]) for step in rows]
    return tokens, trained


def cleansft(folder: Path, plan: dict[str, Any]) -> Measured:
    """The project as it is used: settings from a file, the whole of `run_training`."""
    from sft.history import History
    from sft.train import run_training

    clock, advance = Clock(), History.advance

    def timed(self: History, step: int) -> None:
        advance(self, step)
        clock.step_is_over()

    History.advance = timed  # type: ignore[method-assign]
    output_dir = folder / "out-cleansft"
    run_training(folder / "run.yaml", output_dir=output_dir, resume_from_checkpoint="none")
    log = json.loads((output_dir / "training_log.json").read_text(encoding="utf-8"))
    records = [record for record in log if record["type"] == "train"]
    return _measured([r["loss"] for r in records], [r["grad_norm"] for r in records], clock, read_steps(folder))


def bare(folder: Path, plan: dict[str, Any]) -> Measured:
    """The project's model, batches and loss, and nothing around them: batches are made beforehand."""
    import torch

    from sft.arguments import load_args
    from sft.dataset import ConversationDataset
    from sft.masking import Masker
    from sft.model_check import prepare_model
    from sft.plan import Plan
    from sft.sources import read_conversations
    from sft.step_data import step_data
    from sft.tokenizer import build_tokenizer, pad_token_id
    from sft.train import build_engine
    from sft.world import World

    args, world = load_args(config=folder / "run.yaml"), World(0, 0, 1, torch.device("cpu"))
    tokenizer = build_tokenizer(args)
    masker = Masker(tokenizer, pad_token_id(tokenizer))
    data = ConversationDataset(read_conversations(str(args.train_file)), masker, args.max_length)
    _, engine = build_engine(args, tokenizer, [], folder, world)
    collation, arithmetic = prepare_model(engine, args, world), Plan.of(args, len(data), world.size, data.lengths)
    numbers = range(1, len(plan["steps"]) + 1)
    batches = [step.batches[0] for step in step_data(numbers, data, args, arithmetic, world, collation)]
    module = engine.loss_module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=plan["learning_rate"], weight_decay=0.0, fused=True)
    clock, losses, norms = Clock(), list[float](), list[float]()
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=plan["bf16"]):
            loss = module(batch) / batch.total_weight
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss))
        clock.step_is_over()
    return _measured(losses, norms, clock, read_steps(folder))


def hf_padded(folder: Path, plan: dict[str, Any]) -> Measured:
    """transformers' Trainer, rows padded on the right."""
    from transformers import Trainer, TrainingArguments

    steps = read_steps(folder)
    settings = TrainingArguments(**_peer_settings(folder, plan), remove_unused_columns=False)
    trainer = Trainer(_peer_model(folder), settings, data_collator=_padded, train_dataset=all_rows(steps))
    return _run(trainer, steps)


def trl_default(folder: Path, plan: dict[str, Any]) -> Measured:
    """TRL as it comes. Only what makes the data the same is set: the order, and no truncation at 1,024 tokens."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    steps = read_steps(folder)
    settings = SFTConfig(**_peer_settings(folder, plan), max_length=plan["max_length"])
    return _run(_sft_trainer(SFTTrainer, folder, settings, Dataset.from_list(all_rows(steps))), steps)


def trl_best(folder: Path, plan: dict[str, Any]) -> Measured:
    """TRL with its own packing (`bfd`), without gradient checkpointing, with SDPA: one row of `max_length` a step."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    settings = SFTConfig(**_packed_settings(folder, plan))
    trainer = _sft_trainer(SFTTrainer, folder, settings, Dataset.from_list(all_rows(read_steps(folder))))
    # Packed, the same documents may be fewer steps.
    settings.max_steps = min(settings.max_steps, len(trainer.train_dataset))
    rows = trainer.train_dataset.select(range(settings.max_steps))
    return _run(trainer, [list(_documents(row)) for row in rows])


def trl_flattened(folder: Path, plan: dict[str, Any]) -> Measured:
    """The same settings, given rows that were packed before: each step has the documents of the other sides' step."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    steps = read_steps(folder)
    rows = [
        {
            "input_ids": [token for row in step for token in row["input_ids"]],
            "labels": [label for row in step for label in [-100, *row["labels"][1:]]],
            "seq_lengths": [len(row["input_ids"]) for row in step],
        }
        for step in steps
    ]
    settings = SFTConfig(**_packed_settings(folder, plan), dataset_kwargs={"skip_prepare_dataset": True})
    return _run(_sft_trainer(SFTTrainer, folder, settings, Dataset.from_list(rows)), steps)


def _peer_settings(folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """What makes the peers' runs the same as ours; everything else is as it comes."""
    return {
        "output_dir": str(folder / "out-peer"), "per_device_train_batch_size": plan["documents_per_step"],
        "max_steps": len(plan["steps"]), "learning_rate": plan["learning_rate"], "lr_scheduler_type": "constant",
        "warmup_steps": 0, "max_grad_norm": 1.0, "weight_decay": 0.0, "bf16": plan["bf16"], "use_cpu": True,
        "logging_steps": 1, "train_sampling_strategy": "sequential", "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True,
    }  # fmt: skip


def _packed_settings(folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    changed = {"per_device_train_batch_size": 1, "packing": True, "packing_strategy": "bfd"}
    changed |= {"max_length": plan["max_length"], "gradient_checkpointing": False}
    return _peer_settings(folder, plan) | changed


def _peer_model(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="sdpa")


def _sft_trainer(trainer: Any, folder: Path, settings: Any, data: Any) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    return trainer(_peer_model(folder), args=settings, train_dataset=data, processing_class=tokenizer)


def _padded(rows: Rows) -> dict[str, Any]:
    """Rows padded on the right to the longest."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    padding = [longest - len(row["input_ids"]) for row in rows]
    return {
        "input_ids": torch.tensor([row["input_ids"] + [0] * more for row, more in zip(rows, padding, strict=True)]),
        "labels": torch.tensor([row["labels"] + [-100] * more for row, more in zip(rows, padding, strict=True)]),
        "attention_mask": torch.tensor([[1] * (longest - more) + [0] * more for more in padding]),
    }


def _documents(row: dict[str, list[int]]) -> Iterator[dict[str, list[int]]]:
    """The documents of a row that TRL packed."""
    start = 0
    for length in row["seq_lengths"]:
        yield {name: row[name][start : start + length] for name in ("input_ids", "labels")}
        start += length


def _run(trainer: Any, steps: list[Rows]) -> Measured:
    """Trains, with a clock that is read after every step."""
    from transformers import TrainerCallback

    clock = Clock()

    class Timed(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step_is_over()

    trainer.add_callback(Timed())
    trainer.train()
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    return _measured([float(log["loss"]) for log in logs], [float(log["grad_norm"]) for log in logs], clock, steps)


def _measured(losses: list[float], norms: list[float], clock: Clock, steps: list[Rows]) -> Measured:
    tokens, trained = counts(steps)
    return Measured(losses, norms, clock.ends_s, clock.cpu_s, tokens, trained)


SIDES: dict[str, Callable[[Path, dict[str, Any]], Measured]] = {
    "cleansft": cleansft,
    "bare": bare,
    "trl_best": trl_best,
    "trl_flattened": trl_flattened,
    "hf_padded": hf_padded,
    "trl_default": trl_default,
}


def main(side: str, folder: str, result: str) -> None:
    """Runs a side and writes what it measured."""
    plan = json.loads((Path(folder) / "plan.json").read_text(encoding="utf-8"))
    SIDES[side](Path(folder), plan).write(Path(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
