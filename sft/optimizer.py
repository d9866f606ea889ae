"""AdamW and the learning rate's schedule."""

from __future__ import annotations

import math
from typing import Any

import torch

from sft.config import Args
from sft.eight_bit import adamw_8bit


def build_optimizer(model: Any, args: Args) -> torch.optim.Optimizer:
    """Fused AdamW, or the one in eight bits, over the trainable parameters; biases and norms are not decayed."""
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in trainable if _is_matrix(name, parameter) and args.weight_decay]
    kept = [parameter for name, parameter in trainable if not (_is_matrix(name, parameter) and args.weight_decay)]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if args.optim == "adamw_8bit":
        betas = (args.adam_beta1, args.adam_beta2)
        return adamw_8bit(groups, args.peak_learning_rate, betas, args.adam_epsilon)
    return torch.optim.AdamW(
        groups,
        lr=args.peak_learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        fused=True,
    )


def _is_matrix(name: str, parameter: torch.Tensor) -> bool:
    # Under ZeRO-3 a parameter's own shape is empty while it is partitioned; DeepSpeed keeps the real one beside it.
    shape = getattr(parameter, "ds_shape", parameter.shape)
    return len(shape) >= 2 and not name.endswith(".bias")


def set_learning_rate(optimizer: Any, learning_rate: float) -> None:
    """Sets the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def num_warmup_steps(num_steps: int, args: Args) -> int:
    """The steps, of `num_steps`, in which the learning rate rises."""
    return args.warmup_steps if args.warmup_steps is not None else math.ceil(args.warmup_ratio * num_steps)


def learning_rate_at(step: int, num_steps: int, args: Args) -> float:
    """Learning rate of optimizer step `step`, counted from 1 to `num_steps`: linear warm-up, then the schedule.

    The warm-up's last step has the peak rate; a cosine or linear schedule would reach zero one step after the last.
    """
    warmup = num_warmup_steps(num_steps, args)
    peak = args.peak_learning_rate
    if step <= warmup:
        return peak * step / warmup
    progress = (step - 1 - warmup) / max(1, num_steps - warmup)
    if args.lr_scheduler_type == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * (1.0 - progress) if args.lr_scheduler_type == "linear" else peak
