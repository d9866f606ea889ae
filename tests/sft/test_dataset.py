"""Documents and batches: what is cut, dropped and counted; where padding stands and what it hides."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sft.batching import IGNORED_LABEL, collate
from sft.dataset import ConversationDataset
from sft.errors import DataError
from sft.formats import Conversation
from sft.masking import Document, MaskError, MaskOptions

PAD = 9


class FakeMasker:
    """Takes the document out of the conversation's message."""

    pad_token_id = PAD
    options = MaskOptions()
    stop_token_ids: frozenset[int] = frozenset()

    def encode(self, conversations: list[Conversation]) -> list[list[Document] | MaskError]:
        masks = [conversation.messages[0]["mask"] for conversation in conversations]
        return [
            MaskError("it cannot be proven.")
            if mask is None
            else [Document(list(range(1, len(mask) + 1)), [flag == "x" for flag in mask])]
            for mask in masks
        ]


def data(*masks: str | None, max_length: int = 100) -> ConversationDataset:
    rows = [Conversation(({"mask": mask},), f"t.jsonl:{number}") for number, mask in enumerate(masks, 1)]
    masker: Any = FakeMasker()
    return ConversationDataset(rows, masker, max_length)


def test_batches_are_padded_on_the_right_to_their_longest_document() -> None:
    batch = data("..x", "..xxx", ".x").batch([0, 2, 1])
    assert batch.input_ids.tolist() == [[1, 2, 3, PAD, PAD], [1, 2, PAD, PAD, PAD], [1, 2, 3, 4, 5]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    ignored = IGNORED_LABEL
    expected = [[ignored, ignored, 3, ignored, ignored], [ignored, 2, ignored, ignored, ignored]]
    assert batch.labels.tolist() == [*expected, [ignored, ignored, 3, 4, 5]]
    assert (batch.num_tokens, batch.num_trained_tokens) == (10, 5)
    assert {batch.input_ids.dtype, batch.attention_mask.dtype, batch.labels.dtype} == {torch.long}


def test_a_short_batch_is_not_padded_for_documents_that_are_not_in_it() -> None:
    assert data("..x", "..xxx").batch([0]).input_ids.shape == (1, 3)


def test_a_pad_token_that_is_also_trained_is_masked_by_its_place_alone() -> None:
    batch = collate([Document([1, PAD], [False, True]), Document([1, 2, PAD], [False, True, True])], PAD)
    assert batch.labels.tolist() == [[IGNORED_LABEL, PAD, IGNORED_LABEL], [IGNORED_LABEL, 2, PAD]]
    assert batch.num_trained_tokens == 3


def test_no_rows_give_a_batch_that_trains_nothing() -> None:
    batch = data("..x").batch([])
    assert batch.input_ids.shape == (1, 1)
    assert batch.labels.tolist() == [[IGNORED_LABEL]]
    assert batch.num_trained_tokens == 0


def test_the_first_token_is_predicted_from_nothing_and_never_counted() -> None:
    found = data("xx.")
    assert found.counts["trained_tokens"] == 1
    assert found.batch([0]).num_trained_tokens == 1


def test_what_is_cut_and_what_is_dropped_is_counted() -> None:
    found = data("..x", "..xxx", "....x", ".x.xx", max_length=3)
    assert +found.counts == {
        "rows": 4, "documents": 3, "whole": 1, "truncated": 2, "dropped: nothing trained within max_length": 1,
        "tokens": 8, "trained_tokens": 3,
    }  # fmt: skip
    # What stands after the last trained token is not computed.
    assert [list(document.input_ids) for document in found] == [[1, 2, 3], [1, 2, 3], [1, 2]]
    assert [document.num_trained_tokens for document in found] == [1, 1, 1]
    assert found.summary == (
        "3 documents, 8 tokens, 3 trained (38%), 2 truncated, 1 dropped: nothing trained within max_length"
    )


def test_a_document_of_just_the_allowed_length_is_whole() -> None:
    found = data("..x", max_length=3)
    assert (found.counts["truncated"], found.counts["dropped"], len(found)) == (0, 0, 1)


def test_when_everything_is_dropped_the_run_does_not_start() -> None:
    with pytest.raises(DataError, match=r"no row has a trained token within max_length 2\. Raise max_length\."):
        data("..x", "...x", max_length=2)


def test_rows_that_cannot_be_masked_are_named_and_counted() -> None:
    with pytest.raises(DataError) as caught:
        data(".x", None, ".x", None)
    assert str(caught.value).splitlines() == [
        "t.jsonl:2: it cannot be proven.",
        "t.jsonl:4: it cannot be proven.",
        "2 of 4 rows cannot be used.",
    ]
    with pytest.raises(DataError) as caught:
        data(*[None] * 50)
    assert "… and 40 more" in str(caught.value)
    assert str(caught.value).endswith("50 of 50 rows cannot be used.")


def test_rows_keep_their_order() -> None:
    assert [len(document) for document in data(".x", "...x", "..x")] == [2, 4, 3]
