"""How a run stands: as facts, for programs, and in words."""

from __future__ import annotations

import functools
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch import attempts
from launch.errors import STOPPED
from launch.logs import TAIL_LINES, read_tail
from launch.outcome import Failure, exit_line, read_outcome
from launch.pending import explanation
from launch.progress import Progress, read_progress
from launch.records import read_json
from launch.runs import COMPLETED, FAILED, LOST, PENDING, RUNNING, Run, Status

_OF_CAUSE = ("node", "host", "rank", "code", "signal", "step", "reason", "error")
"""What is told of the cause of an attempt that another one followed."""


def run_facts(run: Run, status: Status) -> dict[str, Any]:
    """What a list of runs tells of each, as plain values."""
    return {
        "run": run.name,
        "path": str(run.path),
        "job_id": run.job_id,
        "executor": run.job.get("executor"),
        "state": status.state,
        "code": status.code if status.has_ended else None,
        "reason": status.reason,
        "nodes": run.num_nodes,
        "attempt": run.attempt,
        "submitted_at": run.submission.get("submitted_at"),
    }


def status_facts(run: Run, status: Status) -> dict[str, Any]:
    """All that is known of a run, as plain values: what `--json` prints. docs/launcher.md describes the fields."""
    progress = read_progress(run)
    cause = status.outcome.root_cause if status.has_ended else None
    resources = run.job.get("resources", {})
    return {
        **run_facts(run, status),
        "explanation": _why_it_waits(status),
        "starts_at": status.starts_at or None,
        "is_guess": status.is_guess,
        "ranks": {
            "expected": run.num_nodes * int(resources.get("procs_per_node") or 1),
            "started": status.outcome.num_ranks_started,
            "ended": status.outcome.num_ranks_ended,
        },
        "attempts": [_attempt_facts(run, number) for number in attempts.numbers(run.path)],
        "progress": {
            "step": progress.step,
            "num_steps": progress.num_steps,
            "loss": progress.loss,
            "eval_loss": progress.eval_loss,
            "tokens_per_s": progress.tokens_per_s,
            "step_s": progress.step_s,
            "eta_s": progress.eta_s if status.state == RUNNING else None,
            "checkpoint_step": attempts.newest_step(run.path) or None,
        },
        "slow": _slow_ranks(run),
        "cause": None if cause is None else {**asdict(cause), "log": str(_log(run, cause))},
    }


def _attempt_facts(run: Run, number: int) -> dict[str, Any]:
    begun, ended = attempts.read_begin(run.path, number), attempts.read_end(run.path, number) or {}
    cause = _cause_of_ended(run.path / "exit" / str(number), run.num_nodes) if ended else None
    return {
        "attempt": number,
        "job_id": begun.get("job_id"),
        "began_at": begun.get("began_at"),
        "ended_at": ended.get("ended_at"),
        "code": ended.get("own_code"),
        "step_before": begun.get("step"),
        "step_after": ended.get("step"),
        "reason": ended.get("reason"),
        "cause": None if cause is None else {name: getattr(cause, name) for name in _OF_CAUSE},
    }


@functools.cache  # what an attempt has left does not change, and `top` asks with every picture
def _cause_of_ended(folder: Path, num_nodes: int) -> Failure | None:
    return read_outcome(folder, num_nodes).root_cause


def status_text(run: Run, status: Status) -> str:
    """The lines of `launch status`: the state; how far it is; on failure node, rank, code, first error and log."""
    attempt = f", attempt {run.attempt}" if run.attempt else ""
    reason = f" ({status.reason})" if status.reason not in ("", status.state) else ""
    lines = [f"{run.name}: {status.state}{reason}, job {run.job_id}{attempt}", f"folder   {run.path}"]
    if status.state == PENDING:
        lines += _pending_lines(status)
    if not status.has_ended:
        lines.append(f"ranks    {status.outcome.num_ranks_started} started")
    lines += _preflight_lines(run)
    lines += progress_lines(read_progress(run), is_running=status.state == RUNNING)
    lines += _attempt_lines(run)
    cause = status.outcome.root_cause
    if status.state == FAILED and cause is not None:
        lines += _cause_lines(cause, _log(run, cause), status.outcome.num_failures)
    elif status.state in (FAILED, LOST):
        lines += _executor_log(run)
    lines += _slow_lines(run)
    is_told = status.state == COMPLETED or status.outcome.root_cause is not None
    if status.has_ended and status.outcome.num_ranks_started and is_told:
        lines.append(exit_line(status.outcome, run.name))
    return "\n".join(lines) + "\n"


def _why_it_waits(status: Status) -> str:
    """The scheduler's word in a sentence; before it may stand why the attempt before has ended."""
    return explanation(status.reason.rpartition("; ")[2]) if status.state == PENDING else ""


def _pending_lines(status: Status) -> list[str]:
    why = _why_it_waits(status)
    return ([f"waits    {why}"] if why else []) + ([f"starts   {status.starts_at}"] if status.starts_at else [])


def progress_lines(progress: Progress, *, is_running: bool) -> list[str]:
    """Step, loss, pace and time to go; nothing where nothing is known."""
    if progress.step is None or (progress.step == 0 and progress.loss is None and not progress.num_steps):
        return []
    total = f" of {progress.num_steps}" if progress.num_steps else ""
    phase = progress.ranks[0].phase if is_running and progress.ranks else "step"
    at = f" ({phase})" if phase != "step" else ""
    words = [f"step     {progress.step}{total}{at}"]
    words += [f"loss {progress.loss:.4f}"] if progress.loss is not None else []
    words += [f"eval loss {progress.eval_loss:.4f}"] if progress.eval_loss is not None else []
    words += [f"{progress.tokens_per_s:,.0f} tokens/s"] if progress.tokens_per_s is not None else []
    words += [f"{progress.step_s:.3g} s a step"] if is_running and progress.step_s is not None else []
    if is_running and progress.eta_s is not None:
        words.append(f"{duration(progress.eta_s)} to go")
    return [", ".join(words)]


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`, `2 d 4 h`."""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if hours == 0:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _attempt_lines(run: Run) -> list[str]:
    """The attempts that another one follows."""
    numbers = attempts.numbers(run.path)
    is_followed = bool((run.end or {}).get("again"))
    lines = []
    for number in numbers if is_followed else numbers[:-1]:
        facts = _attempt_facts(run, number)
        began_at, ended_at = facts["began_at"], facts["ended_at"]
        when = "" if began_at is None else time.strftime(" %Y-%m-%d %H:%M", time.localtime(began_at))
        took = "" if began_at is None or ended_at is None else f", {duration(ended_at - began_at)}"
        steps = f"steps {facts['step_before'] or 0} to {'?' if facts['step_after'] is None else facts['step_after']}"
        code = "no record" if facts["code"] is None else f"code {facts['code']}"
        why = "" if facts["cause"] is None or facts["cause"]["code"] == STOPPED else f": {_cause_words(facts['cause'])}"
        lines.append(f"attempt  {number}:{when}{took}, saved {steps}, {code}{why}")
    return lines


def _cause_words(cause: dict[str, Any]) -> str:
    """`node 1 (n2), rank 3 at step 23: rank 3 on n2 died (SIGKILL)`."""
    at = "" if cause["step"] is None else f" at step {cause['step']}"
    return f"{_who(cause['node'], cause['host'], cause['rank'])}{at}: {cause['error'] or cause['reason']}"


def _who(node: int, host: str, rank: int | None) -> str:
    return f"node {node} ({host})" + ("" if rank is None else f", rank {rank}")


def _cause_lines(cause: Failure, log: Path, num_failures: int) -> list[str]:
    who = _who(cause.node, cause.host, cause.rank)
    at = "" if cause.step is None else f" at step {cause.step}"
    lines = [f"cause    {who} ended with code {cause.code}{_signal_name(cause)}{at}: {cause.reason}"]
    if cause.error:
        lines.append(f"error    {cause.error}")
    if num_failures > 1:
        lines.append(f"others   {num_failures - 1} more ended after it")
    lines.append(f"log      {log}")
    return lines + [f"  | {line}" for line in cause.tail]


def _preflight_lines(run: Run) -> list[str]:
    """What `--preflight` has found on the nodes of the current attempt; nothing where it was not asked to look."""
    record = read_json(run.path / "exit" / str(run.current_attempt) / "preflight.json")
    if record is None:
        return []
    found = [f"{' and '.join(finding['nodes'])} {finding['what']}".lstrip() for finding in record["findings"]]
    return [f"nodes    examined first: {'; '.join(found) or 'nothing is wrong with them'}"]


def _slow_ranks(run: Run) -> list[dict[str, Any]]:
    """The ranks that have taken longer than the others, as their nodes have noted: once, and again when slower."""
    paths = sorted((run.path / "exit" / str(run.attempt or 0)).glob("slow-*.json"))
    return [record for path in paths if (record := read_json(path)) is not None]


def _slow_lines(run: Run) -> list[str]:
    return [
        f"slow     rank {record['rank']} ({record['host']}) took {record['slowness']:.1f} times as long as the others "
        f"at step {record['step']}" + (f", most of it in {record['slow_phase']}" if record.get("slow_phase") else "")
        for record in _slow_ranks(run)
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
