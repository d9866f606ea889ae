"""Claims on pieces of work that several processes share through a folder."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from sft.storage import storage_errors

STALE_AFTER_S = 120.0
"""A claim whose holder has not been heard of for so long is taken over."""


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process got the claim, a file that only one has at a time; while it has it, it is heard of.

    Raises:
        StorageError: the folder cannot be written.
    """
    if not _claim(path):
        yield False
        return
    ended = threading.Event()

    def be_heard() -> None:
        while not ended.wait(STALE_AFTER_S / 10):
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=be_heard, daemon=True)
    thread.start()
    try:
        yield True
    finally:
        ended.set()
        thread.join()
        path.unlink(missing_ok=True)


def _claim(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        if time.time() - path.stat().st_mtime > STALE_AFTER_S:
            path.unlink(missing_ok=True)
    with storage_errors(path, "dataset_cache_dir"):
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(f"{socket.gethostname()} (process {os.getpid()})")
        except FileExistsError:
            return False
        except FileNotFoundError:
            return False  # the work is done, and its folder gone
    return True
