"""Standard output and error that a full disk does not turn into a failure: what a run says must not end it."""

from __future__ import annotations

import contextlib
import errno
import io
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

TOLERATED = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""No space, no quota, a disk or terminal that is gone: the words are lost, and nothing else."""


class _TolerantFile(io.FileIO):
    """A file that takes what its disk does not."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in TOLERATED:
                raise
            return memoryview(data).nbytes


def tolerant(stream: TextIO) -> TextIO:
    """A stream to where `stream` goes, with its encoding and buffering, that drops what the disk does not take. The
    stream itself where it is no file of the system, as in a test."""
    try:
        raw = _TolerantFile(stream.fileno(), "w", closefd=False)
    except (AttributeError, OSError, ValueError):
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    is_unbuffered = bool(getattr(stream, "write_through", False))  # python -u
    return io.TextIOWrapper(
        raw if is_unbuffered else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=bool(stream.line_buffering),
        write_through=is_unbuffered,
    )


def tolerate_full_disks() -> None:
    """Makes standard output and error of this process tolerant, for all that writes to them by `sys` from now on."""
    sys.stdout, sys.stderr = tolerant(sys.stdout), tolerant(sys.stderr)
