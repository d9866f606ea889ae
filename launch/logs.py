"""The logs of a run, as they grow."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from launch.records import read_json
from launch.runs import Run

_POLL_S = 0.2


class Tail:
    """A file that grows: `read` gives what has been added since."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0

    def read(self) -> bytes:
        """The new bytes; empty also before the file exists."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._position)
                added = file.read()
        except OSError:
            return b""
        self._position += len(added)
        return added


class Lines:
    """Bytes to whole lines; of a line that a progress bar has rewritten, the last state."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, added: bytes) -> Iterator[str]:
        """The lines that are whole with what was added."""
        *lines, self._rest = (self._rest + added).split(b"\n")
        return (self._text(line) for line in lines)

    def flush(self) -> Iterator[str]:
        """What is left without a line's end."""
        rest, self._rest = self._rest, b""
        if rest:
            yield self._text(rest)

    @staticmethod
    def _text(line: bytes) -> str:
        return line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", errors="replace")


def follow_raw(path: Callable[[], Path], has_ended: Callable[[], bool], out: BinaryIO) -> None:
    """Copies one log to `out` as it grows, byte for byte, so that a progress bar stays one; until the job has ended."""
    tail = Tail(path())
    while True:
        ended = has_ended()  # asked first: what is written before the end is read below
        if tail.path != (current := path()):
            out.write(tail.read())
            tail = Tail(current)
        if added := tail.read():
            out.write(added)
            out.flush()
        if ended:
            return
        time.sleep(_POLL_S)


def print_logs(run: Run, rank: int | None, node: int | None, has_ended: Callable[[], bool] | None) -> None:
    """Prints the ranks' logs with a prefix each: all that there is, and, with `has_ended`, what comes until then.

    Args:
        run: the run.
        rank: only this rank.
        node: only this node, and with its own log, in which the launchers speak.
        has_ended: None prints and returns.
    """
    open_logs: dict[Path, tuple[Tail, Lines, str]] = {}
    while True:
        ended = has_ended is None or has_ended()
        for path in _chosen(run, rank, node):
            if path not in open_logs:
                open_logs[path] = (Tail(path), Lines(), prefix(run, path))
        for tail, lines, title in open_logs.values():
            for line in lines.feed(tail.read()):
                print(f"{title} {line}")
        sys.stdout.flush()
        if ended:
            break
        time.sleep(_POLL_S)
    for _, lines, title in open_logs.values():
        for line in lines.flush():
            print(f"{title} {line}")


def _chosen(run: Run, rank: int | None, node: int | None) -> list[Path]:
    ranks = sorted(run.logs.glob("rank-*.log"), key=_number)
    if rank is not None:
        return [path for path in ranks if _number(path) == rank]
    procs = int(run.job["resources"]["procs_per_node"])
    if node is not None:
        return [run.logs / f"node-{node}.log", *(path for path in ranks if _number(path) // procs == node)]
    # Before any rank has begun, the nodes' logs are all there is.
    return ranks or sorted(run.logs.glob("node-*.log"), key=_number) or [run.path / "logs" / "slurm.log"]


def _number(path: Path) -> int:
    found = re.search(r"\d+", path.name)
    return int(found[0]) if found else -1


def prefix(run: Run, path: Path) -> str:
    """`[n1 rank 0]`, with the host's name where the record has it."""
    number = _number(path)
    if path.name.startswith("rank-"):
        record = read_json(run.path / "exit" / path.parent.name / f"rank-{number}.json")
        procs = int(run.job["resources"]["procs_per_node"])
        host = record["host"] if record and run.job["executor"] == "slurm" else f"node {number // procs}"
        return f"[{host} rank {number}]"
    return f"[node {number}]" if number >= 0 else "[slurm]"
