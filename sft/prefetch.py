"""What comes next is made by a thread while the caller computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import TypeVar

Item = TypeVar("Item")
_POLL_S = 0.1


def prefetched(items: Iterable[Item], num_ahead: int = 2) -> Generator[Item]:
    """The items in their order, up to `num_ahead` of them made by a thread before they are asked for.

    What `items` raises is raised here, in its place. Closing the iterator, or dropping it, ends the thread once it
    has finished the item that it is making.

    Args:
        items: iterated over by the thread alone.
        num_ahead: items that wait at most, besides the one in the making.
    """
    made: queue.Queue[tuple[Item | None, BaseException | None, bool]] = queue.Queue(num_ahead)
    stopped = threading.Event()

    def put(item: Item | None, error: BaseException | None = None, *, is_end: bool = False) -> None:
        while not stopped.is_set():
            try:
                made.put((item, error, is_end), timeout=_POLL_S)
                return
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    return
            put(None, is_end=True)
        except BaseException as error:  # raised again in the caller's thread
            put(None, error)

    thread = threading.Thread(target=make, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error, is_end = made.get()
            if error is not None:
                raise error
            if is_end:
                return
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
