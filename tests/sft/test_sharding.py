"""Every row once per epoch, the same rows per step for any split, the same number of micro-batches on all ranks."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sft.sharding import rank_batches, step_rows, steps_per_epoch

counts = st.integers(1, 40)


@given(num_rows=st.integers(1, 200), world=st.integers(1, 8), micro=st.integers(1, 5), accumulation=st.integers(1, 4))
def test_every_row_is_seen_once_per_epoch(num_rows: int, world: int, micro: int, accumulation: int) -> None:
    per_step = world * micro * accumulation
    steps = steps_per_epoch(num_rows, per_step)
    for epoch in range(2):
        seen: Counter[int] = Counter()
        for step in range(epoch * steps, (epoch + 1) * steps):
            rows = step_rows(num_rows, per_step, 7, step)
            shares = [rank_batches(rows, rank, world, micro) for rank in range(world)]
            assert len({len(share) for share in shares}) == 1
            assert all(len(batch) <= micro for share in shares for batch in share)
            seen.update(row for share in shares for batch in share for row in batch)
        assert seen == Counter(range(num_rows))


@given(num_rows=st.integers(9, 100), step=st.integers(0, 50))
def test_a_step_has_the_same_rows_for_every_split(num_rows: int, step: int) -> None:
    rows = step_rows(num_rows, 8, 3, step)
    for world, micro in ((1, 8), (1, 2), (2, 2), (4, 1), (8, 1)):
        shared = [row for rank in range(world) for batch in rank_batches(rows, rank, world, micro) for row in batch]
        assert sorted(shared) == sorted(rows)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    first, second = step_rows(50, 50, 1, 0), step_rows(50, 50, 1, 1)
    assert first != second != list(range(50))
    assert step_rows(50, 50, 2, 0) != first
    assert step_rows(50, 50, 1, 0) == first
