"""Encoded conversations on disk: found again, never stale, whole after interruptions and for several makers."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cache_makers import make
from tiny import TOKENIZER, write_conversations

import sft.claims
import sft.encoding_cache
from sft.config import ROOT
from sft.dataset import ConversationDataset
from sft.documents import Document
from sft.encoding import ROWS_PER_BATCH, Encoding, Workers
from sft.encoding_cache import POLL_S, EncodingCache, Source, cache_key, usable_cache_folder
from sft.errors import DataError, SftError, StorageError
from sft.masking import Masker, MaskOptions
from sft.rows import BadRows
from sft.sources import read_conversations
from sft.token_columns import TokenColumns, write_columns

CHATML = (ROOT / "sft" / "templates" / "chatml.jinja").read_text()


def encoding(template: str = CHATML, max_length: int = 64, token: str | None = None, **options: Any) -> Encoding:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.chat_template = template
    if token is not None:
        tokenizer.add_tokens([token])
    return Encoding(Masker(tokenizer, options=MaskOptions(**options)), max_length)


def same(one: ConversationDataset, other: ConversationDataset) -> bool:
    return len(one) == len(other) and all(
        list(a.input_ids) == list(b.input_ids) and list(a.trained) == list(b.trained)
        for a, b in zip(one, other, strict=True)
    )


def dataset(source: Path, folder: Path, how: Encoding, **settings: Any) -> ConversationDataset:
    return ConversationDataset.from_sources({Source(str(source)): 1.0}, how, EncodingCache(folder), **settings)


def test_the_cache_holds_what_is_encoded_in_memory(tmp_path: Path) -> None:
    source, how = write_conversations(tmp_path / "a.jsonl", 40), encoding()
    expected = ConversationDataset(read_conversations(str(source)), how.masker, how.max_length)
    first, again = dataset(source, tmp_path / "cache", how), dataset(source, tmp_path / "cache", how, makes=False)
    assert same(first, expected)
    assert same(again, expected)
    assert again.counts == expected.counts
    assert again.stop_token_ids == expected.stop_token_ids
    assert again.lengths.tolist() == [len(document) for document in expected]
    assert again.num_trained.tolist() == [document.num_trained_tokens for document in expected]
    assert isinstance(again.lengths, np.memmap)


def test_failure_mode_34_one_changed_character_anywhere_is_another_cache(tmp_path: Path) -> None:
    source = write_conversations(tmp_path / "a.jsonl", 3)
    key = cache_key(Source(str(source)), encoding())
    assert key == cache_key(Source(str(source)), encoding())
    others = {
        "template": cache_key(Source(str(source)), encoding(CHATML.replace("assistant\\n", "assistant \\n"))),
        "tokenizer": cache_key(Source(str(source)), encoding(token="<new>")),
        "mask": cache_key(Source(str(source)), encoding(train_on="last")),
        "system prompt": cache_key(Source(str(source)), encoding(system_prompt="x")),
        "length": cache_key(Source(str(source)), encoding(max_length=65)),
        "columns": cache_key(Source(str(source), (("messages", "m"),)), encoding()),
        "rows": cache_key(Source(str(source), max_rows=2), encoding()),
    }
    text = source.read_text()
    status = source.stat()
    source.write_text(text.replace("a", "b", 1) if "a" in text else text + " ")
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    others["file"] = cache_key(Source(str(source)), encoding(), tmp_path / "hashes")
    assert len({key, *others.values()}) == len(others) + 1


def test_failure_mode_34_the_hash_of_a_file_is_made_anew_when_the_file_is(tmp_path: Path) -> None:
    source, how = write_conversations(tmp_path / "a.jsonl", 3), encoding()
    keys = [cache_key(Source(str(source)), how, tmp_path / "hashes")]
    assert len(list((tmp_path / "hashes").iterdir())) == 1
    source.write_text(source.read_text() * 2)
    keys.append(cache_key(Source(str(source)), how, tmp_path / "hashes"))
    assert keys[0] != keys[1]
    assert keys[1] == cache_key(Source(str(source)), how)


def test_the_date_is_part_of_the_key_only_where_the_template_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_conversations(tmp_path / "a.jsonl", 3)
    dated = "{{ strftime_now('%Y') }}" + CHATML
    before = [cache_key(Source(str(source)), encoding(t)) for t in (CHATML, dated)]
    pinned = cache_key(Source(str(source)), encoding(dated, template_date="2026-01-01"))
    monkeypatch.setattr(sft.encoding_cache.time, "strftime", lambda _: "2031-01-01")
    assert cache_key(Source(str(source)), encoding(CHATML)) == before[0]
    assert cache_key(Source(str(source)), encoding(dated)) != before[1]
    assert cache_key(Source(str(source)), encoding(dated, template_date="2026-01-01")) == pinned


def test_an_interrupted_making_goes_on_with_the_blocks_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft.encoding_cache, "ROWS_PER_BLOCK", 8)
    source, how = write_conversations(tmp_path / "a.jsonl", 30), encoding()
    encoded: list[int] = []
    whole = Encoding.encode

    def until_the_third(self: Encoding, rows: Any) -> Any:
        encoded.append(rows[0][0])
        if len(encoded) == 3:
            raise KeyboardInterrupt
        return whole(self, rows)

    monkeypatch.setattr(Encoding, "encode", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        dataset(source, tmp_path / "cache", how)
    found = dataset(source, tmp_path / "cache", how)
    assert encoded == [0, 8, 16, 16, 24]
    assert same(found, ConversationDataset(read_conversations(str(source)), how.masker, how.max_length))
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.name != "hashes"] == [
        cache_key(Source(str(source)), how)
    ]


def test_several_makers_share_the_blocks_and_none_corrupts_the_others(tmp_path: Path) -> None:
    source, how = write_conversations(tmp_path / "a.jsonl", 60), encoding()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    makers = [context.Process(target=make, args=(source, tmp_path / "cache", how, results)) for _ in range(3)]
    for maker in makers:
        maker.start()
    found = [results.get(timeout=120) for _ in makers]
    for maker in makers:
        maker.join()
        assert maker.exitcode == 0
    expected = ConversationDataset(read_conversations(str(source)), how.masker, how.max_length)
    assert found == [[list(map(int, document.input_ids)) for document in expected]] * 3


def test_failure_mode_33_those_who_do_not_encode_wait_outside_of_collectives(
    tmp_path: Path,
) -> None:
    source = write_conversations(tmp_path / "a.jsonl", 20)
    how = encoding()
    maker = multiprocessing.get_context("spawn").Process(target=make, args=(source, tmp_path / "cache", how))
    maker.start()
    found = dataset(source, tmp_path / "cache", how, makes=False)
    maker.join()
    assert len(found) == 20


def test_the_claim_of_a_dead_maker_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, how = write_conversations(tmp_path / "a.jsonl", 5), encoding()
    work = tmp_path / "cache" / f"{cache_key(Source(str(source)), how)}.work"
    work.mkdir(parents=True)
    claim = work / "block-00000.claim"
    claim.write_text("a machine that is gone")
    long_ago = time.time() - 2 * sft.claims.STALE_AFTER_S
    os.utime(claim, (long_ago, long_ago))
    assert len(dataset(source, tmp_path / "cache", how)) == 5


def test_worker_processes_give_what_one_process_gives(tmp_path: Path) -> None:
    source, how = write_conversations(tmp_path / "a.jsonl", 1100), encoding()
    one = dataset(source, tmp_path / "one", how)
    two = dataset(source, tmp_path / "two", how, num_processes=2)
    assert same(one, two)
    assert one.counts == two.counts
    assert one.stop_token_ids == two.stop_token_ids


def end_unless(process: int, rows: Any) -> Any:
    """Ends the process that it runs in, unless that is this one."""
    if os.getpid() != process:
        os._exit(9)
    return rows


def test_a_worker_that_is_ended_from_outside_ends_the_run() -> None:
    """As the kernel ends processes where memory runs out."""
    ended: Any = SimpleNamespace(encode=partial(end_unless, os.getpid()))
    rows: Any = [9] * (4 * ROWS_PER_BATCH)
    with Workers(ended, 2) as workers, pytest.raises(SftError, match=r"ended from outside.*dataset_num_proc"):
        list(workers.encode(rows))


def test_a_file_that_lost_its_end_is_refused_with_its_name(tmp_path: Path) -> None:
    source, how = write_conversations(tmp_path / "a.jsonl", 5), encoding()
    dataset(source, tmp_path / "cache", how)
    ids = next((tmp_path / "cache").glob("*/ids.bin"))
    ids.write_bytes(ids.read_bytes()[:-2])
    with pytest.raises(StorageError, match=r"ids\.bin: has \d+ bytes; it must have \d+"):
        dataset(source, tmp_path / "cache", how)


def test_bad_rows_are_told_with_their_places_or_skipped_up_to_the_limit(tmp_path: Path) -> None:
    source, how = write_conversations(tmp_path / "a.jsonl", 5), encoding()
    with source.open("a") as file:
        file.write('{"messages": []}\n{"messages"\n')
    with pytest.raises(DataError, match=rf"(?s){source}:6: .*{source}:7.*2 of 7 rows cannot be used"):
        dataset(source, tmp_path / "cache", how)
    found = dataset(source, tmp_path / "cache", how, bad_rows=BadRows("skip", 2))
    assert (len(found), found.counts["rows"], found.counts["bad rows"]) == (5, 7, 2)
    with pytest.raises(DataError, match="more than max_bad_rows: 1"):
        dataset(source, tmp_path / "cache", how, bad_rows=BadRows("skip", 1))


def test_bad_rows_of_a_copy_bear_its_own_names(tmp_path: Path) -> None:
    for folder in ("first", "copy"):
        (tmp_path / folder).mkdir()
        for name in ("a.jsonl", "b.jsonl"):
            write_conversations(tmp_path / folder / name, 1)
            with (tmp_path / folder / name).open("a", encoding="utf-8") as file:
                file.write("{}\n")
        bad_rows = BadRows("skip", 2)
        dataset(tmp_path / folder, tmp_path / "cache", encoding(), bad_rows=bad_rows)
        assert [row.source for row in bad_rows.examples] == [
            f"{tmp_path}/{folder}/{name}:2" for name in ("a.jsonl", "b.jsonl")
        ]
    assert len([path for path in (tmp_path / "cache").iterdir() if path.name != "hashes"]) == 1


def test_bad_rows_and_names_with_half_characters_are_kept_too(tmp_path: Path) -> None:
    source, how = write_conversations(tmp_path / os.fsdecode(b"a \xff.jsonl"), 5), encoding()
    with source.open("a") as file:
        file.write('{"messages": [{"role": "\\ud800", "content": "q"}]}\n')
    for _ in range(2):
        bad_rows = BadRows("skip", 1)
        assert len(dataset(source, tmp_path / "cache", how, bad_rows=bad_rows)) == 5
        assert "a \udcff.jsonl:6: messages[0].role is '\ud800'" in bad_rows.report()


def test_sources_are_seen_as_often_as_they_are_said_to_be(tmp_path: Path) -> None:
    one, other = (write_conversations(tmp_path / f"{name}.jsonl", 10, seed) for seed, name in enumerate("ab"))
    how = encoding()
    sources = {Source(str(one)): 2.0, Source(str(other)): 0.5}
    found = ConversationDataset.from_sources(sources, how, EncodingCache(tmp_path / "cache"))
    first, second = dataset(one, tmp_path / "cache", how), dataset(other, tmp_path / "cache", how)
    texts = [tuple(document.input_ids) for document in found]
    assert texts[:20] == [tuple(document.input_ids) for document in first] * 2
    assert len(set(texts[20:])) == len(texts) - 20 in (4, 5, 6)
    assert set(texts[20:]) <= {tuple(document.input_ids) for document in second}
    assert found.lengths.tolist() == [len(text) for text in texts]


def test_opening_a_large_cache_takes_no_time_and_no_memory(tmp_path: Path) -> None:
    one = TokenColumns.of([Document([1, 2, 3], [False, False, True])] * 100_000, list(range(100_000)))
    info: dict[str, Any] = {"counts": {}, "notes": {}, "bad": [], "stop_token_ids": []}
    folder = tmp_path / "columns"
    folder.mkdir()
    write_columns(folder, (one for _ in range(10)), 100, info)
    found = TokenColumns.open(folder)
    assert len(found) == 1_000_000
    assert all(isinstance(column, np.memmap) for column in (found.ids, found.lengths, found.offsets))
    assert list(found[999_999].input_ids) == [1, 2, 3]
    assert found.ids.dtype == np.uint16


def test_weights_are_kept_where_they_are_not_all_one(tmp_path: Path) -> None:
    plain, weighted = Document([1, 2], [False, True]), Document([3, 4, 5], [False, True, True], [0.0, 0.5, 2.0])
    parts = [TokenColumns.of([plain], [0]), TokenColumns.of([weighted], [1]), TokenColumns.of([plain], [2])]
    (tmp_path / "columns").mkdir()
    write_columns(tmp_path / "columns", parts, 100_000, {})
    found = TokenColumns.open(tmp_path / "columns")
    assert found.ids.dtype == np.uint32
    weights = [document.weights for document in found]
    assert [np.asarray(values).tolist() for values in weights] == [[0, 1], [0, 0.5, 2], [0, 1]]
    assert json.loads((tmp_path / "columns" / "manifest.json").read_text())["bytes"]["weights"] == 7 * 4


def test_the_cache_goes_to_the_users_own_folder_or_beside_the_run(tmp_path: Path) -> None:
    assert usable_cache_folder(str(tmp_path / "mine"), tmp_path / "run", {}) == tmp_path / "mine"
    assert usable_cache_folder(None, tmp_path / "run", {"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "cleansft"
    (tmp_path / "file").write_text("")
    assert usable_cache_folder(None, tmp_path / "run", {"XDG_CACHE_HOME": str(tmp_path / "file")}) == tmp_path / "run"
    with pytest.raises(StorageError, match="file/x cannot be written"):
        usable_cache_folder(str(tmp_path / "file" / "x"), tmp_path / "run", {})


def test_who_waits_for_another_process_looks_soon_and_then_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most data is encoded in less than the longest pause, which a second process would lose at every start."""
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 8:
            raise InterruptedError

    monkeypatch.setattr("sft.encoding_cache.time.sleep", sleep)
    with pytest.raises(InterruptedError):
        dataset(write_conversations(tmp_path / "a.jsonl", 3), tmp_path / "cache", encoding(), makes=False)
    assert slept[:3] == [0.01, 0.02, 0.04]
    assert slept[-2:] == [POLL_S, POLL_S]
