"""What came of a sweep as a page of its own: the table, and the evaluation loss over each setting. Pure."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 420, 240, 64, 44, 16
_STYLE = """\
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --faint: #d0d7de; --dot: #0969da; --mean: #9a6700; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #0d1117; --faint: #30363d; --dot: #58a6ff; --mean: #d29922; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  padding: 0 1rem; max-width: 60rem; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
td, th { padding: .25rem .8rem; border-bottom: 1px solid var(--faint); text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
svg { max-width: 100%; height: auto; } text { fill: var(--ink); font-size: 12px; }
.frame { stroke: var(--faint); } .dot { fill: var(--dot); fill-opacity: .75; }
.mean { stroke: var(--mean); stroke-width: 2; fill: none; }
"""


def sweep_page(name: str, axes: Mapping[str, Sequence[str]], rows: Sequence[Mapping[str, Any]]) -> str:
    """The page.

    Args:
        name: of the sweep.
        axes: setting → its values, in order.
        rows: of each run, the best first: `run`, `state`, `values` (setting → value), `eval_loss`, `loss`, `step`.
    """
    has_eval = any(row["eval_loss"] is not None for row in rows)
    measure = "eval_loss" if has_eval else "loss"
    plots = [plot(axis, values, rows, measure) for axis, values in axes.items()]
    head = "".join(f"<th>{html.escape(word)}</th>" for word in ("run", "state", *axes, "eval loss", "loss", "step"))
    body = "".join(f"<tr>{_cells(row, axes)}</tr>\n" for row in rows)
    title = html.escape(name)
    words = measure.replace("_", " ")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>\n'
        f"<h2>{words} by setting</h2><p>A dot for each run; the line joins the means.</p>\n"
        f"{''.join(plots)}</body></html>\n"
    )


def _cells(row: Mapping[str, Any], axes: Mapping[str, Sequence[str]]) -> str:
    words = [row["run"], row["state"], *(row["values"][axis] for axis in axes)]
    numbers = [_number(row["eval_loss"]), _number(row["loss"]), "" if row["step"] is None else str(row["step"])]
    cells = [f"<td>{html.escape(str(word))}</td>" for word in words]
    return "".join([*cells, *(f'<td class="number">{number}</td>' for number in numbers)])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def plot(axis: str, values: Sequence[str], rows: Sequence[Mapping[str, Any]], measure: str) -> str:
    """One setting's plot as SVG: its values side by side in their order, as not all are numbers."""
    known = [row for row in rows if row[measure] is not None]
    if not known:
        return ""
    low, high = min(row[measure] for row in known), max(row[measure] for row in known)
    span = (high - low) or 1.0
    step = (WIDTH - LEFT - 20) / len(values)

    def x_of(value: str) -> float:
        return LEFT + step * (values.index(value) + 0.5)

    def y_of(number: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (0.05 + 0.9 * float((high - number) / span))

    floor = HEIGHT - BOTTOM
    parts = [
        f'<line class="frame" x1="{LEFT}" y1="{floor}" x2="{WIDTH - 10}" y2="{floor}"/>',
        f'<line class="frame" x1="{LEFT}" y1="{TOP}" x2="{LEFT}" y2="{floor}"/>',
        *(_label(LEFT - 6, y_of(number) + 4, f"{number:.4g}", "end") for number in dict.fromkeys((low, high))),
        *(_label(x_of(value), floor + 16, value, "middle") for value in values),
        _label((LEFT + WIDTH) / 2, HEIGHT - 6, axis, "middle"),
    ]
    means = []
    for value in values:
        found = [row[measure] for row in known if row["values"][axis] == value]
        if found:
            means.append(f"{x_of(value):.1f},{y_of(sum(found) / len(found)):.1f}")
    parts.append(f'<polyline class="mean" points="{" ".join(means)}"/>')
    for row in known:
        x, y = x_of(row["values"][axis]), y_of(row[measure])
        title = html.escape(f"{row['run']}: {row[measure]:.4f}")
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{title}</title></circle>')
    title = html.escape(f"{measure} by {axis}")
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="{title}"'
    return f"<svg {box}>{''.join(parts)}</svg>\n"


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'
