"""Ranks that end together: an error of one is known to all before any of them waits for it in a collective."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

from sft.errors import FencedError, LostPeerError, NonFiniteError, StorageError
from sft.world import World

KINDS = (NonFiniteError, FencedError, StorageError, BaseException)
"""Kinds of errors, worst first."""
ROUND_S = 1.0
"""How often ranks that wait for each other's writing ask how far it is."""


def worst_kind(world: World, error: BaseException | None) -> type[BaseException] | None:
    """The kind of the worst error that any rank has, the same on every rank (a collective); None if none has one."""
    own = next((number for number, kind in enumerate(KINDS) if isinstance(error, kind)), None)
    counts = world.sum(*(float(number == own) for number in range(len(KINDS))))
    return next((kind for kind, count in zip(KINDS, counts, strict=True) if count), None)


def own_or_peers(error: BaseException | None) -> BaseException:
    """What a rank raises when any has an error: its own one, or that another rank has one."""
    return error or LostPeerError("another rank has an error, and says which; this one ends with it.")


@contextlib.contextmanager
def together(world: World) -> Iterator[None]:
    """Raises on every rank if the body raises on one; the body holds no collective (its end is one).

    Raises:
        LostPeerError: on the ranks where the body went well.
    """
    error: BaseException | None = None
    try:
        yield
    except Exception as found:
        error = found
    if worst_kind(world, error) is not None:
        raise own_or_peers(error)


def await_all(world: World, done: threading.Event, num_bytes: Callable[[], int]) -> None:
    """Waits until what each rank writes beside its main thread is done on all of them (a collective).

    A rank tells that it is alive whenever bytes were written, by any rank: those that are ready wait for the slowest,
    however long that takes, and a disk that is stuck is a hang. Ranks ask each other all the time, so that none is in a
    collective for longer than ROUND_S.

    Args:
        world: the ranks.
        done: set when this rank's part is.
        num_bytes: how many bytes of it are on the disk.
    """
    written = -1.0
    while True:
        is_writing = not done.wait(ROUND_S)
        num_writing, total = world.sum(float(is_writing), float(num_bytes()))
        if total != written:
            world.heartbeat.again()
            written = total
        if not num_writing:
            return


def gathered(world: World, own: Any) -> list[Any]:
    """What every rank has, in the order of the ranks, through JSON (a collective)."""
    return [json.loads(part) for part in world.gather(json.dumps(own).encode())]


def told_by_main(world: World, number: float) -> float:
    """Rank 0's number, on every rank (a collective)."""
    return world.sum(float(number) if world.is_main else 0.0)[0]
