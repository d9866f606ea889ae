"""One side of train.py, in a process of its own: `python benchmarks/train_sides.py SIDE FOLDER RESULT`.

FOLDER is made by train.py: `plan.json`, the first weights in `model/`, the conversations, and the documents of every
optimizer step in `documents.npz`, in the order in which the project's own plan takes them. All sides begin with the
same weights and have AdamW (fused), clipping, a constant learning rate, the device and the number format in common.
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

from benchmarks.corpus import encoded  # noqa: E402
from benchmarks.rounds import Measured  # noqa: E402

Rows = list[dict[str, list[int]]]
MICRO_BATCH = 8
"""Rows that a side which pads them computes at a time, and documents for which a side that packs has a row."""


class Clock:
    """When each step ended, and the CPU seconds until then."""

    def __init__(self) -> None:
        self.ends_s: list[float] = []
        self.cpu_s: list[float] = []

    def step_is_over(self) -> None:
        """Called after the weights were updated; waits until the device has done it."""
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
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
    from sft.flops import ModelShape
    from sft.model_check import prepare_model
    from sft.plan import Plan
    from sft.step_data import step_data
    from sft.tokenizer import build_tokenizer
    from sft.train import build_engine
    from sft.world import World

    args, world = load_args(config=folder / "run.yaml"), World(0, 0, 1, torch.device(plan["device"]))
    tokenizer = build_tokenizer(args)
    data = encoded(args, tokenizer)
    _, engine = build_engine(args, tokenizer, [], folder, world)
    collation, arithmetic = prepare_model(engine, args, world), Plan.of(args, len(data), world.size, data.lengths)
    numbers = range(1, len(plan["steps"]) + 1)
    steps = step_data(numbers, data, args, arithmetic, world, collation, ModelShape.of(engine.model))
    batches = [step.batches[0].to(world.device) for step in steps]
    module = engine.loss_module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=plan["learning_rate"], weight_decay=0.0, fused=True)
    clock, losses, norms = Clock(), list[float](), list[float]()
    for batch in batches:
        with torch.autocast(plan["device"], torch.bfloat16, enabled=plan["bf16"]):
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
    # With 152,000 float32 logits for each of 4,096 slots, 141 GB hold no eight rows.
    size = MICRO_BATCH // 2 if plan["device"] == "cuda" else MICRO_BATCH
    settings = TrainingArguments(**_peer_settings(folder, plan, size), remove_unused_columns=False)
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
    """TRL with its own packing (`bfd`), without gradient checkpointing: a row of `max_length` for every 8 documents."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    per_step = max(plan["documents_per_step"] // MICRO_BATCH, 1)
    settings = SFTConfig(**_packed_settings(folder, plan) | {"per_device_train_batch_size": per_step})
    trainer = _sft_trainer(SFTTrainer, folder, settings, Dataset.from_list(all_rows(read_steps(folder))))
    # Packed, the same documents may be fewer steps.
    settings.max_steps = min(settings.max_steps, len(trainer.train_dataset) // per_step)
    rows = list(trainer.train_dataset.select(range(settings.max_steps * per_step)))
    steps = [rows[start : start + per_step] for start in range(0, len(rows), per_step)]
    return _run(trainer, [[document for row in step for document in _documents(row)] for step in steps])


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


def _peer_settings(folder: Path, plan: dict[str, Any], micro_batch: int = MICRO_BATCH) -> dict[str, Any]:
    """What makes the peers' runs the same as ours; everything else is as it comes."""
    micro_batch = min(plan["documents_per_step"], micro_batch)
    return {
        "output_dir": str(folder / "out-peer"), "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": plan["documents_per_step"] // micro_batch,
        "max_steps": len(plan["steps"]), "learning_rate": plan["learning_rate"], "lr_scheduler_type": "constant",
        "warmup_steps": 0, "max_grad_norm": 1.0, "weight_decay": 0.0, "bf16": plan["bf16"],
        "use_cpu": plan["device"] == "cpu", "logging_steps": 1,
        "train_sampling_strategy": "sequential", "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True,
    }  # fmt: skip


def _packed_settings(folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    changed = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "packing": True}
    changed |= {"packing_strategy": "bfd", "max_length": plan["max_length"], "gradient_checkpointing": False}
    if plan["device"] == "cuda":
        # Its losses multiply every token by the output layer, TRL's own only those that are trained.
        losses = {"cross_entropy": False, "fused_linear_cross_entropy": False}
        changed |= {"use_liger_kernel": True, "liger_kernel_config": losses}
    return _peer_settings(folder, plan) | changed


def _peer_model(folder: Path, attention: str = "sdpa") -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation=attention)


def _sft_trainer(trainer: Any, folder: Path, settings: Any, data: Any) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    per_document = settings.packing and not settings.use_cpu
    model = _peer_model(folder, _varlen_attention() if per_document else "sdpa")
    return trainer(model, args=settings, train_dataset=data, processing_class=tokenizer)


def _varlen_attention() -> str:
    """The name, in transformers' registry, of our attention per document as a peer can use it: where documents begin is
    found from the positions in the row, once for all layers of a step."""
    import torch
    from transformers import AttentionInterface

    from sft.attention import Layout, document_attention

    step: list[Any] = [None, None]

    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
        places = options.pop("position_ids")
        if step[0] is not places:
            starts = torch.nonzero(places.flatten() == 0).flatten().tolist()
            ends = [*starts[1:], places.numel()]
            layout = Layout.of([end - start for start, end in zip(starts, ends, strict=True)]).to(places.device)
            step[:] = places, layout
        return document_attention(module, query, key, value, None, documents=step[1], **options)

    AttentionInterface.register("varlen", attend)  # not for masks: none is made for what is unknown
    return "varlen"


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
