"""What an evaluation found: rows of scores → figures with intervals, a table, a comparison with another model. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft.errors import DataError
from sft.intervals import Comparison, Estimate, compare, estimate
from sft.values import counted

Row = Mapping[str, Any]
"""A line of the evaluation's JSONL (docs/evaluate.md)."""

NAMES = {
    "exact": "exact match", "normalised": "normalised match", "f1": "token F1", "rouge_l": "ROUGE-L",
    "numeric": "number", "regex": "regular expression", "loss": "loss per token", "perplexity": "perplexity",
}  # fmt: skip
"""Metric → what people call it."""


@dataclass(frozen=True)
class Figures:
    """Of one model on one file."""

    model: str
    data: str
    figures: Mapping[str, Estimate]
    """By metric: means over rows from 0 to 1; `loss` in nats per trained token and its `perplexity`."""
    num_rows: int
    num_bad_rows: int
    num_generated_tokens: int
    num_unanswered: int
    """Rows without room for an answer; they count as wrong."""
    num_cut: int
    """Answers that were cut at max_new_tokens."""

    def to_json(self) -> dict[str, Any]:
        """What the summary file holds."""
        figures = {name: vars(found) for name, found in self.figures.items()}
        return {**vars(self), "figures": figures}


def figures_of(rows: Sequence[Row], model: str, data: str, num_bad_rows: int = 0) -> Figures:
    """The figures of some rows."""
    names = dict.fromkeys(name for row in rows for name in row["metrics"])
    found: dict[str, Estimate] = {}
    for name in names:
        values = [row["metrics"][name] for row in rows if row["metrics"].get(name) is not None]
        if values:
            found[name] = estimate(values)
    with_loss = [row for row in rows if row["loss_weight"]]
    if with_loss:
        loss = estimate([row["loss_sum"] for row in with_loss], [row["loss_weight"] for row in with_loss])
        found["loss"] = loss
        found["perplexity"] = Estimate(_exp(loss.value), _exp(loss.low), _exp(loss.high), loss.num_rows)
    return Figures(
        model,
        data,
        found,
        len(rows),
        num_bad_rows,
        sum(row["new_tokens"] or 0 for row in rows),
        sum(row["unanswered"] for row in rows),
        sum(row["stopped"] is False for row in rows),
    )


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def comparisons_of(rows: Sequence[Row], others: Sequence[Row]) -> dict[str, Comparison]:
    """The first less the second model, by metric, on the rows of both.

    Raises:
        DataError: they are not of the same questions.
    """
    if [(row["source"], row["reference"]) for row in rows] != [(row["source"], row["reference"]) for row in others]:
        raise DataError(
            "the two evaluations are of different rows; they must be of the same questions in the same order. "
            "Evaluate both models on the same file."
        )
    pairs = list(zip(rows, others, strict=True))
    found: dict[str, Comparison] = {}
    for name in dict.fromkeys(name for row in rows for name in row["metrics"]):
        both = [(a["metrics"].get(name), b["metrics"].get(name)) for a, b in pairs]
        known = [(a, b) for a, b in both if a is not None and b is not None]
        if known:
            found[name] = compare(*zip(*known, strict=True))
    losses = [(a["loss_sum"], b["loss_sum"], a["loss_weight"]) for a, b in pairs if _have_loss(a, b)]
    if losses:
        found["loss"] = compare(*zip(*losses, strict=True))
    return found


def _have_loss(first: Row, second: Row) -> bool:
    """Whether both rows have one, of the same tokens' number: models with other tokenizers have none to compare."""
    return bool(first["loss_weight"] == second["loss_weight"] != 0)


def table(found: Figures) -> str:
    """The figures as lines for people."""
    lines = [f"{found.model} on {found.data}: {counted(found.num_rows, 'row')}"]
    lines += _columns(
        ("metric", "value", "95 % interval", "rows"),
        [
            (NAMES.get(name, name), *(_shown(name, each) for each in (one.value, one.low, one.high)), one.num_rows)
            for name, one in found.figures.items()
        ],
    )
    remarks = []
    if found.num_generated_tokens:
        remarks.append(f"{found.num_generated_tokens:,} tokens generated")
    if found.num_cut:
        remarks.append(f"{counted(found.num_cut, 'answer')} cut at max_new_tokens")
    if found.num_unanswered:
        remarks.append(f"{counted(found.num_unanswered, 'row')} without room for an answer, counted as wrong")
    if found.num_bad_rows:
        remarks.append(f"{counted(found.num_bad_rows, 'bad row')} left out")
    return "\n".join([*lines, *(["; ".join(remarks)] if remarks else [])])


def comparison_table(found: Mapping[str, Comparison], model: str, other: str) -> str:
    """A comparison as lines for people."""
    lines = [f"{model} less {other}, on the same rows"]
    lines += _columns(
        ("metric", "difference", "95 % interval", "p"),
        [
            (NAMES.get(name, name), *(_shown(name, each, sign="+") for each in (one.difference, one.low, one.high)),
             f"{one.p:.3g}" if one.p >= 1e-3 else "< 0.001")
            for name, one in found.items()
        ],
    )  # fmt: skip
    return "\n".join(lines)


def _columns(heads: tuple[str, str, str, str], rows: Sequence[tuple[Any, ...]]) -> list[str]:
    width = max([len(heads[0]), *(len(row[0]) for row in rows)])
    lines = [f"  {heads[0]:<{width}}  {heads[1]:>10}  {heads[2]:^22}  {heads[3]:>8}"]
    for name, value, low, high, last in rows:
        shown = f"{last:,}" if isinstance(last, int) else last
        lines.append(f"  {name:<{width}}  {value:>10}  {f'{low} … {high}':^22}  {shown:>8}")
    return lines


def _shown(name: str, value: float, sign: str = "") -> str:
    if name in ("loss", "perplexity"):
        return f"{value:{sign}.5g}"
    return f"{100 * value:{sign}.1f} %"
