"""TensorBoard's events of one attempt, written when they are handed over and not by a thread of their own."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


@dataclass(frozen=True)
class Scalars:
    """Values of one step."""

    step: int
    at: float
    """When they were found (time.time())."""
    values: Mapping[str, float]


class EventFile:
    """A file of events, which TensorBoard reads while it grows. A disk that takes nothing can be tried again."""

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        """
        Args:
            folder: where the file is made when the first events come.
            purge_step: what earlier attempts have logged from this step on is hidden.
        """
        self._folder = folder
        self._purge_step = purge_step
        self._descriptor: int | None = None

    def write(self, found: Sequence[Scalars]) -> None:
        """Adds events: all of them, or none where this raises OSError."""
        if self._descriptor is None:
            self._descriptor = self._made()
        size = os.fstat(self._descriptor).st_size
        rest = memoryview(_framed([*(() if size else self._head()), *map(_event, found)]))
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            os.ftruncate(self._descriptor, size)
            raise

    def close(self) -> None:
        """Closes the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _made(self) -> int:
        self._folder.mkdir(mode=0o700, exist_ok=True)  # not the run directory: one that is gone stays gone
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{time.monotonic_ns()}"
        return os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _head(self) -> list[Any]:
        """What stands before all events."""
        head = [Event(wall_time=time.time(), file_version="brain.Event:2")]
        if self._purge_step is not None:
            began = SessionLog(status=SessionLog.START)
            head.append(Event(wall_time=time.time(), step=self._purge_step, session_log=began))
        return head


def _event(scalars: Scalars) -> Any:
    """All values of a step as one event."""
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.values.items()]
    return Event(wall_time=scalars.at, step=scalars.step, summary=Summary(value=values))


def _framed(events: Sequence[Any]) -> bytes:
    framed = io.BytesIO()
    writer = RecordWriter(framed)
    for event in events:
        writer.write(event.SerializeToString())
    return framed.getvalue()
