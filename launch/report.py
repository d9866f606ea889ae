"""How a run stands, in words."""

from __future__ import annotations

import signal
from pathlib import Path

from launch.outcome import Failure, exit_line
from launch.rank import TAIL_LINES, read_tail
from launch.records import read_json
from launch.runs import FAILED, Run, Status


def status_text(run: Run, status: Status) -> str:
    """The lines of `launch status`: the state; on failure node, rank, code, first error, and where its log is."""
    attempt = f", attempt {run.attempt}" if run.attempt else ""
    reason = f" ({status.reason})" if status.reason not in ("", status.state) else ""
    lines = [f"{run.name}: {status.state}{reason}, job {run.job_id}{attempt}", f"folder   {run.path}"]
    if not status.has_ended:
        lines.append(f"ranks    {status.outcome.num_ranks_started} started")
    cause = status.outcome.root_cause
    if status.state == FAILED and cause is not None:
        lines += _cause_lines(cause, _log(run, cause), status.outcome.num_failures)
    elif status.state == FAILED:
        lines += _executor_log(run)
    lines += _slow_lines(run)
    if status.has_ended and status.outcome.num_ranks_started:
        lines.append(exit_line(status.outcome, run.name))
    return "\n".join(lines) + "\n"


def _cause_lines(cause: Failure, log: Path, num_failures: int) -> list[str]:
    who = f"node {cause.node} ({cause.host})" + ("" if cause.rank is None else f", rank {cause.rank}")
    at = "" if cause.step is None else f" at step {cause.step}"
    lines = [f"cause    {who} ended with code {cause.code}{_signal_name(cause)}{at}: {cause.reason}"]
    if cause.error:
        lines.append(f"error    {cause.error}")
    if num_failures > 1:
        lines.append(f"others   {num_failures - 1} more ended after it")
    lines.append(f"log      {log}")
    return lines + [f"  | {line}" for line in cause.tail]


def _slow_lines(run: Run) -> list[str]:
    """The ranks that take longer than the others, as their nodes have noted."""
    records = [read_json(path) for path in sorted((run.path / "exit" / str(run.attempt or 0)).glob("slow-*.json"))]
    return [
        f"slow     rank {record['rank']} ({record['host']}) takes {record['slowness']:.1f} times as long as the others"
        for record in records
        if record is not None
    ]


def _executor_log(run: Run) -> list[str]:
    """Where a job ends before its agents begin, the batch script's own output says why."""
    path = run.path / "logs" / f"{run.job.get('executor', 'slurm')}.log"
    return [f"log      {path}", *(f"  | {line}" for line in read_tail(path).splitlines()[-TAIL_LINES:])]


def _signal_name(cause: Failure) -> str:
    if not cause.signal:
        return ""
    return f" ({signal.Signals(cause.signal).name})"


def _log(run: Run, cause: Failure) -> Path:
    return run.logs / (f"node-{cause.node}.log" if cause.rank is None else f"rank-{cause.rank}.log")
