"""How an attempt ended: one cause out of the records of all ranks and nodes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.errors import HANG, INTERRUPTED, KILLED, OK, PEER_LOST, STOPPED, TERMINATED, reason_of
from launch.records import read_json

_LOST_PEER = (
    r"Connection (reset|closed|refused)|Broken pipe|closed by (the )?(remote )?peer|remote process exited|"
    r"ncclRemoteError|NCCL communicator was aborted|Watchdog caught collective|Timed out waiting .* recv|"
    r"DistNetworkError|DistStoreError|failed to recv|Socket Timeout"
)
HOST_LOST = "host_lost"
"""The reason of a node to which the supervisor's connection broke: its ranks, which are stopped there, are victims."""
_OF_A_STOP = (OK, STOPPED, INTERRUPTED, KILLED, TERMINATED)
"""Codes of a rank that ends because it was told to."""


@dataclass(frozen=True)
class Failure:
    """One rank, or one node without a rank to blame, that did not end well."""

    node: int
    rank: int | None
    host: str
    code: int
    signal: int | None
    error: str | None
    tail: tuple[str, ...]
    ended_at: float
    stopped: bool
    reason: str = ""
    step: int | None = None
    """The optimizer step that it was at, where the board knows."""
    last_checkpoint: int | None = None
    blame: int | None = None
    """Of a rank that hung: how surely it was the one (launch.hang)."""

    @property
    def is_victim(self) -> bool:
        """Whether it ended because another one did: told to stop, or cut off from a peer."""
        if self.blame is not None:
            return self.blame == 0
        if self.code == PEER_LOST and self.signal is None and self.reason == reason_of(PEER_LOST):
            return True
        # One that has failed by itself may be told to stop while it still ends: torchrun hears of its peers first.
        is_told = self.stopped and (self.rank is None or self.signal is not None or self.code in _OF_A_STOP)
        return is_told or any(re.search(_LOST_PEER, line, re.IGNORECASE) for line in self.tail)


@dataclass(frozen=True)
class Outcome:
    """What the records of one attempt say."""

    num_nodes: int
    num_nodes_ended: int
    num_ranks_started: int
    root_cause: Failure | None
    """The failure that the others follow from; None where nothing failed."""
    num_failures: int
    num_ranks_ended: int = 0
    last_checkpoint: int | None = None
    """Step of the last complete checkpoint that a rank has told of."""

    @property
    def is_complete(self) -> bool:
        """Whether every node has written its end."""
        return self.num_nodes_ended >= self.num_nodes

    @property
    def code(self) -> int:
        """The job's exit code, as far as the records go."""
        return OK if self.root_cause is None else self.root_cause.code


def read_outcome(folder: Path, num_nodes: int) -> Outcome:
    """The outcome from `exit/<attempt>/`."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []  # once: a list of runs reads a thousand of them
    ranks, nodes = (_records(folder, names, kind) for kind in ("rank-", "node-"))
    failures = [_failure(record) for record in ranks if record.get("code")]
    blamed = {failure.node for failure in failures}
    failures += [
        _failure(record)
        for record in nodes
        if record["own_code"] and (record["node"] not in blamed or record.get("reason") == HOST_LOST)
    ]
    root_cause = root_cause_of(failures)
    if root_cause is None and (stopped := [record for record in nodes if record["code"]]):
        root_cause = _failure(stopped[0] | {"own_code": stopped[0]["code"]})
    saved = max(
        (record["last_checkpoint"] for record in ranks if record.get("last_checkpoint") is not None), default=None
    )
    num_ended = sum(record.get("code") is not None for record in ranks)
    return Outcome(num_nodes, len(nodes), len(ranks), root_cause, len(failures), num_ended, saved)


def _records(folder: Path, names: Iterable[str], kind: str) -> list[dict[str, Any]]:
    """The records of a kind that are whole."""
    wanted = (name for name in names if name.startswith(kind) and name.endswith(".json"))
    return [record for name in wanted if (record := read_json(folder / name))]


def root_cause_of(failures: Iterable[Failure]) -> Failure | None:
    """The earliest failure that is nobody's consequence; failing that, the earliest. Of ranks that hang together, the
    one that is most surely the cause, whichever node has noticed first."""
    found = list(failures)
    cause = min(found, key=lambda failure: (failure.is_victim, failure.ended_at), default=None)
    judged = [failure for failure in found if failure.code == HANG or failure.blame is not None]
    if cause not in judged:
        return cause
    return min(judged, key=lambda failure: (-(failure.blame or 0), failure.step or 0, failure.ended_at))


def have_ended_early(records: Sequence[Mapping[str, Any]], num_ranks: int) -> bool:
    """Whether all ranks of a node have told how they ended, and one of them before the run's end: by a failure, or told
    to stop. Where none has, their launcher still waits for the other nodes'."""
    codes = [record["code"] for record in records]
    return len(codes) == num_ranks and None not in codes and any(code != OK for code in codes)


def exit_line(outcome: Outcome, run: str) -> str:
    """The last line of a job: `LAUNCH-EXIT code=11 reason=rank_died rank=1 host=n2 step=137 resume_from=130 next="…"`.

    Args:
        outcome: how it ended.
        run: by which `launch resume` finds the run.
    """
    cause = outcome.root_cause
    words: dict[str, object] = {"code": outcome.code, "reason": cause.reason if cause is not None else reason_of(OK)}
    if cause is not None:
        words |= {"rank": cause.rank, "host": cause.host, "step": cause.step, "resume_from": outcome.last_checkpoint}
        words["next"] = f'"python -m launch resume {run}"'
    return "LAUNCH-EXIT " + " ".join(f"{name}={value}" for name, value in words.items() if value is not None)


def _failure(record: dict[str, Any]) -> Failure:
    code = record.get("own_code", record.get("code")) or TERMINATED
    return Failure(
        node=record["node"],
        rank=record.get("rank"),
        host=record["host"],
        code=code,
        signal=record.get("signal"),
        error=record.get("error"),
        tail=tuple(record.get("tail") or ()),
        ended_at=record.get("ended_at") or 0.0,
        stopped=bool(record.get("stopped")),
        reason=record.get("reason") or reason_of(code),
        step=record.get("step"),
        last_checkpoint=record.get("last_checkpoint"),
        blame=record.get("blame"),
    )
