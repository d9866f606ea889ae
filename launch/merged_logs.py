"""The logs of all ranks, nodes and attempts as one, in the order of time; each line once.

Ranks write no times. Their nodes' agents note when lines came (`launch.notes`), so that lines of different files can be
put in order, to a fifth of a second and as far as the nodes' clocks agree. Lines of one file always keep their order.
"""

from __future__ import annotations

import heapq
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from launch import attempts
from launch.logs import Lines, Tail
from launch.notes import NODE_LOG
from launch.records import read_json
from launch.runs import Run

POLL_S = 0.2
HOLD_S = 0.8
"""A line is shown so long after it came: until then another node's earlier one may still arrive."""
LEVELS = ("info", "warning", "error")
_LEVEL_WORDS = {
    "error": re.compile(
        r"\b(ERROR|CRITICAL|FATAL)\b|^\s*(error|fatal)\b\s*:|^[\w.]*(Error|Exception|Interrupt)\b", re.ASCII
    ),
    "warning": re.compile(r"\bWARN(ING)?\b|^\s*warning\s*:|Warning:", re.ASCII),
}
_TRACEBACK = "Traceback (most recent call last):"
PIECE_BYTES = 1 << 20
_NO_LIMIT = float("inf")


@dataclass(frozen=True, order=True)
class Line:
    """A line of a log, and where it belongs. Ordered by time, then by place."""

    at: float
    """When it came (time.time())."""
    attempt: int
    node: int
    rank: int | None = field(compare=False)
    """None: it is of the node's launcher."""
    host: str = field(compare=False)
    level: str = field(compare=False)
    text: str = field(compare=False)


@dataclass(frozen=True)
class Choice:
    """Which lines are wanted; None: all."""

    rank: int | None = None
    node: int | None = None
    attempt: int | None = None
    level: str = LEVELS[0]

    def takes(self, line: Line) -> bool:
        """Whether a line of a file that was chosen is of the level."""
        return LEVELS.index(line.level) >= LEVELS.index(self.level)


def merged_lines(run: Run, choice: Choice, has_ended: Callable[[], bool] | None) -> Iterator[Line]:
    """The lines in order: all that there are, and, with `has_ended`, what comes until then.

    Args:
        run: the run.
        choice: the lines that are wanted.
        has_ended: None: no waiting for more.
    """
    clocks: dict[Path, _Clock] = {}
    found = _all_lines(run, choice, clocks) if has_ended is None else _followed_lines(run, choice, clocks, has_ended)
    return (line for line in found if choice.takes(line))


def _all_lines(run: Run, choice: Choice, clocks: dict[Path, _Clock]) -> Iterator[Line]:
    """The lines that there are, a piece of each log at a time: logs may be longer than memory."""
    sources = [_Source(run, path, clocks) for path in _paths(run, choice)]
    for clock in clocks.values():
        clock.read()
    return heapq.merge(*(source.read_all() for source in sources), key=lambda line: (line.at, line.attempt))


def _followed_lines(
    run: Run, choice: Choice, clocks: dict[Path, _Clock], has_ended: Callable[[], bool]
) -> Iterator[Line]:
    """The lines that there are and those that come."""
    sources: dict[Path, _Source] = {}
    waiting: list[tuple[float, int, int, Line]] = []
    count = 0
    while True:
        is_over = has_ended()  # asked first: what is written before the end is read below
        paths = _paths(run, choice)
        for path in paths:
            if path not in sources:
                sources[path] = _Source(run, path, clocks)
        for clock in clocks.values():
            clock.read()
        for path in paths:
            for line in sources[path].read(is_over=is_over):
                count += 1
                # Within a file lines keep their order: `count` before the rest of the line.
                heapq.heappush(waiting, (line.at, line.attempt, count, line))
        limit = _NO_LIMIT if is_over else time.time() - HOLD_S
        while waiting and waiting[0][0] <= limit:
            yield heapq.heappop(waiting)[-1]
        if is_over:
            return
        time.sleep(POLL_S)


def _paths(run: Run, choice: Choice) -> list[Path]:
    """The logs that are wanted, as far as they are there."""
    numbers = attempts.numbers(run.path) if choice.attempt is None else [choice.attempt]
    procs = int(run.job["resources"]["procs_per_node"])
    found: list[Path] = []
    for number in numbers:
        folder = run.path / "logs" / str(number)
        ranks = sorted(folder.glob("rank-*.log"), key=_number)
        if choice.rank is not None:
            found += [path for path in ranks if _number(path) == choice.rank]
        elif choice.node is not None:
            found += [folder / f"node-{choice.node}.log", *(p for p in ranks if _number(p) // procs == choice.node)]
        else:
            # Before any rank has begun, the nodes' logs are all there is.
            found += ranks or sorted(folder.glob("node-*.log"), key=_number)
    if not found and choice.rank is None and choice.node is None:
        found = [run.path / "logs" / f"{run.job.get('executor', 'slurm')}.log"]
    return found


def _number(path: Path) -> int:
    digits = re.search(r"\d+", path.name)
    return int(digits[0]) if digits else -1


class _Clock:
    """When the lines of a node's logs came, as its agent has noted."""

    def __init__(self, path: Path) -> None:
        self._tail, self._lines = Tail(path), Lines()
        self._marks: dict[int, deque[tuple[int, float]]] = {}

    def read(self) -> None:
        """Takes in what has been noted since."""
        for line in self._lines.feed(self._tail.read()):
            words = line.split()
            if len(words) == 3:
                self._marks.setdefault(int(words[1]), deque()).append((int(words[2]), float(words[0])))

    def at(self, rank: int, offset: int) -> float | None:
        """When the line that ends at `offset` was there; None where that is not known yet. Offsets must rise."""
        marks = self._marks.setdefault(rank, deque())
        while marks and marks[0][0] < offset:
            marks.popleft()
        return marks[0][1] if marks else None


class _Source:
    """One log file, and whose it is."""

    def __init__(self, run: Run, path: Path, clocks: dict[Path, _Clock]) -> None:
        self._path = path
        self._tail, self._lines = Tail(path), Lines()
        self._is_rank = path.name.startswith("rank-")
        number = _number(path)
        self._rank = number if self._is_rank else None
        self._node = number // int(run.job["resources"]["procs_per_node"]) if self._is_rank else number
        self._attempt = int(path.parent.name) if path.parent.name.isdigit() else 0
        self._record = run.path / "exit" / str(self._attempt) / path.with_suffix(".json").name
        self._has_hosts = run.job.get("executor") == "slurm" or bool(run.job.get("hosts"))
        self._host = f"node {self._node}"
        times = path.with_name(f"node-{self._node}.times")
        self._clock = clocks.setdefault(times, _Clock(times))
        self._unplaced: deque[tuple[int, float, str]] = deque()
        self._in_traceback = False
        self._last_at = 0.0

    def read(self, *, is_over: bool) -> Iterator[Line]:
        """The lines whose time is known by now; all of them once the run is over."""
        now = time.time()
        for text in self._lines.feed(self._tail.read()):
            self._unplaced.append((self._lines.num_bytes, now, text))
        if is_over:
            self._unplaced += [(self._lines.num_bytes + 1, now, text) for text in self._lines.flush()]
        while self._unplaced:
            offset, seen_at, text = self._unplaced[0]
            at = self._clock.at(NODE_LOG if self._rank is None else self._rank, offset)
            if at is None and not is_over and now - seen_at < HOLD_S:
                return  # the note is on its way
            self._unplaced.popleft()
            yield self._line(self._late(seen_at, is_over=is_over) if at is None else at, text)

    def read_all(self) -> Iterator[Line]:
        """All lines, a piece of the file at a time."""
        while piece := self._tail.read(PIECE_BYTES):
            yield from self._placed(self._lines.feed(piece))
        yield from self._placed(self._lines.flush(), extra=1)

    def _placed(self, texts: Iterator[str], extra: int = 0) -> Iterator[Line]:
        rank = NODE_LOG if self._rank is None else self._rank
        for text in texts:
            at = self._clock.at(rank, self._lines.num_bytes + extra)
            yield self._line(self._late(time.time(), is_over=True) if at is None else at, text)

    def _late(self, seen_at: float, *, is_over: bool) -> float:
        """The time of a line that nobody has noted: after the last look of the agent, or there was none."""
        record = (read_json(self._record) or {}) if is_over else {}
        try:
            written_at = self._path.stat().st_mtime
        except OSError:
            written_at = seen_at
        return min(seen_at, written_at, float(record.get("ended_at") or seen_at))

    def _line(self, at: float, text: str) -> Line:
        self._last_at = at = max(at, self._last_at)
        return Line(at, self._attempt, self._node, self._rank, self._whose(), self._level(text), text)

    def _whose(self) -> str:
        """The host's name, as soon as the record has it; here all nodes are one host."""
        if self._has_hosts and self._host.startswith("node ") and (record := read_json(self._record)):
            self._host = str(record.get("host", self._host))
        return self._host

    def _level(self, text: str) -> str:
        """By the words that logging and Python use; a traceback is an error to its last line."""
        if text.startswith(_TRACEBACK):
            self._in_traceback = True
            return "error"
        if self._in_traceback:
            self._in_traceback = text.startswith((" ", "\t")) or not text
            return "error"
        return next((level for level, words in _LEVEL_WORDS.items() if words.search(text)), "info")
