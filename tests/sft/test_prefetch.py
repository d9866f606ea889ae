"""What the prefetching thread hands over: the items in their order, errors in theirs, nothing beyond its bound."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import tiny_args, write_conversations

from sft.dataset import ConversationDataset
from sft.flops import ModelShape
from sft.masking import Masker
from sft.plan import Plan
from sft.prefetch import prefetched
from sft.sources import read_conversations
from sft.step_data import step_data
from sft.tokenizer import build_tokenizer, pad_token_id
from sft.world import World

SHAPE = ModelShape(1000, 0, 200, attention=10, is_body_trained=True, window=20, windowed_share=0.5)


def test_items_come_in_their_order_and_end() -> None:
    assert list(prefetched(range(100))) == list(range(100))
    assert list(prefetched([])) == []


def test_an_error_comes_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("row 2")

    found = prefetched(items())
    assert next(found) == 1
    with pytest.raises(KeyError, match="row 2"):
        next(found)


def test_no_more_is_made_than_may_wait_and_closing_ends_the_thread() -> None:
    made = []

    def items() -> Iterator[int]:
        for number in range(1000):
            made.append(number)
            yield number

    before = threading.active_count()
    with contextlib.closing(prefetched(items(), num_ahead=3)) as found:
        assert next(found) == 0
        time.sleep(0.3)
        assert len(made) <= 1 + 3 + 1  # taken, waiting, in the making
    assert threading.active_count() == before


def test_items_are_made_while_the_caller_computes() -> None:
    made = [threading.Event() for _ in range(3)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    iterator = prefetched(items())
    assert next(iterator) == 0
    assert made[1].wait(timeout=60)  # though nobody has asked for it
    assert list(iterator) == [1, 2]


@pytest.mark.parametrize("collation", ["flat", "packed", "padded"])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_rank_knows_the_counts_of_all_without_asking(tmp_path: Path, collation: str, weighted: bool) -> None:
    lines = write_conversations(tmp_path / "train.jsonl", 13).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for number, row in enumerate(rows if weighted else []):
        row["messages"][-1]["weight"] = 0.3 * (1 + number % 4)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    packing = collation == "packed"
    args = tiny_args(tmp_path / "train.jsonl", tmp_path, packing=packing, max_length=128, per_device_train_batch_size=1)
    tokenizer = build_tokenizer(args)
    data = ConversationDataset(
        read_conversations(str(args.train_file)), Masker(tokenizer, pad_token_id(tokenizer)), args.max_length
    )
    for size in (1, 2, 3):
        plan = Plan.of(args, len(data), size, data.lengths)
        worlds = [World(rank, rank, size, torch.device("cpu")) for rank in range(size)]
        by_rank = [list(step_data(range(1, 9), data, args, plan, world, collation, SHAPE)) for world in worlds]
        for share in by_rank[0]:
            lengths = [int(data.lengths[document]) for documents in share.documents for document in documents]
            beyond = sum(max(length - 20, 0) ** 2 for length in lengths)
            # Flat rows leave out what comes after the last trained token.
            assert share.own_beyond == beyond if collation == "padded" else 0 < share.own_beyond <= beyond
        for shares in zip(*by_rank, strict=True):
            batches = [batch for share in shares for batch in share.batches]
            for name in ("num_tokens", "num_trained_tokens", "total_weight"):
                own = sum(getattr(batch, name) for batch in batches)
                # A rank with nothing to do computes one token that belongs to no document.
                own -= sum(batch.num_tokens == 1 for batch in batches) if name == "num_tokens" else 0
                told = {getattr(share, name) for share in shares}
                assert len(told) == 1
                assert told.pop() == pytest.approx(own, rel=1e-6), name


def test_ranks_share_rows_by_what_they_cost_in_the_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with (tmp_path / "train.jsonl").open("w") as file:
        for asked, answered in rng.integers(1, 60, (8, 2)).tolist():
            words = {"user": "one " * asked, "assistant": "two " * answered}
            file.write(json.dumps({"messages": [{"role": role, "content": text} for role, text in words.items()]}))
            file.write("\n")
    args = tiny_args(tmp_path / "train.jsonl", tmp_path, train_batch_size=8, per_device_train_batch_size=4)
    tokenizer = build_tokenizer(args)
    masker = Masker(tokenizer, pad_token_id(tokenizer))
    data = ConversationDataset(read_conversations(str(args.train_file)), masker, args.max_length)
    plan = Plan.of(args, len(data), 2, data.lengths)
    loss_alone = ModelShape(body=1, adapters=0, head=1_000_000, attention=0, is_body_trained=True)
    attention_alone = ModelShape(body=1, adapters=0, head=0, attention=1_000_000, is_body_trained=True)

    def excess(costs: NDArray[np.float64], shape: ModelShape) -> float:
        worlds = [World(rank, rank, 2, torch.device("cpu")) for rank in range(2)]
        shares = [next(step_data([1], data, args, plan, world, "flat", shape)).documents for world in worlds]
        documents = [sorted(document for batch in share for document in batch) for share in shares]
        assert sorted(documents[0] + documents[1]) == list(range(8))
        return float(max(costs[share].sum() for share in documents) / costs.sum() * 2 - 1)

    trained, squares = data.num_trained.astype(np.float64), data.lengths.astype(np.float64) ** 2
    assert excess(trained, loss_alone) < 0.02 < excess(trained, attention_alone)
    assert excess(squares, attention_alone) < 0.02 < excess(squares, loss_alone)
