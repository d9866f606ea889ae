"""A run's time line for its page: attempts and how they ended, and the steps that were left out for a loss spike."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

from sft.painting import visible
from sft.report_figures import duration
from sft.run_files import Record, end_of
from sft.values import counted

_MAX_SPIKES = 20
"""So many are told one by one; all have a mark."""


def time_line(records: Sequence[Record], attempts: Sequence[Record]) -> dict[str, Any] | None:
    """The attempts from the first one's beginning to the last one's end, in per cent of it; without a launcher's
    attempts the training, where it left out spikes; None where there is nothing to show."""
    spikes = [record for record in records if record["type"] == "spike"]
    begun = [each for each in attempts if each.get("began_at")]
    if not begun:
        return _of_training(records, spikes)
    ends = [
        end_of(each) or (after["began_at"] if after else None)
        for each, after in itertools.zip_longest(begun, begun[1:])
    ]
    first = min(each["began_at"] for each in begun)
    last = max(*(end or each["began_at"] for each, end in zip(begun, ends, strict=True)), first + 1.0)
    spans = [(each["began_at"] - first, (end or last) - first) for each, end in zip(begun, ends, strict=True)]
    whole_s = last - first
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(first))
    return {
        "span": f"{duration(whole_s)} from {when} UTC",
        "bars": [_bar(each, span, whole_s) for each, span in zip(begun, spans, strict=True)],
        "marks": [round(100 * place_s / whole_s, 2) for place_s in _places(spikes, records, begun, spans)],
        "spikes": list(_told(spikes)),
    }


def state_of(attempt: Record) -> str:
    """How an attempt ended, in a few words."""
    if not attempt.get("ended_at"):
        return "going on, or ended without a word" if "seen_at" in attempt else "no end recorded"
    code = attempt.get("own_code")
    return {0: "done", 10: "stopped and saved", None: "no exit code"}.get(code, f"exit code {code}")


def _of_training(records: Sequence[Record], spikes: Sequence[Record]) -> dict[str, Any] | None:
    if not spikes:
        return None
    whole_s = max(1e-9, *(record.get("elapsed_s", 0.0) for record in records))
    is_done = records[-1]["type"] == "summary"
    bar = {"x": 0.0, "width": 100.0, "is_good": is_done, "is_stop": not is_done, "text": "training", "reason": ""}
    marks = [round(100 * spike["elapsed_s"] / whole_s, 2) for spike in spikes]
    return {"span": duration(whole_s), "bars": [bar], "marks": marks, "spikes": list(_told(spikes))}


def _bar(attempt: Record, span: tuple[float, float], whole_s: float) -> dict[str, Any]:
    begin_s, end_s = span
    bound = "" if attempt.get("ended_at") else "at least " if "seen_at" in attempt else "at most "
    took = f"{bound}{duration(end_s - begin_s)}"
    return {
        "x": round(100 * begin_s / whole_s, 2),
        "width": round(max(100 * (end_s - begin_s) / whole_s, 0.5), 2),
        "is_good": attempt.get("own_code") == 0,
        "is_stop": bool(attempt.get("was_stopped")) or attempt.get("own_code") == 10 or "seen_at" in attempt,
        "text": f"{attempt['attempt']}: from step {attempt.get('step', 0)}, {took}, {state_of(attempt)}",
        "reason": "" if attempt.get("reason") == "done" else visible(str(attempt.get("reason", ""))),
    }


def _places(
    spikes: Sequence[Record], records: Sequence[Record], begun: Sequence[Record], spans: Sequence[tuple[float, float]]
) -> Iterator[float]:
    """About when each was, in seconds: steps of an attempt are taken to be as long as each other."""
    first_steps = [max(int(each.get("step") or 0), 0) for each in begun]
    last_steps = [*first_steps[1:], max(int(record["step"]) for record in records)] if records else []
    for spike in spikes:
        # Records of later steps than an attempt went on from are gone: it is of the last that began before it.
        number = max((i for i, step in enumerate(first_steps) if step < spike["step"]), default=0)
        (begin_s, end_s), first_step = spans[number], first_steps[number]
        share = (spike["step"] - first_step) / max(last_steps[number] - first_step, 1)
        yield begin_s + min(max(share, 0.0), 1.0) * (end_s - begin_s)


def _told(spikes: Sequence[Record]) -> Iterator[str]:
    for spike in spikes[:_MAX_SPIKES]:
        loss, highest = f"{spike['loss']:.4g}", f"{spike['highest_loss']:.4g}"
        yield f"step {spike['step']} left out: loss {loss}, above {highest}, {counted(len(spike['rows']), 'row')}"
    if len(spikes) > _MAX_SPIKES:
        yield f"{counted(len(spikes) - _MAX_SPIKES, 'further step')} left out, see training_log.json"
