"""`launch list`: all runs and how they stand, with one call of the scheduler."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import runs, sweep
from launch.errors import OK, LaunchError
from launch.executor import ViewOfMany
from launch.progress import read_progress
from launch.records import read_json, write_text
from launch.report import duration, run_facts
from launch.row_cache import RowCache, key_of
from launch.runs import Snapshot, Status
from launch.sweep_page import sweep_page
from launch.verbs.common import print_json, registry, states_of


def run(arguments: argparse.Namespace) -> int:
    """Prints a line for each run, the newest first."""
    wanted = states_of(arguments.state)
    if arguments.sweep is not None:
        return _list_sweep(arguments, wanted)
    if arguments.html is not None:
        raise LaunchError("--html is given without --sweep; it must be given with it: a page is of one sweep.")
    folder = None if arguments.runs_dir is None else Path(arguments.runs_dir).absolute()
    paths = runs.all_runs(registry(), folder)
    cache = RowCache(registry().with_name("ended.json"))
    rows: list[dict[str, Any]] = []
    for row in _rows(paths, cache):
        if arguments.last and len(rows) >= arguments.last:
            break
        if row["state"] in wanted:
            rows.append(row)
    cache.save()
    if arguments.json:
        print_json("list", runs=rows, num_runs=len(paths))
        return OK
    for line in table(rows, time.time()):
        print(line)
    if len(rows) < len(paths) and len(rows) == arguments.last:
        print(f"the newest {len(rows)} of {len(paths)}; --last 0 shows all")
    elif not rows:
        print("no run" + (" in one of these states" if arguments.state else ""))
    return OK


def _list_sweep(arguments: argparse.Namespace, wanted: tuple[str, ...]) -> int:
    known = runs.all_runs(registry(), None)
    folder = sweep.find_sweep(arguments.sweep, Path.cwd(), known)
    if folder is None:
        raise LaunchError(f"--sweep is {arguments.sweep!r}; it must be the name or folder of a sweep.")
    views = ViewOfMany()
    rows = []
    for found, values in sweep.runs_of(folder):
        snapshot = Snapshot(found.path)
        status = runs.status_of(snapshot, lambda snapshot=snapshot: views(snapshot))  # type: ignore[misc]
        rows.append({**_row(snapshot, status), **sweep.result_of(found), "values": dict(values)})
    best_first = [row for row in sweep.sorted_results(rows) if row["state"] in wanted]
    axes = (read_json(folder / "sweep.json") or {})["axes"]
    if arguments.html is not None:
        write_text(Path(arguments.html), sweep_page(folder.name, axes, best_first), mode=0o644)
        print(f"page: {arguments.html}", file=sys.stderr)
    if arguments.json:
        print_json("list", sweep=folder.name, path=str(folder), axes=axes, runs=best_first)
        return OK
    for line in aligned(
        [("RUN", "STATE", *axes, "EVAL LOSS", "LOSS", "STEP"), *(_result(row, axes) for row in best_first)]
    ):
        print(line)
    return OK


def _result(row: Mapping[str, Any], axes: Mapping[str, Any]) -> tuple[str, ...]:
    losses = ("" if row[name] is None else f"{row[name]:.4f}" for name in ("eval_loss", "loss"))
    step = "" if row["step"] is None else str(row["step"])
    return (row["run"], row["state"], *(row["values"][axis] for axis in axes), *losses, step)


def _rows(paths: list[Path], cache: RowCache) -> Iterator[dict[str, Any]]:
    """The facts of each run, the newest first."""
    views = ViewOfMany()
    for path in reversed(paths):
        row = cache.get(str(path))
        if row is None:
            found = Snapshot(path)
            key = key_of(str(path), found.attempt)
            status = runs.status_of(found, lambda found=found: views(found))  # type: ignore[misc]
            row = _row(found, status)
            if status.is_for_good:
                cache.put(str(path), row, key)
        yield row


def _row(run: Snapshot, status: Status) -> dict[str, Any]:
    progress = read_progress(run) if status.state == runs.RUNNING else None
    return {
        **run_facts(run, status),
        "step": None if progress is None else progress.step,
        "num_steps": None if progress is None else progress.num_steps,
        "eta_s": None if progress is None else progress.eta_s,
    }


_HEAD = ("RUN", "STATE", "JOB", "NODES", "ATTEMPT", "SUBMITTED", "DETAILS")


def table(rows: list[dict[str, Any]], now: float) -> list[str]:
    """The lines for people. Pure."""
    return aligned([_HEAD, *(_cells(row, now) for row in rows)] if rows else [])


def aligned(cells: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of columns as wide as they need to be. Pure."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _cells(row: dict[str, Any], now: float) -> tuple[str, ...]:
    said = f"{row['reason']}" if row["state"] not in (runs.RUNNING, runs.COMPLETED) else ""
    if row["step"] is not None:
        said = f"step {row['step']}" + (f" of {row['num_steps']}" if row["num_steps"] else "")
        said += f", {duration(row['eta_s'])} to go" if row["eta_s"] is not None else ""
    if row["code"]:
        said = f"code {row['code']}" + (f": {said}" if said and said != row["state"] else "")
    age = "" if row["submitted_at"] is None else f"{duration(max(0.0, now - row['submitted_at']))} ago"
    attempt = "" if row["attempt"] is None else str(row["attempt"])
    return row["run"], row["state"], row["job_id"], str(row["nodes"]), attempt, age, said
