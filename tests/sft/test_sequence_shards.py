"""A row's pieces: every token on one rank, every trained token predicted once, with its weight."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sft.batching import Batch, collate_flat
from sft.documents import Document
from sft.sequence_shards import shard_of
from sft.world import SequenceGroup, World


def batch_of(lengths: list[int], seed: int, weighted: bool) -> Batch:
    rng = np.random.default_rng(seed)
    return collate_flat(
        [
            Document(
                rng.integers(1, 99, n).astype(np.int32),
                rng.random(n) < 0.5,
                rng.random(n).astype(np.float32) if weighted else None,
            )
            for n in lengths
        ],
        0,
    )


def predictions(batch: Batch, offset: int = 0) -> list[tuple[int, int, float]]:
    """(place that predicts, what, its weight) of each trained token."""
    assert batch.predicting is not None
    places = batch.predicting[: batch.num_trained_tokens]
    targets = batch.labels.flatten()[places + 1]
    weights = torch.ones(len(places)) if batch.label_weights is None else batch.label_weights.flatten()[places + 1]
    return list(zip((places + offset).tolist(), targets.tolist(), weights.tolist(), strict=True))


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), max_size=6), st.integers(1, 8), st.integers(0, 99), st.booleans())
def test_the_pieces_are_the_row(lengths: list[int], size: int, seed: int, weighted: bool) -> None:
    whole = batch_of(lengths, seed, weighted)
    pieces = [shard_of(whole, SequenceGroup(rank, size)) for rank in range(size)]
    num_tokens, num_own = whole.input_ids.shape[1], pieces[0].input_ids.shape[1]
    assert {piece.input_ids.shape for piece in pieces} == {(1, num_own)}
    assert 0 <= num_own * size - num_tokens < size
    for name in ("input_ids", "position_ids"):
        joined = torch.cat([getattr(piece, name) for piece in pieces], dim=1)
        assert torch.equal(joined[:, :num_tokens], getattr(whole, name))
    expected = predictions(whole)
    found = [one for rank, piece in enumerate(pieces) for one in predictions(piece, rank * num_own)]
    assert found == expected
    assert all(target > 0 for _, target, _ in found)
    for name in ("num_tokens", "num_trained_tokens"):
        assert sum(getattr(piece, name) for piece in pieces) == getattr(whole, name)
    assert np.isclose(sum(piece.total_weight for piece in pieces), whole.total_weight)


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(2, 8))
def test_attention_is_told_of_the_whole_row_and_the_filling_is_a_document_of_its_own(
    lengths: list[int], size: int
) -> None:
    whole = batch_of(lengths, 1, False)
    assert whole.layout is not None
    for rank in range(size):
        group = SequenceGroup(rank, size)
        piece = shard_of(whole, group)
        assert piece.layout is not None
        assert piece.layout.group == group == piece.to(torch.device("cpu")).layout.group  # type: ignore[union-attr]
        assert sum(piece.layout.lengths) == piece.input_ids.shape[1] * size
        assert piece.layout.lengths[: len(whole.layout.lengths)] == whole.layout.lengths


def test_a_piece_without_a_trained_token_names_a_place_of_no_weight() -> None:
    document = Document(np.arange(1, 9, dtype=np.int32), np.array([False] * 7 + [True]))
    first, second = (shard_of(collate_flat([document], 0), SequenceGroup(rank, 2)) for rank in range(2))
    assert (first.num_trained_tokens, first.total_weight) == (0, 0.0)
    assert first.predicting is not None
    assert first.predicting.tolist() == [0]
    assert (second.num_trained_tokens, predictions(second)) == (1, [(2, 8, 1.0)])


def test_the_last_token_of_a_piece_predicts_the_first_of_the_next() -> None:
    document = Document(np.arange(1, 9, dtype=np.int32), np.array([False] * 4 + [True] + [False] * 3))
    # The tail after the last trained token is left out: five tokens, pieces of three.
    first, second = (shard_of(collate_flat([document], 0), SequenceGroup(rank, 2)) for rank in range(2))
    assert predictions(second) == [(0, 5, 1.0)]
    first, second = (shard_of(batch_of_ids(6, 3), SequenceGroup(rank, 2)) for rank in range(2))
    assert predictions(first) == [(2, 4, 1.0)]
    assert second.num_trained_tokens == 1


def batch_of_ids(num_tokens: int, trained: int) -> Batch:
    flags = np.zeros(num_tokens, dtype=np.bool_)
    flags[[trained, num_tokens - 1]] = True
    return collate_flat([Document(np.arange(1, num_tokens + 1, dtype=np.int32), flags)], 0)


def test_neighbouring_ranks_are_a_group_and_groups_have_rows_of_their_own() -> None:
    worlds = [World(rank, rank, 6, torch.device("cpu"), SequenceGroup(rank % 3, 3)) for rank in range(6)]
    assert [(world.data_rank, world.data_size) for world in worlds] == [(0, 2)] * 3 + [(1, 2)] * 3
    alone = World(4, 0, 6, torch.device("cpu"))
    assert (alone.data_rank, alone.data_size) == (4, 6)
