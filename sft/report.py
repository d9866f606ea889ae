"""A report of one run or several as a page: curves, evaluation, masks, attempts, settings. It fetches nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft.inspection import Inspected, Piece, Refused
from sft.page import documents_of, render_page
from sft.painting import visible
from sft.plots import COLOURS, Curve, plot
from sft.report_figures import balance, data_table, duration, memory, step_split, time_split
from sft.report_timeline import state_of, time_line
from sft.run_files import Record, attempts_of, data_of, evaluations_of, records_of, series, settings_of, tokens_seen
from sft.scores import NAMES, shown
from sft.values import counted

CURVES = (
    ("Loss", "loss per token", (("train", "loss", False), ("eval", "eval_loss", True))),
    ("Learning rate", "learning rate", (("train", "learning_rate", False),)),
    ("Gradient norm", "2-norm before clipping", (("train", "grad_norm", False),)),
    ("Throughput", "tokens per second", (("train", "tokens_per_s", False),)),
)
"""Title, axis, what is drawn: kind of record, name, whether it has few values."""

Samples = Sequence[tuple[Inspected | Refused, Sequence[Piece]]]


@dataclass(frozen=True)
class Run:
    """What a run directory tells."""

    name: str
    colour: str
    records: list[Record]
    evaluations: list[Record]
    attempts: list[Record]
    settings: Mapping[str, Any]
    data: Record
    samples: Samples = field(default=())
    estimate: Mapping[str, int] | None = None


def names_of(folders: Sequence[Path]) -> list[str]:
    """A name for each run directory: its own, with so many of the folders above that all can be told apart."""
    whole, names = [folder.resolve().parts for folder in folders], list[str]()
    for num_parts in range(1, max(map(len, whole), default=0) + 1):
        names = ["/".join(parts[-num_parts:]) for parts in whole]
        if len(set(names)) == len(set(whole)):
            break
    given: Counter[str] = Counter()
    for number, name in enumerate(names):  # one that is named twice
        given[name] += 1
        names[number] = name if given[name] == 1 else f"{name} ({given[name]})"
    return names


def read_run(
    folder: Path,
    number: int,
    samples: Samples = (),
    estimate: Mapping[str, int] | None = None,
    name: str | None = None,
) -> Run:
    """
    Args:
        folder: the run directory.
        number: of the run in the report, for its colour.
        samples: rows of its data, painted.
        estimate: bytes of each part of a rank's memory that were to be expected.
        name: of the run in the report; by default its folder's.
    """
    return Run(
        name or folder.resolve().name,
        COLOURS[number % len(COLOURS)],
        records_of(folder),
        evaluations_of(folder),
        attempts_of(folder),
        settings_of(folder),
        data_of(folder),
        samples,
        estimate,
    )


def report_page(runs: Sequence[Run]) -> str:
    """The whole page."""
    return render_page(
        "report.html.jinja",
        kind="Report" if len(runs) == 1 else f"Report on {len(runs)} runs",
        title=", ".join(visible(run.name) for run in runs),
        command="python -m sft report",
        runs=[{"name": visible(run.name), "colour": run.colour} for run in runs],
        tiles=[{"run": visible(run.name), "colour": run.colour, "tiles": list(_tiles(run))} for run in runs],
        curves=list(_curves(runs)),
        phases=[named for run in runs if (named := _named(run, step_split(run.records)))],
        times=[named for run in runs if (named := _named(run, time_split(run.records, run.attempts)))],
        balances=[named for run in runs if (named := _named(run, balance(run.records)))],
        memories=[named for run in runs if (named := _named(run, memory(run.records, run.estimate)))],
        evaluations=[table for run in runs for table in _evaluations(run)],
        attempts=[named for run in runs if (named := _named(run, time_line(run.records, run.attempts)))],
        data=[_data(run) for run in runs],
        documents=[each for run in runs for each in documents_of(run.samples)],
        settings=list(_settings(runs)),
    )


def _named(run: Run, found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if found is None else {"run": visible(run.name), **found}


def _tiles(run: Run) -> Iterator[dict[str, str]]:
    steps, losses = series(run.records, "train", "loss")
    _, held_out = series(run.records, "eval", "eval_loss")
    _, rates = series(run.records, "train", "tokens_per_s")
    _, mfu = series(run.records, "train", "mfu")
    _, elapsed = series(run.records, "train", "elapsed_s")
    if losses:
        yield {"label": "Loss", "value": f"{losses[-1]:.4g}", "more": f"{losses[0]:.4g} at the first step"}
        max_steps = run.settings.get("max_steps")
        of_all = f"of {max_steps:,} " if isinstance(max_steps, int) and max_steps > steps[-1] else ""
        yield {
            "label": "Steps",
            "value": f"{steps[-1]:,.0f}",
            "more": f"{of_all}in {duration(elapsed[-1]) if elapsed else '?'}",
        }
    if held_out:
        yield {"label": "Best held-out loss", "value": f"{min(held_out):.4g}", "more": f"{held_out[-1]:.4g} at last"}
    if rates:
        middle = sorted(rates)[len(rates) // 2]
        share = f"MFU {sorted(mfu)[len(mfu) // 2]:.1%}" if mfu else ""
        yield {"label": "Tokens per second", "value": f"{middle:,.0f}", "more": share}
    if run.attempts:
        yield {"label": "Attempts", "value": str(len(run.attempts)), "more": state_of(run.attempts[-1])}


def _curves(runs: Sequence[Run]) -> Iterator[dict[str, str]]:
    for title, y_name, parts in CURVES:
        curves = []
        for run in runs:
            for kind, name, is_dotted in parts:
                x, y = series(run.records, kind, name)
                if x:
                    label = " · ".join(_labels(run, kind, is_only_run=len(runs) == 1))
                    other = COLOURS[1] if is_dotted and len(runs) == 1 else run.colour
                    curves.append(Curve(label, x, y, other, is_dotted))
        if curves and (svg := plot(curves, y_name)) is not None:
            yield {"title": title, "svg": svg}


def _labels(run: Run, kind: str, *, is_only_run: bool) -> list[str]:
    what = "held out" if kind == "eval" else "training"
    return [what] if is_only_run else [run.name, what]


def _evaluations(run: Run) -> Iterator[dict[str, Any]]:
    for each in run.evaluations:
        rows = [
            (NAMES.get(name, name), *(shown(name, one[key]) for key in ("value", "low", "high")), one["num_rows"])
            for name, one in each["figures"].items()
        ]
        data = visible(Path(str(each["data"])).name)
        yield {"run": visible(run.name), "data": data, "rows": rows, "num_rows": counted(each["num_rows"], "row")}


def _data(run: Run) -> dict[str, Any]:
    settings = run.settings
    files = dict(settings.get("train_files") or {}) or {str(settings.get("train_file")): 1.0}
    total, trained = tokens_seen(run.records) or (0, 0)
    return {
        "run": visible(run.name),
        "files": [(visible(name), f"×{times:g}") for name, times in files.items()],
        "eval_file": visible(str(settings["eval_file"])) if settings.get("eval_file") else None,
        "audit": data_table(run.data),
        "tokens": f"{total:,} tokens seen, {trained:,} trained ({trained / max(total, 1):.0%})",
        "masks": {
            name: settings[name]
            for name in ("train_on", "history", "prompt_mismatch", "truncation")
            if name in settings
        },
    }


def _settings(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """Every setting, those in which the runs differ first."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows = []
    for name in names:
        values = [json.dumps(run.settings.get(name), ensure_ascii=False) for run in runs]
        rows.append({"name": name, "values": [visible(value) for value in values], "differs": len(set(values)) > 1})
    yield from sorted(rows, key=lambda row: not row["differs"])
