"""How an attempt ended: one cause out of the records of all ranks and nodes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.errors import OK, TERMINATED
from launch.records import read_json

_LOST_PEER = (
    r"Connection (reset|closed|refused)|Broken pipe|closed by (the )?(remote )?peer|remote process exited|"
    r"ncclRemoteError|NCCL communicator was aborted|Watchdog caught collective|Timed out waiting .* recv|"
    r"DistNetworkError|DistStoreError|failed to recv|Socket Timeout"
)


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

    @property
    def is_victim(self) -> bool:
        """Whether it ended because another one did: told to stop, or cut off from a peer."""
        return self.stopped or any(re.search(_LOST_PEER, line, re.IGNORECASE) for line in self.tail)


@dataclass(frozen=True)
class Outcome:
    """What the records of one attempt say."""

    num_nodes: int
    num_nodes_ended: int
    num_ranks_started: int
    root_cause: Failure | None
    """The failure that the others follow from; None where nothing failed."""
    num_failures: int

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
    ranks = [record for path in sorted(folder.glob("rank-*.json")) if (record := read_json(path))]
    nodes = [record for path in sorted(folder.glob("node-*.json")) if (record := read_json(path))]
    failures = [_failure(record) for record in ranks if record.get("code")]
    blamed = {failure.node for failure in failures}
    failures += [_failure(record) for record in nodes if record["own_code"] and record["node"] not in blamed]
    root_cause = root_cause_of(failures)
    if root_cause is None and (stopped := [record for record in nodes if record["code"]]):
        root_cause = _failure(stopped[0] | {"own_code": stopped[0]["code"]})
    return Outcome(num_nodes, len(nodes), len(ranks), root_cause, len(failures))


def root_cause_of(failures: Iterable[Failure]) -> Failure | None:
    """The earliest failure that is nobody's consequence; failing that, the earliest."""
    return min(failures, key=lambda failure: (failure.is_victim, failure.ended_at), default=None)


def _failure(record: dict[str, Any]) -> Failure:
    return Failure(
        node=record["node"],
        rank=record.get("rank"),
        host=record["host"],
        code=record.get("own_code", record.get("code")) or TERMINATED,
        signal=record.get("signal"),
        error=record.get("error"),
        tail=tuple(record.get("tail") or ()),
        ended_at=record.get("ended_at") or 0.0,
        stopped=bool(record.get("stopped")),
    )
