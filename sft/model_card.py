"""The model card: what a model is, how it was trained, and what was measured. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.config import Args
from sft.run_files import Record, series
from sft.scores import NAMES

_SHOWN = (
    "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "warmup_ratio", "warmup_steps",
    "weight_decay", "max_grad_norm", "per_device_train_batch_size", "gradient_accumulation_steps", "train_batch_size",
    "max_length", "packing", "seed", "train_on", "history", "prompt_mismatch", "truncation", "system_prompt",
    "template_kwargs", "param_dtype", "bf16",
)  # fmt: skip
"""Settings that say what was trained; where and how fast it ran is nobody's affair."""


@dataclass(frozen=True)
class Card:
    """README.md, and the plot that it shows."""

    text: str
    plot: str | None
    """SVG."""


def model_card(
    *,
    name: str,
    args: Args,
    records: list[Record],
    evaluations: Sequence[Record],
    template: str,
    step: int | None,
    license_name: str | None,
    difference: float | None,
    is_adapter: bool,
) -> Card:
    """The card of an exported model.

    Args:
        name: its heading.
        args: of the training.
        records: of the training's log.
        evaluations: figures that `evaluate` found.
        template: the chat template.
        step: of the checkpoint; None for the final model.
        license_name: for the card's head; without one it says that none was chosen.
        difference: of the logits from those of the training; None where it was not checked.
        is_adapter: whether this is an adapter alone.
    """
    base = args.model_name_or_path
    head = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": base} if base and not Path(base).exists() else {}),
        **({"license": license_name} if license_name else {}),
    }
    from sft.plots import loss_plot

    plot = loss_plot(records)
    parts = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", "", f"# {name}", ""]
    parts += [_origin(args, step, is_adapter=is_adapter), ""]
    if not license_name:
        parts += ["No licence was chosen: `license` is missing above.", ""]
    parts += ["## Loss", "", *_losses(records), ""]
    parts += ["![Loss over optimizer steps](loss.svg)", ""] if plot is not None else []
    parts += ["## Evaluation", "", *_evaluations(evaluations), ""]
    parts += [
        "## Data",
        "",
        *(f"- `{Path(source).name}`, seen {times:g} times per epoch" for source, times in args.train_sources.items()),
        "",
    ]
    parts += ["## What was trained", "", *_masks(args, records, template), ""]
    parts += ["## Settings", "", *_settings(args), ""]
    parts += ["## Check", "", _check(difference), ""]
    return Card("\n".join(parts), plot)


def _origin(args: Args, step: int | None, *, is_adapter: bool) -> str:
    base = Path(args.model_name_or_path).name if args.model_name_or_path else None
    began = f"`{base}`" if base else f"random weights ({(args.model_config or {}).get('model_type')})"
    how = "LoRA" if args.lora.enabled else "full fine-tuning"
    what = "An adapter for" if is_adapter else "A model from"
    when = f"; the weights are those after step {step}" if step is not None else ""
    return f"{what} {began}, by supervised fine-tuning on conversations ({how}) with cleansft{when}."


def _losses(records: list[Record]) -> list[str]:
    _, losses = series(records, "train", "loss")
    steps, held_out = series(records, "eval", "eval_loss")
    found = [f"- training: {losses[0]:.4f} at the first step, {losses[-1]:.4f} at the last"] if losses else []
    if held_out:
        best = min(range(len(held_out)), key=held_out.__getitem__)
        found.append(
            f"- held-out conversations: {held_out[-1]:.4f} at last, best {held_out[best]:.4f} at step {steps[best]:.0f}"
        )
    return found or ["There is no log of the training."]


def _evaluations(evaluations: Sequence[Record]) -> list[str]:
    lines = []
    for each in evaluations:
        lines += [
            f"`{Path(str(each['data'])).name}`, {each['num_rows']:,} rows:",
            "",
            "| metric | value | 95 % interval |",
            "|---|---|---|",
        ]
        lines += [
            f"| {NAMES.get(name, name)} | {one['value']:.4g} | {one['low']:.4g} … {one['high']:.4g} |"
            for name, one in each["figures"].items()
        ]
        lines.append("")
    return lines or ["None: `python -m sft evaluate` writes figures that stand here."]


def _masks(args: Args, records: list[Record], template: str) -> list[str]:
    which = {"assistant": "every assistant turn", "last": "the last assistant turn", "all": "every token"}[
        args.train_on
    ]
    found = [
        f"- {which}, and the token that ends it; where that stands was proven for every row, or the row was refused"
    ]
    seen = [(record["num_trained_tokens"], record["num_tokens"]) for record in records if record["type"] == "train"]
    if seen:
        trained, tokens = (sum(column) for column in zip(*seen, strict=True))
        found.append(
            f"- {trained:,} of {tokens:,} tokens in the logged steps were trained ({trained / max(tokens, 1):.0%})"
        )
    return [*found, f"- chat template: sha256 `{hashlib.sha256(template.encode()).hexdigest()}`"]


def _settings(args: Args) -> list[str]:
    values: dict[str, Any] = {name: getattr(args, name) for name in _SHOWN}
    values["learning_rate"] = args.peak_learning_rate
    if args.lora.enabled:
        values["lora"] = {name: value for name, value in vars(args.lora).items() if name != "enabled"}
    shown = {name: value for name, value in values.items() if value not in (None, {}, [])}
    return [
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | `{json.dumps(value, ensure_ascii=False, default=list)}` |" for name, value in shown.items()),
    ]


def _check(difference: float | None) -> str:
    if difference is None:
        return "What was written was not compared with what was trained (`--no-check`)."
    return (
        f"Loaded with transformers, the logits of made-up tokens are those of the training to {difference:.1g} of the "
        "largest, and the chat template is that of the training to the byte."
    )
