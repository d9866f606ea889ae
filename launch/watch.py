"""A node's ranks as its board shows them: how far they are, whether they hang, and what is then written down."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launch import processes
from launch.errors import HANG, OK, PEER_LOST, STOPPED, reason_of
from launch.hang import Finding, examine
from launch.logs import TAIL_LINES, read_tail
from launch.notes import LINES_INTERVAL_S, LineClock, ProgressNotes
from launch.records import read_json, telling_failure, write_json
from launch.spec import JobSpec
from launch.watchdog import Stillness
from node_board import NodeBoard, Slot

_REQUEST_INTERVAL_S = 0.4
_OTHER_STACKS_S, _OTHER_STACKS_INTERVAL_S = 3.0, 0.2
"""How long the ranks of a node that hangs are kept for the other nodes' sake: what waits for them dies with them."""


class NodeWatch:
    """The watch over the ranks of one node, by its agent."""

    def __init__(self, spec: JobSpec, node: int, records: Path, logs: Path) -> None:
        """
        Args:
            spec: the job.
            node: this node's number.
            records: `exit/<attempt>`.
            logs: `logs/<attempt>`.
        """
        self.board = NodeBoard.create(spec.procs_per_node)
        self._spec = spec
        self._node = node
        self._first_rank = node * spec.procs_per_node
        self._records = records
        self._logs = logs
        self._stillness = Stillness(spec.watchdog)
        self.requested_stop: str | None = None
        """Why somebody outside has asked the run to stop."""
        self._asked_at = 0.0
        self._peer_hangs = False
        self._slow: dict[int, float] = {}
        ranks = range(self._first_rank, self._first_rank + spec.procs_per_node)
        self._line_clock = LineClock(logs, node, ranks)
        self._progress = ProgressNotes(records, node, self._first_rank, spec.resources.nodes, socket.gethostname())
        self._noted_at = float("-inf")
        self._still: set[int] = set()
        """Local ranks of which it was told that they stand still."""

    def look(self) -> None:
        """Takes the board, and what others have written, as it is into account."""
        self._ask_outside()
        slots = self.board.slots()
        self._stillness.look(slots, time.monotonic())
        if time.monotonic() - self._noted_at >= LINES_INTERVAL_S:
            self._noted_at = time.monotonic()
            self._line_clock.look()
            self._progress.look(slots, self._noted_at)
        for slot in slots:
            if slot.pid:
                self._tell_still(slot)
            # Which ranks are slow the training itself finds (sft/pace.py); it is told again when they get slower.
            if slot.pid and slot.slowness > 1.25 * self._slow.get(slot.local_rank, 0.0):
                self._tell_slow(slot)

    def _ask_outside(self) -> None:
        """Looks every 0.4 s for a request to stop (`stop.json`), and for another node that says that a rank hangs."""
        if time.monotonic() - self._asked_at < _REQUEST_INTERVAL_S:
            return
        self._asked_at = time.monotonic()
        try:
            names = os.listdir(self._records)  # also makes NFS look again
        except OSError:
            return  # a disk that does not answer now is no reason to end ranks that compute
        self._peer_hangs = "hang.json" in names
        if "stop.json" in names and (found := read_json(self._records / "stop.json")) is not None:
            self.requested_stop = str(found.get("reason") or "signal")

    @property
    def hangs(self) -> bool:
        """Whether a rank of this node has stood still for too long, or another node says so of one of its own."""
        return self._peer_hangs or bool(self._stillness.hanging(self.board.slots()))

    def is_failing_elsewhere(self) -> bool:
        """Whether another node has ended by a failure: then there is nothing to save any more."""
        others = (path for path in self._records.glob("node-*.json") if path.name != f"node-{self._node}.json")
        return any((read_json(path) or {}).get("code") not in (None, OK, STOPPED) for path in others)

    def moves(self) -> bool:
        """Whether any rank that was asked to stop may still be saving; scripts that know no board may always."""
        slots = self.board.slots()
        return any(self._stillness.moves_while_stopping(slot) for slot in slots if slot.pid) or not any(
            slot.pid for slot in slots
        )

    @property
    def knows_ranks(self) -> bool:
        """Whether the script is one that comes to the board."""
        return any(slot.pid for slot in self.board.slots())

    @property
    def ranks_are_gone(self) -> bool:
        """Whether every rank of this node has come to the board, and none is there any more."""
        slots = self.board.slots()
        return all(slot.pid for slot in slots) and not any(processes.start_ticks(slot.pid) for slot in slots)

    def end_hanging_ranks(self, is_urgent: Callable[[], bool]) -> None:
        """Writes down what each rank was doing, ends them all, and records it as a hang.

        Args:
            is_urgent: whether there is no time to wait for other nodes.
        """
        slots = [slot for slot in self.board.slots() if slot.pid]
        still_s = {self._rank(slot): self._stillness.still_s(slot) for slot in slots}
        found_at = time.time()
        record = {"node": self._node, "host": socket.gethostname(), "at": found_at}
        with telling_failure():
            write_json(self._records / "hang.json", record)
        pids = {self._rank(slot): slot.pid for slot in slots}
        logs = {rank: self._logs / f"rank-{rank}.log" for rank in pids}
        findings = examine(pids, logs, self._spec.python)
        with telling_failure():
            write_json(self._records / f"stacks-{self._node}.json", record)
        self._await_other_stacks(is_urgent)
        processes.kill_descendants()
        for slot in slots:
            rank = self._rank(slot)
            self._record_hang(slot, rank, findings[rank], still_s[rank], found_at, read_tail(logs[rank]))

    def _await_other_stacks(self, is_urgent: Callable[[], bool]) -> None:
        """Waits until each other node has asked its ranks for their stacks, or has ended."""
        deadline = time.monotonic() + _OTHER_STACKS_S
        missing = {node for node in range(self._spec.resources.nodes) if node != self._node}
        while missing and time.monotonic() < deadline and not is_urgent():
            time.sleep(_OTHER_STACKS_INTERVAL_S)
            with contextlib.suppress(OSError):
                names = set(os.listdir(self._records))
                missing -= {node for node in missing if names & {f"stacks-{node}.json", f"node-{node}.json"}}

    def _record_hang(self, slot: Slot, rank: int, finding: Finding, still_s: float, found_at: float, text: str) -> None:
        path = self._records / f"rank-{rank}.json"
        record: dict[str, Any] = read_json(path) or {}
        if record.get("code") is not None:
            return  # it had ended by itself
        code, reason = HANG, reason_of(HANG)
        error = f"rank {rank} hangs: {finding.what}; step {slot.step} ({slot.phase}) for {still_s:.0f} s"
        if finding.silent_hosts:
            code, reason = PEER_LOST, "host_silent"
            error = f"rank {rank} on {socket.gethostname()} waits, and {self._told(finding.silent_hosts)}"
        print(f"error: {error}", flush=True)
        identity = {"rank": rank, "local_rank": slot.local_rank, "node": self._node, "host": socket.gethostname()}
        end = {
            "code": code,
            "reason": reason,
            "blame": finding.blame,
            "signal": None,
            "stopped": False,
            "step": slot.step,
            "last_checkpoint": slot.last_checkpoint,
            "error": error,
            "tail": text.splitlines()[-TAIL_LINES:],
            "ended_at": found_at,
        }
        with telling_failure():
            write_json(path, identity | record | end)

    def _told(self, silent_hosts: Mapping[str, int]) -> str:
        """Hosts that do not answer, by the names under which their agents came to the meeting."""
        names: dict[str, str] = {}
        for path in self._records.glob("here-*.json"):
            record = read_json(path) or {}
            names |= dict.fromkeys(record.get("addresses", ()), str(record.get("host")))
        number = max(silent_hosts.values())
        hosts = " and ".join(f"{names[host]} ({host})" if names.get(host) else host for host in sorted(silent_hosts))
        return f"{hosts} does not answer: the same was sent {number} times. Look at the network between them."

    def _tell_still(self, slot: Slot) -> None:
        """Says once that a rank stands still, at half the time after which the job would end."""
        limit_s, still_s = self._stillness.limit_s(slot), self._stillness.still_s(slot)
        if limit_s is None or still_s < limit_s / 2:
            self._still.discard(slot.local_rank)
        elif slot.local_rank not in self._still and self._spec.watchdog.enabled:
            self._still.add(slot.local_rank)
            where = f"rank {self._rank(slot)} on {socket.gethostname()}"
            what = f"has not moved for {still_s:.1f} s (step {slot.step}, {slot.phase})"
            print(f"warning: {where} {what}; the job ends if it does not within {limit_s:.0f} s", flush=True)

    def _tell_slow(self, slot: Slot) -> None:
        self._slow[slot.local_rank] = slot.slowness
        rank, host = self._rank(slot), socket.gethostname()
        most = f", most of it in {slot.slow_phase}" if slot.slow_phase else ""
        print(
            f"warning: rank {rank} on {host} computes {slot.slowness:.1f} times as long as the others{most}", flush=True
        )
        record = {"rank": rank, "host": host, "slowness": slot.slowness, "slow_phase": slot.slow_phase or None}
        record |= {"step": slot.step, "at": time.time()}
        with telling_failure():  # a full disk is no reason to end ranks that compute
            write_json(self._records / f"slow-{rank}.json", record)

    def close(self) -> None:
        """Notes the last lines and how far the ranks came, and lets go of the board."""
        self._line_clock.look()
        self._progress.look(self.board.slots(), float("inf"))
        self.board.close()

    def _rank(self, slot: Slot) -> int:
        return self._first_rank + slot.local_rank
