"""How far a run is: from what its agents note of the ranks, and what the trainer has logged."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import attempts
from launch.records import read_json
from launch.runs import Run

TAIL_BYTES = 65_536


@dataclass(frozen=True)
class RankProgress:
    """Where one rank is."""

    rank: int
    host: str
    phase: str
    """start, data, step, evaluation, checkpoint or end."""
    step: int
    """The optimizer step that it computes, or the last one that it has done, in the other phases."""
    num_steps: int
    step_s: float | None
    """Seconds per step of late."""
    slowness: float | None
    """Its own computing time in proportion to the median rank's."""
    at: float
    """When its node noted this (time.time())."""

    @property
    def num_done(self) -> int:
        """Optimizer steps that are done."""
        return max(0, self.step - 1) if self.phase == "step" else self.step


@dataclass(frozen=True)
class Progress:
    """How far a run is; None for what is not known."""

    step: int | None = None
    """Optimizer steps that all ranks have done."""
    num_steps: int | None = None
    loss: float | None = None
    eval_loss: float | None = None
    tokens_per_s: float | None = None
    step_s: float | None = None
    at: float | None = None
    ranks: tuple[RankProgress, ...] = ()

    @property
    def eta_s(self) -> float | None:
        """Seconds until the last step at the pace of late, without evaluations and saves that are to come."""
        if self.step is None or not self.num_steps or self.step_s is None:
            return None
        return max(0, self.num_steps - self.step) * self.step_s


def read_progress(run: Run) -> Progress:
    """The progress of the current attempt, and the latest that the trainer has logged."""
    ranks = read_ranks(run.path / "exit" / str(run.current_attempt))
    records = read_log(run.path / "training_log.json")
    trained = [record for record in records if record["type"] == "train"]
    evaluated = [record for record in records if record["type"] == "eval"]
    latest = trained[-1] if trained else {}
    logged = max((int(record["step"]) for record in records), default=None)
    noted = min((rank.num_done for rank in ranks), default=None)
    if noted == 0 and ranks[0].phase == "start":  # what it will go on from stands in no rank yet
        noted = max(0, int(attempts.read_begin(run.path, run.current_attempt).get("step") or 0))
    paces = [rank.step_s for rank in ranks if rank.step_s is not None]
    return Progress(
        step=logged if noted is None else max(noted, logged or 0) if ranks[0].phase == "end" else noted,
        num_steps=max((rank.num_steps for rank in ranks), default=0) or None,
        loss=latest.get("loss"),
        eval_loss=evaluated[-1].get("eval_loss") if evaluated else None,
        tokens_per_s=latest.get("tokens_per_s"),
        step_s=statistics.median(paces) if paces else None,
        at=min((rank.at for rank in ranks), default=None),
        ranks=tuple(ranks),
    )


def read_ranks(folder: Path) -> list[RankProgress]:
    """What the nodes have noted in `exit/<attempt>`, by rank."""
    found = []
    for path in folder.glob("progress-*.json"):
        record = read_json(path) or {}
        for rank in record.get("ranks", ()):
            facts = {name: rank.get(name) for name in ("rank", "phase", "step", "num_steps", "step_s", "slowness")}
            found.append(RankProgress(host=str(record["host"]), at=float(record["at"]), **facts))
    return sorted(found, key=lambda rank: rank.rank)


def read_log(path: Path, num_bytes: int = TAIL_BYTES) -> list[dict[str, Any]]:
    """The last records of training_log.json: a run of weeks has a log that is long to read whole.

    Args:
        path: of the log, a JSON list with a record of each step and evaluation.
        num_bytes: how much of its end is read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - num_bytes))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    decoder, records = json.JSONDecoder(), list[dict[str, Any]]()
    position = text.find("\n  {")
    while position >= 0:
        try:
            record, end = decoder.raw_decode(text, position + 3)
        except ValueError:
            break
        if isinstance(record, dict) and isinstance(record.get("step"), int) and "type" in record:
            records.append(record)
        position = text.find("\n  {", end)
    return records


def series(records: Sequence[dict[str, Any]], kind: str, name: str) -> list[tuple[int, float]]:
    """(step, value) of each record of a kind that has the value."""
    return [
        (int(record["step"]), float(record[name]))
        for record in records
        if record["type"] == kind and isinstance(record.get(name), int | float)
    ]
