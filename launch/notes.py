"""What a node's agent notes for those who look at a run from elsewhere: how far its ranks are, and when lines came.

`exit/<attempt>/progress-<node>.json` holds the latest state of each rank, from the node's board, which only the node
can read. `logs/<attempt>/node-<node>.times` says when lines came: `<time> <rank> <offset>` means that all lines of that
rank's log that end before the offset were there at that time (rank -1: the node's own log). By it logs of many ranks
are put into one order although the ranks write no times.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from launch.records import write_json
from node_board import Slot

LINES_INTERVAL_S = 0.2
PROGRESS_INTERVAL_S = 1.0
NODES_PER_S = 32
"""So many nodes may write their progress in one second: a shared disk has better things to do."""
NODE_LOG = -1
_MAX_READ_BYTES = 1 << 20
_WINDOW = 20


class LineClock:
    """Notes when lines were added to the logs of a node."""

    def __init__(self, logs: Path, node: int, ranks: Iterable[int]) -> None:
        """
        Args:
            logs: `logs/<attempt>`.
            node: this node's number.
            ranks: those that run on it.
        """
        self._paths = {NODE_LOG: logs / f"node-{node}.log", **{rank: logs / f"rank-{rank}.log" for rank in ranks}}
        self._noted = dict.fromkeys(self._paths, 0)
        self._read = dict.fromkeys(self._paths, 0)
        self._times = logs / f"node-{node}.times"

    def look(self) -> None:
        """Notes the lines that have ended since the last look. A progress bar, which rewrites its line, adds none."""
        now = time.time()
        added = [f"{now:.3f} {rank} {end}\n" for rank, end in self._new_ends()]
        if not added:
            return
        try:
            descriptor = os.open(self._times, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError:
            return  # a full disk: logs without times are read too
        try:
            os.write(descriptor, "".join(added).encode())
        except OSError:
            return
        finally:
            os.close(descriptor)

    def _new_ends(self) -> Iterator[tuple[int, int]]:
        for rank, path in self._paths.items():
            try:
                size = os.stat(path).st_size
                if size <= self._read[rank]:
                    continue
                with path.open("rb", buffering=0) as file:
                    file.seek(max(self._read[rank], size - _MAX_READ_BYTES))
                    start, data = file.tell(), file.read(_MAX_READ_BYTES)
            except OSError:
                continue
            self._read[rank] = start + len(data)
            if (index := data.rfind(b"\n")) >= 0:
                self._noted[rank] = start + index + 1
                yield rank, self._noted[rank]


class ProgressNotes:
    """Notes how far the ranks of a node are."""

    def __init__(self, records: Path, node: int, first_rank: int, num_nodes: int, host: str) -> None:
        """
        Args:
            records: `exit/<attempt>`.
            node: this node's number.
            first_rank: its first rank.
            num_nodes: of the job.
            host: this node's name.
        """
        self._path = records / f"progress-{node}.json"
        self._facts = {"node": node, "host": host}
        self._first_rank = first_rank
        self._interval_s = max(PROGRESS_INTERVAL_S, num_nodes / NODES_PER_S)
        self._written_at = float("-inf")
        self._written: list[Slot] = []
        self._steps: dict[int, deque[tuple[float, int]]] = {}

    def look(self, slots: list[Slot], now: float) -> None:
        """Takes the board at `now` (time.monotonic()) into account; writes it down where it is time for that."""
        for slot in slots:
            seen = self._steps.setdefault(slot.local_rank, deque(maxlen=_WINDOW))
            if slot.pid and slot.phase == "step" and (not seen or slot.step != seen[-1][1]):
                if seen and slot.step < seen[-1][1]:
                    seen.clear()
                seen.append((slot.beat_at, slot.step))
        known = [slot for slot in slots if slot.pid]
        if now - self._written_at < self._interval_s or known == self._written:
            return
        self._written_at, self._written = now, known
        ranks = [self._rank(slot) for slot in known]
        try:
            write_json(self._path, {**self._facts, "at": time.time(), "ranks": ranks}, is_synced=False)
        except OSError:
            return  # a full disk: the run itself says so

    def _rank(self, slot: Slot) -> dict[str, Any]:
        return {
            "rank": self._first_rank + slot.local_rank,
            "phase": slot.phase,
            "step": slot.step,
            "num_steps": slot.num_steps,
            "step_s": self._step_s(slot.local_rank),
            "slowness": slot.slowness or None,
            "last_checkpoint": slot.last_checkpoint,
        }

    def _step_s(self, local_rank: int) -> float | None:
        """Seconds per step over the last steps; None before the second."""
        seen = self._steps.get(local_rank)
        if not seen or len(seen) < 2:
            return None
        (began, first), (ended, last) = seen[0], seen[-1]
        return round((ended - began) / (last - first), 4)
