"""`launch top`: a live picture of one run in the terminal."""

from __future__ import annotations

import argparse
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launch import screen
from launch.checks import takes_colours
from launch.errors import OK, LaunchError
from launch.logs import read_tail
from launch.progress import read_log, read_progress
from launch.report import status_facts
from launch.runs import Run
from launch.verbs.common import SQUEUE_INTERVAL_S, Watch, find, print_json, print_status

LOG_BYTES = 1 << 20
NUM_LAST_LINES = 4
MIN_INTERVAL_S = 0.1


def run(arguments: argparse.Namespace) -> int:
    """Draws until the run has ended, or `q`. Without a terminal, or with `--once` or `--json`: one picture."""
    if not arguments.interval_s >= MIN_INTERVAL_S:
        raise LaunchError(f"--interval-s is {arguments.interval_s}; it must be {MIN_INTERVAL_S} or more.")
    found = find(arguments)
    view = _View(found)
    if arguments.json:
        print_json("top", **view.picture().facts, log=view.records())
    elif arguments.once or not (sys.stdout.isatty() and sys.stdin.isatty()):
        print("\n".join(_lines(view, is_coloured=takes_colours(sys.stdout, os.environ))))
    else:
        _live(view, arguments.interval_s)
        print_status(found, Watch(found).now())
    return OK


class _View:
    """What is shown of a run, read again for each picture; the scheduler is asked seldom."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._watch = Watch(run)
        self._status = self._watch.now()
        self._asked_at = time.monotonic()
        self._log_facts: tuple[int, int] | None = None
        self._records: list[dict[str, Any]] = []

    @property
    def has_ended(self) -> bool:
        return self._status.has_ended

    def records(self) -> list[dict[str, Any]]:
        """The end of the training log, read again where it has changed."""
        path = self._run.path / "training_log.json"
        try:
            stat = path.stat()
        except OSError:
            return []
        if self._log_facts != (stat.st_mtime_ns, stat.st_size):
            self._log_facts, self._records = (stat.st_mtime_ns, stat.st_size), read_log(path, LOG_BYTES)
        return self._records

    def picture(self) -> screen.Picture:
        """How the run stands now."""
        if time.monotonic() - self._asked_at >= SQUEUE_INTERVAL_S:
            self._status, self._asked_at = self._watch.now(), time.monotonic()
        facts = status_facts(self._run, self._status)
        return screen.Picture(facts, read_progress(self._run), self.records(), self._last_lines(), time.time())

    def _last_lines(self) -> list[tuple[str, str]]:
        """Of rank 0; before it has begun, of node 0."""
        for name, whose in (("rank-0", "rank 0"), ("node-0", "node 0")):
            lines = [
                line for line in read_tail(Path(self._run.logs) / f"{name}.log", 8192).splitlines() if line.strip()
            ]
            if lines:
                return [(whose, line) for line in lines[-NUM_LAST_LINES:]]
        return []


def _lines(view: _View, *, is_coloured: bool) -> list[str]:
    width, height = shutil.get_terminal_size((100, 40))
    return [screen.ansi(row, is_coloured=is_coloured) for row in screen.rows(view.picture(), width, height - 1)]


def _live(view: _View, interval_s: float) -> None:
    is_coloured = takes_colours(sys.stdout, os.environ)
    with _own_screen():
        while True:
            lines = _lines(view, is_coloured=is_coloured)
            foot = f"\033[2m{screen.clock(time.time())}  q leaves; the run goes on\033[0m"
            # Line by line over the old picture, and then the rest: an empty screen in between would flicker.
            sys.stdout.write("\033[H" + "".join(f"{line}\033[K\n" for line in lines) + "\033[J" + foot)
            sys.stdout.flush()
            if view.has_ended or _is_left(interval_s):
                return


def _is_left(wait_s: float) -> bool:
    """Waits, or less where `q` is typed: then True."""
    ready, _, _ = select.select([sys.stdin], [], [], wait_s)
    return bool(ready) and os.read(sys.stdin.fileno(), 64)[:1] in (b"q", b"Q", b"\x03", b"\x04", b"")


@contextmanager
def _own_screen() -> Iterator[None]:
    """The terminal's other screen, without a cursor, keys as they are typed; afterwards all as it was."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        sys.stdout.write("\033[?1049h\033[?25l")
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        sys.stdout.write("\033[?25h\033[?1049l")
        sys.stdout.flush()
