"""An audit as a page: warnings first, then tiles, the histogram of lengths, and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sft.audit import Audit, SourceAudit
from sft.epoch import Epoch
from sft.findings import Finding
from sft.lengths import Bin, bins, round_numbers, usual
from sft.page import render_page
from sft.painting import visible
from sft.values import counted

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 960, 280, 62, 24, 246


def audit_page(found: Audit, findings: Sequence[Finding], epoch: Epoch, title: str) -> str:
    """The whole page."""
    sources = [_source(source, f"×{source.times:g}") for source in found.sources]
    sources += [_source(found.held_out, "evaluation")] if found.held_out else []
    return render_page(
        "audit.html.jinja",
        kind="Audit of training data",
        title=title,
        command="python -m sft audit",
        is_whole=found.is_whole,
        findings=[
            {"level": each.level, "text": visible(each.text), "places": list(map(visible, each.places))}
            for each in findings
        ],
        tiles=list(_tiles(found, epoch)),
        chart=_chart(found),
        sources=sources,
        epoch=list(_epoch(epoch)),
        forms=[(form, f"{number:,}") for form, number in found.forms.most_common()],
        stops=[(visible(text), f"id {token}") for token, text in found.stop_tokens.items()],
    )


def _tiles(found: Audit, epoch: Epoch) -> Iterator[dict[str, Any]]:
    def tile(
        label: str, value: str, more: str = "", share: float | None = None, is_bad: bool = False
    ) -> dict[str, Any]:
        return {"label": label, "value": value, "more": more, "share": share, "is_bad": is_bad}

    yield tile("Rows", f"{found.rows:,}", counted(len(found.sources), "source"))
    yield tile("Refused", f"{found.num_refused:,}", f"{found.num_refused / max(found.rows, 1):.1%} of rows",
               is_bad=found.num_refused > 0)  # fmt: skip
    yield tile("Documents", f"{found.documents:,}", f"{found.num_truncated:,} truncated, {found.num_dropped:,} dropped")
    yield tile("Tokens", _brief(found.tokens), f"{found.tokens:,}")
    yield tile("Trained tokens", f"{found.trained_share:.0%}", f"{found.trained_tokens:,}",
               share=round(100 * found.trained_share, 1))  # fmt: skip
    yield tile("Steps per epoch", f"{epoch.steps:,}", f"{epoch.rows_per_step:,} rows each")


def _brief(number: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return str(number)


def _epoch(epoch: Epoch) -> Iterator[tuple[str, str]]:
    yield "processes" if epoch.num_processes != 1 else "process", f"{epoch.num_processes:,}"
    yield "rows per step", f"{epoch.rows_per_step:,}"
    yield "documents", f"{epoch.documents:,}"
    yield "tokens", f"{epoch.tokens:,}"
    yield "steps, one document per row", f"{epoch.steps:,}"
    yield "padding, one document per row", f"about {epoch.padding:.0%}"
    yield "steps, packed", f"{epoch.packed_steps:,}"
    yield "packed rows are full to", f"{epoch.packed_fill:.1%}"


def _source(source: SourceAudit, times: str) -> dict[str, Any]:
    numbers = (source.rows, source.num_refused, source.documents, source.num_truncated, source.num_dropped,
               source.tokens)  # fmt: skip
    shown = (f"{number:,}" for number in numbers)
    return {"name": source.name, "numbers": [times, *shown, f"{source.trained_share:.0%}"]}


def _chart(found: Audit) -> dict[str, Any]:
    """The histogram's geometry, in the units of its view box."""
    bars = bins(found.lengths)
    highest = max((bar.number for bar in bars), default=1)
    step = next(size for size in round_numbers() if size * 5 >= highest)
    top = -(-highest // step) * step
    slot = (WIDTH - LEFT) / max(len(bars), 1)

    def y(number: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * number / top, 1)

    lengths = found.lengths
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "bottom": BOTTOM,
        "grid": [{"y": y(number), "name": f"{number:,}"} for number in range(0, top + 1, step)],
        "bars": [
            {
                "x": round(LEFT + slot * index + slot * 0.06, 1),
                "width": round(slot * 0.88, 1),
                "y": y(bar.number),
                "height": round(BOTTOM - y(bar.number), 1),
                "title": f"{bar.name} tokens: {counted(bar.number, 'document')}",
                "name": f"≤ {bar.last:,}" if bar.last else "longer",
            }
            for index, bar in enumerate(bars)
        ],
        "limit": _limit(bars, found.max_length, slot),
        "caption": f"{usual(lengths)}, longest {found.longest[0]:,} tokens ({found.longest[1]}); "
        f"max_length {found.max_length:,}. Counted up to the last trained token, before truncation.",
    }


def _limit(bars: Sequence[Bin], max_length: int, slot: float) -> float | None:
    """Where max_length stands on the axis; None beside it."""
    for index, bar in enumerate(bars):
        if bar.first <= max_length and bar.last is not None and max_length <= bar.last:
            inside = (max_length - bar.first + 1) / (bar.last - bar.first + 1)
            return round(LEFT + slot * (index + inside), 1)
    return None
