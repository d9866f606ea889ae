"""The arithmetic of a run: its rows, steps and epochs, and what a checkpoint must have in common with it. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft.config import Args
from sft.packing import TrainingRows
from sft.sharding import steps_per_epoch


@dataclass(frozen=True)
class Plan:
    """The arithmetic of a run, fixed before its first step."""

    num_documents: int
    rows: TrainingRows
    rows_per_step: int
    steps_per_epoch: int
    num_steps: int
    eval_every: int

    @classmethod
    def of(cls, args: Args, num_documents: int, world_size: int, lengths: NDArray[np.int32] | None = None) -> Plan:
        """The plan for so many documents, of these lengths, on so many ranks. The lengths are needed for packing."""
        rows = TrainingRows(num_documents, args.seed, lengths, args.max_length if args.packing else None)
        rows_per_step = args.rows_per_step(world_size)
        per_epoch = steps_per_epoch(rows.num_rows, rows_per_step)
        num_steps = args.max_steps or max(1, math.ceil(args.num_train_epochs * per_epoch))
        return cls(num_documents, rows, rows_per_step, per_epoch, num_steps, args.eval_steps or per_epoch)

    def record(self, step: int, found: Mapping[str, Any], elapsed_s: float) -> dict[str, Any]:
        """What was found at a step, as the log has it."""
        return {"step": step, "epoch": step / self.steps_per_epoch, **found, "elapsed_s": elapsed_s}

    def cursor(self, step: int) -> tuple[int, int]:
        """(epochs that are over after a step, rows of the next one that were trained): the same for any world."""
        epoch, steps = divmod(step, self.steps_per_epoch)
        return epoch, steps * self.rows_per_step

    def settings(self, args: Args) -> dict[str, Any]:
        """What must be the same for a checkpoint to be taken up: the data's order and the learning rate's course."""
        names = (
            "seed", "lr_scheduler_type", "warmup_ratio", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2",
            "adam_epsilon", "max_grad_norm", "max_length", "packing", "truncation", "train_on", "history",
            "prompt_mismatch", "system_prompt", "special_tokens_in_data", "template_kwargs", "optim",
            "skip_loss_spikes",
        )  # fmt: skip
        return {
            "num_documents": self.num_documents,
            "rows_per_step": self.rows_per_step,
            "num_steps": self.num_steps,
            "learning_rate": args.peak_learning_rate,
            "lora": {**dataclasses.asdict(args.lora), "merge": None} if args.lora.enabled else None,
            **{name: getattr(args, name) for name in names},
        }

    def num_checkpoints_at_once(self, args: Args, step: int) -> int:
        """Checkpoints of a run from `step` that are there at most at a time: those that are kept, the best one, and the
        one that is being written; as far as is known before."""
        has_best = args.eval_file is not None
        num_saves = self.num_steps // args.save_steps - step // args.save_steps if args.save_steps else 0
        return min(num_saves + args.load_best_model_at_end, args.save_total_limit + has_best + 1)
