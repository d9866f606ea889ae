"""Curves as SVG, by matplotlib; without it there are none."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sft.run_files import Record, series

COLOURS = ("#4f86d9", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c", "#ccb974")
_WIDTH, _HEIGHT = 4.6, 2.7
"""Inches; small, so that the writing can be read on a narrow screen, to which the plot is scaled."""


@dataclass(frozen=True)
class Curve:
    """One line of a plot."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = COLOURS[0]
    is_dotted: bool = False
    """Points with a line between them, for few values."""


def can_plot() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def loss_plot(records: list[Record]) -> str | None:
    """The losses of a run as SVG; None without any, or without matplotlib."""
    train, held_out = series(records, "train", "loss"), series(records, "eval", "eval_loss")
    curves = [Curve("training", *train)] if train[0] else []
    curves += [Curve("held out", *held_out, colour=COLOURS[1], is_dotted=True)] if held_out[0] else []
    return plot(curves, "loss per token") if curves else None


def plot(curves: Sequence[Curve], y_name: str, x_name: str = "optimizer step") -> str | None:
    """A line plot as SVG without background, whose text and axes have the colour of the text around it; None without
    matplotlib. The same for the same curves."""
    if not can_plot():
        return None
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "cleansft",
        "font.family": "sans-serif",
        "font.size": 9,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        for curve in curves:
            marker = "o" if curve.is_dotted or len(curve.x) == 1 else ""
            axes.plot(curve.x, curve.y, color=curve.colour, marker=marker, markersize=3, linewidth=1.4)
        axes.set_xlabel(x_name)
        axes.set_ylabel(y_name)
        axes.grid(visible=True, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if len(curves) > 1:
            # By place, and put in afterwards: labels that begin with `_` are left out, and `$` begins a formula.
            shown = axes.legend(axes.lines, [str(number) for number in range(len(curves))], frameon=False)
            for text, curve in zip(shown.get_texts(), curves, strict=True):
                text.set(text=curve.name, parse_math=False)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _in_text_colour(written.getvalue())


def _in_text_colour(svg: str) -> str:
    """The SVG element alone, black drawn in the colour of the text around it."""
    inner = svg[svg.index("<svg") :]
    inner = re.sub(r"(stroke|fill): #000000", r"\1: currentColor", inner)
    return re.sub(r"<text ", '<text fill="currentColor" ', inner)
