"""The model card: what a model is, how it was trained, and what was measured. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.config import Args
from sft.run_files import Record, series, tokens_seen
from sft.scores import NAMES, shown
from sft.setting_files import looks_like_a_path
from sft.values import counted

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


@dataclass(frozen=True)
class Told:
    """What a run directory tells of the training (`run_files`)."""

    records: list[Record]
    evaluations: Sequence[Record]
    """Figures that `evaluate` found of the final model."""
    data: Record
    """What training counted of its data."""


def model_card(
    *,
    name: str,
    args: Args,
    told: Told,
    template: str,
    step: int | None,
    license_name: str | None,
    proof: str | None,
    is_adapter: bool,
) -> Card:
    """The card of an exported model.

    Args:
        name: its heading.
        args: of the training.
        told: of the training; what came after `step` is left out.
        template: the chat template.
        step: of the checkpoint, of which nothing was evaluated; None for the final model.
        license_name: for the card's head; without one it says that none was chosen.
        proof: what was compared with the training, as `export_check.Proof` says it; None where nothing was.
        is_adapter: whether this is an adapter alone.
    """
    base = _hub_name(args)
    head = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": base} if base else {}),
        **({"license": license_name} if license_name else {}),
    }
    from sft.plots import loss_plot

    data: Mapping[str, Any] = told.data.get("train", {})
    records = [record for record in told.records if step is None or record["step"] <= step]
    plot = loss_plot(records)
    parts = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", "", f"# {name}", ""]
    parts += [_origin(args, step, is_adapter=is_adapter), ""]
    if not license_name:
        parts += ["No licence was chosen: `license` is missing above.", ""]
    parts += ["## Loss", "", *_losses(records), ""]
    parts += ["![Loss over optimizer steps](loss.svg)", ""] if plot is not None else []
    parts += ["## Evaluation", "", *_evaluations(told.evaluations, step), ""]
    parts += ["## Data", "", *_data(args, data), ""]
    parts += ["## What was trained", "", *_masks(args, records, data, template), ""]
    parts += ["## Settings", "", *_settings(args), ""]
    parts += ["## Check", "", _check(proof), ""]
    return Card("\n".join(parts), plot)


def _hub_name(args: Args) -> str | None:
    """The base model's name, where others can find it by it."""
    base = args.model_name_or_path
    return base if base and not looks_like_a_path(base) and not Path(base).exists() else None


def _origin(args: Args, step: int | None, *, is_adapter: bool) -> str:
    base = _hub_name(args) or (Path(args.model_name_or_path).name if args.model_name_or_path else None)
    began = _code(base) if base else f"random weights ({(args.model_config or {}).get('model_type')})"
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


def _evaluations(evaluations: Sequence[Record], step: int | None) -> list[str]:
    if step is not None:
        return [f"None of the weights after step {step}: `python -m sft evaluate` scores this folder."]
    lines = []
    for each in evaluations:
        lines += [
            f"{_code(Path(str(each['data'])).name)}, {counted(each['num_rows'], 'row')}:",
            "",
            "| metric | value | 95 % interval |",
            "|---|---|---|",
        ]
        for name, one in each["figures"].items():
            value, low, high = (shown(name, one[key]) for key in ("value", "low", "high"))
            lines.append(f"| {NAMES.get(name, name)} | {value} | {low} … {high} |")
        lines.append("")
    return lines or ["None: `python -m sft evaluate` writes figures that stand here."]


def _data(args: Args, figures: Mapping[str, Any]) -> Iterator[str]:
    """The files by name, and what encoding counted."""
    for source, times in args.train_sources.items():
        yield f"- {_code(Path(source).name)}, seen {times:g} × per epoch"
    counts = dict(figures.get("counts", {}))
    if not counts:
        return
    rows, bad, documents, tokens, trained = (
        counts.pop(name, 0) for name in ("rows", "bad rows", "documents", "tokens", "trained_tokens")
    )
    yield f"- {counted(rows, 'row')}, of which {bad:,} were refused and left out"
    yield f"- {counted(documents, 'document')} with {tokens:,} tokens, {trained:,} of them trained"
    yield from (f"- {counted(number, 'document')} {what}" for what, number in counts.items())


def _masks(args: Args, records: list[Record], figures: Mapping[str, Any], template: str) -> list[str]:
    turns = {"assistant": "every assistant turn", "last": "the last assistant turn"}
    if args.train_on in turns:
        found = [
            f"- {turns[args.train_on]}, and the token that ends it. Where they stand was proven from what the chat "
            "template does with each row; rows for which it could not be were refused"
        ]
    else:
        found = ["- every token"]
    found += [f"- {counted(number, 'document')}: {note}" for note, number in figures.get("notes", {}).items()]
    if seen := tokens_seen(records):
        tokens, trained = seen
        share = f"{trained / max(tokens, 1):.0%}"
        found.append(f"- {trained:,} of the {tokens:,} tokens seen so far were trained ({share})")
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
        *(f"| {name} | {_cell(value)} |" for name, value in shown.items()),
    ]


def _cell(value: Any) -> str:
    """The value as code in a table."""
    return _code(json.dumps(value, ensure_ascii=False, default=list)).replace("|", "\\|")


def _code(text: str) -> str:
    """The text as code in Markdown, whatever it holds: https://spec.commonmark.org/0.31.2/#code-spans"""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{space}{text}{space}{fence}"


def _check(proof: str | None) -> str:
    if proof is None:
        return "What was written was not compared with what was trained (`--no-check`)."
    return f"Loaded with transformers, {proof}; the chat template is that of the training to the byte."
