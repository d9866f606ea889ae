"""A log: its end, and as it grows. Standard library only: every rank imports this."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

TAIL_LINES = 20
"""Of a log, in the record of an end and in `launch status`."""
TAIL_BYTES = 65_536
_POLL_S = 0.2


class Tail:
    """A file that grows: `read` gives what has been added since."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0

    def read(self, num_bytes: int = -1) -> bytes:
        """The new bytes, at most `num_bytes` where that is not -1; empty also before the file exists."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._position)
                added = file.read(num_bytes)
        except OSError:
            return b""
        self._position += len(added)
        return added


class Lines:
    """Bytes to whole lines; of a line that a progress bar has rewritten, the last state."""

    def __init__(self) -> None:
        self._rest = b""
        self.num_bytes = 0
        """Up to the end of the last whole line."""

    def feed(self, added: bytes) -> Iterator[str]:
        """The lines that are whole with what was added."""
        *lines, self._rest = (self._rest + added).split(b"\n")
        for line in lines:
            self.num_bytes += len(line) + 1
            yield self._text(line)

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


def read_tail(path: Path, num_bytes: int = TAIL_BYTES) -> str:
    """The end of a log; of a line that a progress bar has rewritten, its last state. Empty without a log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - num_bytes))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return "\n".join(lines)


def error_in(text: str) -> str | None:
    """The error that a log ends with: the last traceback's exception, else the last line."""
    _, traceback, after = text.rpartition("Traceback (most recent call last):")
    if traceback:
        for line in after.splitlines()[1:]:
            if line and not line[0].isspace() and re.match(r"[A-Za-z_][\w.]*(:|$)", line):
                return line.strip()[:500]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else None
