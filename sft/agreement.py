"""Ranks that end together: an error of one is known to all before any of them waits for it in a collective."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from sft.errors import FencedError, LostPeerError, NonFiniteError, StorageError
from sft.world import World

KINDS = (NonFiniteError, FencedError, StorageError, BaseException)
"""Kinds of errors, worst first."""


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


def gathered(world: World, own: Any) -> list[Any]:
    """What every rank has, in the order of the ranks, through JSON (a collective)."""
    return [json.loads(part) for part in world.gather(json.dumps(own).encode())]


def told_by_main(world: World, number: float) -> float:
    """Rank 0's number, on every rank (a collective)."""
    return world.sum(float(number) if world.is_main else 0.0)[0]
