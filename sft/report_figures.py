"""Figures of a run for its page: where its time went, how alike its ranks were, what memory they took, its data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sft.metering import PHASES
from sft.plots import COLOURS
from sft.run_files import Record, end_of

_GIB = 2**30
_MAX_RANKS = 32
"""So many ranks are shown; of more, those that compute for longest and shortest."""
_ON_ITS_OWN = ("data_s", "forward_s")
"""Phases in which a rank waits for no other, as in `sft.metering`."""


def time_split(records: Sequence[Record], attempts: Sequence[Record]) -> dict[str, Any] | None:
    """Where the time from the first attempt's beginning to the last one's end went, or without attempts that of the
    training; None where nothing was logged."""
    trained_s = max((record["elapsed_s"] for record in records if "elapsed_s" in record), default=0.0)
    if not trained_s:
        return None
    seconds = _phase_totals(records)
    seconds["evaluation and other"] = max(trained_s - sum(seconds.values()), 0.0)
    begun = [each for each in attempts if each.get("began_at")]
    ends = [end for each in begun if (end := end_of(each))]
    total_s = max(ends) - begun[0]["began_at"] if ends else 0.0
    if total_s > trained_s:
        pairs = itertools.pairwise(begun)
        between_s = sum(max(after["began_at"] - (end_of(each) or after["began_at"]), 0.0) for each, after in pairs)
        seconds["start, end, steps done again"] = max(total_s - trained_s - between_s, 0.0)
        seconds["between attempts"] = between_s
    total_s = sum(seconds.values())
    parts = _shares(seconds, total_s, lambda part_s: f"{duration(part_s)} ({part_s / total_s:.0%})")
    return {"parts": parts, "total": duration(total_s)}


def step_split(records: Sequence[Record]) -> dict[str, Any] | None:
    """Where the time of the mean step went; None where no phase was logged."""
    seconds = _phase_totals(records)
    total_s = sum(seconds.values())
    if not total_s:
        return None
    num_steps = max(record["step"] for record in records if record["type"] == "train")
    parts = _shares(seconds, total_s, lambda part_s: f"{part_s / total_s:.0%}")
    return {"parts": parts, "step": f"{1000 * total_s / num_steps:,.1f} ms"}


def balance(records: Sequence[Record]) -> dict[str, Any] | None:
    """How long each rank of the last attempt computed by itself, waiting for no other; None for one rank, or where the
    run has not ended."""
    ranks = _ranks(records)
    if ranks is None or len(ranks["peak_bytes"]) < 2:
        return None
    busy_s = [sum(pair) for pair in zip(*(ranks[name] for name in _ON_ITS_OWN), strict=True)]
    mean_s, most_s = sum(busy_s) / len(busy_s), max(*busy_s, 1e-9)
    order = sorted(range(len(busy_s)), key=lambda rank: -busy_s[rank])
    half = _MAX_RANKS // 2
    shown = range(len(busy_s)) if len(busy_s) <= _MAX_RANKS else [*order[:half], *order[-half:]]
    rows = [
        {
            "name": f"rank {rank}",
            "share": round(100 * busy_s[rank] / most_s, 2),
            "text": f"{busy_s[rank]:,.1f} s",
            "memory": _gib(ranks["peak_bytes"][rank]),
        }
        for rank in shown
    ]
    return {
        "rows": rows,
        "slowest": f"rank {order[0]}, {max(busy_s[order[0]] / max(mean_s, 1e-9) - 1, 0):.1%} above the mean",
        "left_out": len(busy_s) - len(rows),
    }


def memory(records: Sequence[Record], estimate: Mapping[str, int] | None) -> dict[str, Any] | None:
    """The most that a rank held, against what was to be expected of each part; None where the run has not ended.

    Args:
        records: of the run.
        estimate: bytes of each part, if it could be made.
    """
    ranks = _ranks(records)
    if ranks is None:
        return None
    peaks = ranks["peak_bytes"]
    highest = max(range(len(peaks)), key=lambda rank: peaks[rank])
    whole = max(peaks[highest], sum(estimate.values()) if estimate else 0, 1)
    found: dict[str, Any] = {
        "measured": f"{_gib(peaks[highest])} on rank {highest}" + (", which has most" if len(peaks) > 1 else ""),
        "share": round(100 * peaks[highest] / whole, 2),
        "estimated": None,
        "parts": [],
    }
    if estimate:
        total = sum(estimate.values())
        ratio = f"{peaks[highest] / max(total, 1):.0%} of it was taken"
        found |= {"estimated": f"{_gib(total)}; {ratio}", "parts": _shares(estimate, whole, _gib)}
    return found


def data_table(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What training counted of its data and of the held-out rows: rows of tables, and the histogram of lengths."""
    return [
        {"name": title, "rows": list(_counts(data[key])), "bars": _bars(data[key]["lengths"])}
        for key, title in (("train", "trained"), ("eval", "held out"))
        if key in data
    ]


def duration(seconds: float) -> str:
    """`3 h 12 min`, `5 min 7 s`, `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _phase_totals(records: Sequence[Record]) -> dict[str, float]:
    """Seconds of each phase over all steps: a record has the mean of the steps since the one before it."""
    seconds, step = dict.fromkeys(PHASES, 0.0), 0
    for record in records:
        if record["type"] == "train":
            for phase in PHASES:
                seconds[phase] += record.get(f"{phase}_s", 0.0) * (record["step"] - step)
            step = record["step"]
    return {str(phase): value for phase, value in seconds.items()}


def _ranks(records: Sequence[Record]) -> Mapping[str, list[float]] | None:
    found = [record["ranks"] for record in records if record["type"] == "summary" and record.get("ranks")]
    return found[-1] if found else None


def _shares(values: Mapping[str, float], whole: float, told: Callable[[float], str]) -> list[dict[str, Any]]:
    """Parts of a bar, in per cent of the whole, those that are nothing left out."""
    return [
        {
            "name": name,
            "share": round(100 * value / whole, 2),
            "text": f"{name} {told(value)}",
            "colour": COLOURS[number % len(COLOURS)],
        }
        for number, (name, value) in enumerate(values.items())
        if value
    ]


def _gib(num_bytes: float) -> str:
    gib = num_bytes / _GIB
    if gib < 0.1:
        return f"{1024 * gib:.2f} MiB"
    return f"{gib:,.1f} GiB" if gib >= 10 else f"{gib:.2f} GiB"


def _counts(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    counts, quantiles = figures["counts"], figures["quantiles"]
    share = counts.get("trained_tokens", 0) / max(counts.get("tokens", 0), 1)
    rows = [(name, f"{number:,}") for name, number in counts.items() if name != "trained_tokens"]
    rows.append(("trained tokens", f"{counts.get('trained_tokens', 0):,} ({share:.0%})"))
    rows += [(f"note: {name}", f"{number:,}") for name, number in figures["notes"].items()]
    return [*rows, ("tokens per document", ", ".join(f"{name} {value:,}" for name, value in quantiles.items()))]


def _bars(lengths: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    most = max((number for _, number in lengths), default=1) or 1
    return [{"name": name, "share": round(100 * number / most, 2), "text": f"{number:,}"} for name, number in lengths]
