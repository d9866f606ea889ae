"""Ranks that end together: an error of one is known to all before any of them waits for it in a collective."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sft.errors import FencedError, NonFiniteError, PeerError, StorageError
from sft.world import World

_KINDS = (NonFiniteError, FencedError, StorageError, BaseException)
"""Worst first."""


def agreed(world: World, error: BaseException | None) -> BaseException | None:
    """The error of any rank, on every rank (a collective): its own one, or one of the same kind that points to another
    rank. The worst one where ranks have several."""
    own = next((number for number, kind in enumerate(_KINDS) if isinstance(error, kind)), None)
    counts = world.sum(*(float(number == own) for number in range(len(_KINDS))))
    worst = next((number for number, count in enumerate(counts) if count), None)
    if worst is None or worst == own:
        return error
    kind = _KINDS[worst] if worst < len(_KINDS) - 1 else PeerError
    return kind("another rank has an error, and says which; this one ends with it.")


@contextlib.contextmanager
def together(world: World) -> Iterator[None]:
    """Raises on every rank if the body raises on one; the body holds no collective (its end is one)."""
    error: BaseException | None = None
    try:
        yield
    except Exception as found:
        error = found
    if (found_anywhere := agreed(world, error)) is not None:
        raise found_anywhere


def told_by_main(world: World, number: float) -> float:
    """Rank 0's number, on every rank (a collective)."""
    return world.sum(float(number) if world.is_main else 0.0)[0]
