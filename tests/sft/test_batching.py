"""Batches: where documents stand in packed rows, what is trained of them, and what it weighs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sft.batching import IGNORED_LABEL, collate, collate_flat, collate_packed
from sft.documents import Document

PAD = 9
NO = IGNORED_LABEL


def test_packed_rows_keep_boundaries_and_padding_is_a_document_of_its_own() -> None:
    rows = [
        [Document([1, 2, 3], [False, True, True]), Document([4, 5], [False, True])],
        [Document([6, 7, 8, 1, 2, 3], [False] * 5 + [True])],
    ]
    batch = collate_packed(rows, PAD, 7)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, PAD, PAD], [6, 7, 8, 1, 2, 3, PAD]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5, 0]]
    assert batch.labels.tolist() == [[NO, 2, 3, NO, 5, NO, NO], [NO, NO, NO, NO, NO, 3, NO]]
    assert batch.attention_mask is None
    assert (batch.num_tokens, batch.num_trained_tokens, batch.total_weight) == (11, 4, 4.0)
    assert {batch.input_ids.dtype, batch.labels.dtype, batch.position_ids.dtype} == {torch.long}


def test_documents_end_to_end_stand_in_the_order_of_their_length_without_their_tails() -> None:
    documents = [
        Document([1, 2, 3, 4, 5], [False, True, True, False, False], [0.0, 2.0, 1.0, 0.0, 0.0]),
        Document([6, 7, 8, 9], [True, False, False, False]),
        Document([1, 3], [False, True]),
    ]
    batch = collate_flat(documents, PAD)
    assert batch.input_ids.tolist() == [[6, 1, 3, 1, 2, 3]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 0, 1, 0, 1, 2]]
    assert batch.labels.tolist() == [[NO, NO, 3, NO, 2, 3]]
    assert batch.predicting is not None
    assert batch.predicting.tolist() == [1, 3, 4]
    assert batch.layout is not None
    assert (batch.layout.lengths, batch.layout.starts.tolist()) == ((1, 2, 3), [0, 1, 3, 6])
    assert (batch.num_tokens, batch.num_trained_tokens, batch.total_weight) == (11, 3, 4.0)
    filled = collate_flat(documents, PAD, capacity=9)
    assert filled.input_ids.tolist() == [[6, 1, 3, 1, 2, 3, PAD, PAD, PAD]]
    assert filled.layout is not None
    assert filled.layout.lengths == (1, 2, 3, 3)
    assert batch.layout.runs() == [(1, 1), (1, 2), (1, 3)]
    assert filled.layout.runs() == [(1, 1), (1, 2), (2, 3)]
    computed = filled.layout.without_padding()
    assert (computed.lengths, computed.starts.tolist()) == ((1, 2, 3), [0, 1, 3, 6])
    with pytest.raises(ValueError, match="a row has 6 tokens; it must have at most 5"):
        collate_flat(documents, PAD, capacity=5)


def test_failure_mode_22_the_denominator_counts_shifted_labels_only() -> None:
    # Every token is said to be trained, the first one of each document too, which nothing predicts.
    documents = [Document([1, 2, 3], [True] * 3), Document([4], [True]), Document([5, 6], [True] * 2)]
    for batch in (collate(documents, PAD), collate_packed([documents], PAD, 8)):
        shifted = batch.labels[:, 1:]
        assert batch.num_trained_tokens == int((shifted != IGNORED_LABEL).sum()) == 3
        assert batch.total_weight == 3.0


def test_failure_mode_26_first_labels_are_ignored_and_single_tokens_keep_their_boundary() -> None:
    row = [Document([1], [True]), Document([2], [True]), Document([3, 4], [True, True]), Document([5], [True])]
    batch = collate_packed([row], PAD, 6)
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 0, 0, 1, 0, 0]]
    assert batch.labels.tolist() == [[NO, NO, NO, 4, NO, NO]]


def test_weights_stand_beside_their_labels_and_make_the_total() -> None:
    weighted = Document([1, 2, 3], [True, True, False], [4.0, 0.5, 7.0])
    plain = Document([4, 5, 6], [False, True, True])
    for batch in (collate([weighted, plain], PAD), collate_packed([[weighted, plain]], PAD, 6)):
        assert batch.label_weights is not None
        assert batch.label_weights.dtype == torch.float32
        assert batch.label_weights.flatten().tolist() == [0, 0.5, 0, 0, 1, 1]
        assert (batch.num_trained_tokens, batch.total_weight) == (3, 2.5)
    assert collate([plain], PAD).label_weights is None
    assert collate_packed([[plain]], PAD, 4).label_weights is None


def test_lists_and_arrays_give_the_same_batch() -> None:
    as_lists = Document([1, 2, 3], [False, True, True], [0.0, 2.0, 1.0])
    as_arrays = Document(
        np.array([1, 2, 3], dtype=np.int32), np.array([False, True, True]), np.array([0, 2, 1], dtype=np.float32)
    )
    first, second = (collate_packed([[document]], PAD, 5) for document in (as_lists, as_arrays))
    for name, value in vars(first).items():
        other = getattr(second, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    assert as_arrays.trained[0] == np.False_  # nothing was written into the document


def test_no_rows_give_one_token_that_trains_nothing() -> None:
    batch = collate_packed([], PAD, 100)
    assert batch.input_ids.tolist() == [[PAD]]
    assert (batch.num_trained_tokens, batch.total_weight) == (0, 0.0)


def test_a_row_that_is_too_full_is_refused() -> None:
    with pytest.raises(ValueError, match="a row has 4 tokens; it must have at most 3"):
        collate_packed([[Document([1, 2], [True] * 2), Document([3, 4], [True] * 2)]], PAD, 3)


def test_a_batch_moves_whole() -> None:
    batch = collate_packed([[Document([1, 2], [False, True], [0.0, 3.0])]], PAD, 4).to(torch.device("meta"))
    assert batch.attention_mask is None
    assert batch.position_ids is not None
    assert batch.label_weights is not None
    assert {batch.input_ids.device, batch.labels.device, batch.position_ids.device, batch.label_weights.device} == {
        torch.device("meta")
    }
    assert batch.total_weight == 3.0
