"""What an evaluation found: rows of scores → figures with intervals, a table, a comparison with another model. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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


MAX_SHOWN = 10
"""How many rows are named."""


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
    num_truncated: int
    """Documents of whose loss only what stands within max_length is known."""
    num_dropped: int
    """Documents without a loss, as they are longer than max_length."""
    num_not_finite: int
    """Rows whose loss is no finite number; they are left out of it."""
    not_finite: Sequence[str]
    """Where the first of these stand."""
    settings: Mapping[str, Any]
    """How the model was asked."""

    def to_json(self) -> dict[str, Any]:
        """What the summary file holds."""
        figures = {name: vars(found) for name, found in self.figures.items()}
        return {**vars(self), "figures": figures}


def figures_of(
    rows: Sequence[Row], model: str, data: str, num_bad_rows: int = 0, settings: Mapping[str, Any] | None = None
) -> Figures:
    """The figures of some rows.

    Args:
        rows: of an evaluation, at least one.
        model: its name.
        data: that of the data.
        num_bad_rows: that were left out.
        settings: how the model was asked.
    """
    names = dict.fromkeys(name for row in rows for name in row["metrics"])
    found: dict[str, Estimate] = {}
    for name in names:
        values = [row["metrics"][name] for row in rows if row["metrics"].get(name) is not None]
        if values:
            found[name] = estimate(values)
    with_tokens = [row for row in rows if row["loss_weight"]]
    not_finite = [row["source"] for row in with_tokens if row["loss_sum"] is None]
    with_loss = [row for row in with_tokens if row["loss_sum"] is not None]
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
        sum(row.get("truncated", 0) for row in rows),
        sum(row.get("dropped", 0) for row in rows),
        len(not_finite),
        not_finite[:MAX_SHOWN],
        dict(settings or {}),
    )


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def comparisons_of(rows: Sequence[Row], others: Sequence[Row]) -> dict[str, Comparison]:
    """The first less the second model, by metric, on the rows of both.

    Raises:
        DataError: they are not of the same questions.
    """
    require_same_questions(rows, others)
    pairs = list(zip(rows, others, strict=True))
    found: dict[str, Comparison] = {}
    for name in dict.fromkeys(name for row in rows for name in row["metrics"]):
        both = [(a["metrics"].get(name), b["metrics"].get(name)) for a, b in pairs]
        known = [(a, b) for a, b in both if a is not None and b is not None]
        if known:
            found[name] = compare(*zip(*known, strict=True))
    if all(_has_same_tokens(a, b) for a, b in pairs):
        losses = [
            (a["loss_sum"], b["loss_sum"], a["loss_weight"])
            for a, b in pairs
            if a["loss_sum"] is not None and b["loss_sum"] is not None
        ]
        if losses:
            found["loss"] = compare(*zip(*losses, strict=True))
    return found


def require_same_questions(rows: Sequence[Row], others: Sequence[Row]) -> None:
    """
    Raises:
        DataError: the rows are not of the same questions; only the number and hash of each are looked at.
    """
    mine, theirs = ([(row["row"], row["question_sha256"]) for row in each] for each in (rows, others))
    if mine != theirs:
        raise DataError(
            "the two evaluations are of different rows; they must be of the same questions in the same order. "
            "Evaluate both models on the same file."
        )


def _has_same_tokens(first: Row, second: Row) -> bool:
    """Whether both losses are over as many tokens. Where one row's are not, the models have other tokenizers, and the
    rows that agree by chance would be no sample of all."""
    return all(first[key] == second[key] for key in ("loss_weight", "trained_tokens"))


def has_other_tokens(rows: Sequence[Row], others: Sequence[Row]) -> bool:
    """Whether both models have losses, but of other tokens, so that they cannot be compared."""
    have_losses = all(any(row["loss_weight"] for row in each) for each in (rows, others))
    return have_losses and not all(map(_has_same_tokens, rows, others))


def table(found: Figures) -> str:
    """The figures as lines for people."""
    lines = [f"{found.model} on {found.data}: {counted(found.num_rows, 'row')}"]
    lines += _columns(
        ("metric", "value", "95 % interval", "rows"),
        [
            (NAMES.get(name, name), *(shown(name, each) for each in (one.value, one.low, one.high)), one.num_rows)
            for name, one in found.figures.items()
        ],
    )
    remarks = "; ".join(_remarks(found))
    return "\n".join([*lines, *([remarks] if remarks else [])])


def _remarks(found: Figures) -> Iterator[str]:
    """What else there is to know of the figures."""
    if found.num_generated_tokens:
        yield f"{found.num_generated_tokens:,} tokens generated"
    if found.num_cut:
        yield f"{counted(found.num_cut, 'answer')} cut at max_new_tokens"
    if found.num_unanswered:
        yield f"{counted(found.num_unanswered, 'row')} without room for an answer, counted as wrong"
    if found.num_not_finite:
        more = found.num_not_finite - len(found.not_finite)
        where = ", ".join([*found.not_finite, *([f"{more:,} more"] if more else [])])
        yield f"{counted(found.num_not_finite, 'row')} without a finite loss, left out of it: {where}"
    if found.num_truncated:
        yield f"loss of {counted(found.num_truncated, 'document')} only up to max_length"
    if found.num_dropped:
        yield f"no loss of {counted(found.num_dropped, 'document')} longer than max_length"
    if found.num_bad_rows:
        yield f"{counted(found.num_bad_rows, 'bad row')} left out"


def comparison_table(
    found: Mapping[str, Comparison], model: str, other: str, *, with_other_tokens: bool = False
) -> str:
    """A comparison as lines for people.

    Args:
        found: by metric.
        model: the first one's name.
        other: the second one's.
        with_other_tokens: whether their losses cannot be compared (`has_other_tokens`).
    """
    lines = [f"{model} less {other}, on the same rows"]
    lines += _columns(
        ("metric", "difference", "95 % interval", "p", "rows"),
        [
            (NAMES.get(name, name), *(_difference(name, each) for each in (one.difference, one.low, one.high)),
             f"{one.p:.3g}" if one.p >= 1e-3 else "< 0.001", one.num_rows)
            for name, one in found.items()
        ],
    )  # fmt: skip
    if with_other_tokens:
        lines.append("losses are not compared: they are of different tokens, as of models with different tokenizers")
    return "\n".join(lines)


def _columns(heads: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> list[str]:
    width = max([len(heads[0]), *(len(row[0]) for row in rows)])
    table = [(*heads[:2], heads[2], heads[3:]), *((row[0], row[1], f"{row[2]} … {row[3]}", row[4:]) for row in rows)]
    return [
        f"  {name:<{width}}  {value:>10}  {interval:^22}"
        + "".join(f"  {f'{each:,}' if isinstance(each, int) else each:>8}" for each in rest)
        for name, value, interval, rest in table
    ]


def shown(name: str, value: float) -> str:
    """A metric's value for people: a share in per cent, loss and perplexity as they are."""
    return f"{value:.5g}" if name in ("loss", "perplexity") else f"{100 * value:.1f} %"


def _difference(name: str, value: float) -> str:
    """The same of a difference: of shares in percentage points."""
    return f"{value:+.5g}" if name in ("loss", "perplexity") else f"{100 * value:+.1f} pp"
