"""An error of one rank ends all, each knows whose it is, and nobody waits for a rank that has gone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from crash_points import FakeEngine

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ranks"))
from spawned import spawn

from sft.agreement import together, told_by_main, worst_kind
from sft.checkpoint import Checkpoints, RunState
from sft.commit import checkpoints_in
from sft.errors import FencedError, LostPeerError, NonFiniteError, StorageError
from sft.fence import Holder, take
from sft.identity import Identity
from sft.world import World

pytestmark = pytest.mark.ranks


def agree(world: World, folder: Path) -> None:
    """Runs in three processes."""
    assert told_by_main(world, 10 + world.rank) == 10
    assert worst_kind(world, None) is None
    assert worst_kind(world, StorageError() if world.rank == 2 else None) is StorageError
    assert worst_kind(world, (StorageError(), None, FencedError())[world.rank]) is FencedError
    assert worst_kind(world, (ValueError(), None, None)[world.rank]) is BaseException
    with pytest.raises(KeyError if world.rank == 1 else LostPeerError), together(world):
        {0: "", 2: ""}[world.rank]
    checkpoints = checkpoints_of(world, folder)
    engine: Any = FakeEngine(1)
    checkpoints.save(engine, RunState(step=1))
    checkpoints.finish()
    one_rank_fails(world, checkpoints, folder)


def checkpoints_of(world: World, folder: Path) -> Checkpoints:
    fence = take(folder, Holder.this_process({})) if world.is_main else None
    return Checkpoints(
        folder / "checkpoints", world, Identity({}, {}), 2, fence=fence, cursor=lambda step: (0, step), timeout_s=30
    )


def one_rank_fails(world: World, checkpoints: Checkpoints, folder: Path) -> None:
    """The last rank's part is lost once, which all survive, and then holds what is no number, which ends all."""

    def full(point: str, step: int) -> None:
        if (point, step, world.rank) == ("save_part", 2, 2):
            raise OSError(28, "No space left on device")

    checkpoints._at = full
    for step in (2, 3):
        checkpoints.save(FakeEngine(step), RunState(step=step))  # type: ignore[arg-type]
    checkpoints.finish()
    assert [path.name for path in checkpoints_in(folder / "checkpoints")] == ["step-00000003", "step-00000001"]
    assert checkpoints.find("auto") == checkpoints.path(3)
    engine: Any = FakeEngine(4)
    if world.rank == 2:
        engine.values[:] = float("nan")
    checkpoints.save(engine, RunState(step=4))
    with pytest.raises(NonFiniteError if world.rank == 2 else LostPeerError):
        checkpoints.finish()
    assert len(list((folder / "checkpoints").glob("part-*"))) == 0


def test_three_ranks_agree(tmp_path: Path) -> None:
    spawn(agree, 3, tmp_path)
    assert [path.name for path in checkpoints_in(tmp_path / "checkpoints")] == ["step-00000003", "step-00000001"]
    assert not list((tmp_path / "checkpoints").glob("*.tmp-*"))
