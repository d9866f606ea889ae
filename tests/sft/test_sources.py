"""Files of every kind as rows with their place; damaged ones stand in test_bad_rows.py."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import ipc, parquet

from sft.dataset import num_times
from sft.errors import DataError
from sft.formats import Conversation
from sft.rows import BadRow, BadRows, Row
from sft.sources import read_conversations, read_rows, source_files
from sft.table_rows import hub_rows

BOM = b"\xef\xbb\xbf"
PAIR = {"prompt": "q", "response": "a"}
MESSAGES = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def lines(*rows: Any) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def zstd(data: bytes) -> bytes:
    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


def arrow_stream(rows: list[Any]) -> bytes:
    table, sink = pyarrow.Table.from_pylist(rows), pyarrow.BufferOutputStream()
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return bytes(sink.getvalue().to_pybytes())


def arrow_file(rows: list[Any]) -> bytes:
    table, sink = pyarrow.Table.from_pylist(rows), pyarrow.BufferOutputStream()
    with ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return bytes(sink.getvalue().to_pybytes())


def parquet_file(rows: list[Any]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue().to_pybytes())


def each(change: Callable[[bytes], bytes]) -> Callable[[list[Any]], bytes]:
    """Each row's line changed, and all joined."""
    return lambda rows: b"".join(change(lines(row)) for row in rows)


def windows(rows: list[Any]) -> bytes:
    return BOM + lines(*rows).replace(b"\n", b"\r\n\r\n")


def places(path: Path, name: str | None = None) -> list[str]:
    """The places of the rows, without the folder."""
    return [row.source.removeprefix(f"{path.parent}/") for row in read_rows(name or str(path))]


THREE = [PAIR, {"prompt": "q2", "response": "a2"}, {"prompt": "q3", "response": "a3"}]
FILES: dict[str, tuple[str, Callable[[list[Any]], bytes], str]] = {
    "jsonl": ("rows.jsonl", lambda rows: lines(*rows), ":1 :2 :3"),
    "ndjson": ("rows.ndjson", lambda rows: lines(*rows), ":1 :2 :3"),
    "jsonl.gz": ("rows.jsonl.gz", lambda rows: gzip.compress(lines(*rows)), ":1 :2 :3"),
    "jsonl.zst": ("rows.jsonl.zst", lambda rows: zstd(lines(*rows)), ":1 :2 :3"),
    "several gzip members": ("rows.jsonl.gz", each(gzip.compress), ":1 :2 :3"),
    "several zstd frames": ("rows.jsonl.zst", each(zstd), ":1 :2 :3"),
    "json": ("rows.json", lambda rows: json.dumps(rows, indent=1).encode(), "[0] [1] [2]"),
    "json on one line": ("rows.json", lambda rows: json.dumps(rows).encode(), "[0] [1] [2]"),
    "json.gz": ("rows.json.gz", lambda rows: gzip.compress(json.dumps(rows).encode()), "[0] [1] [2]"),
    "json.zst": ("rows.json.zst", lambda rows: zstd(json.dumps(rows).encode()), "[0] [1] [2]"),
    "object with one list": ("rows.json", lambda rows: json.dumps({"v": 1, "data": rows}).encode(), "[0] [1] [2]"),
    "parquet": ("rows.parquet", parquet_file, "[0] [1] [2]"),
    "arrow file": ("rows.arrow", arrow_file, "[0] [1] [2]"),
    "arrow stream": ("rows.arrow", arrow_stream, "[0] [1] [2]"),
    "csv": ("rows.csv", lambda rows: b"prompt,response\r\nq,a\r\nq2,a2\r\nq3,a3\r\n", ":2 :3 :4"),
    "tsv": ("rows.tsv", lambda rows: b"prompt\tresponse\nq\ta\nq2\ta2\nq3\ta3", ":2 :3 :4"),
    "no suffix": ("rows", lambda rows: lines(*rows), ":1 :2 :3"),
    "gzip without the suffix": ("rows.jsonl", lambda rows: gzip.compress(lines(*rows)), ":1 :2 :3"),
    "parquet under another name": ("rows.jsonl", parquet_file, "[0] [1] [2]"),
    "BOM, CRLF and blank lines": ("rows.jsonl", windows, ":1 :3 :5"),
    "no newline at the end": ("rows.jsonl", lambda rows: lines(*rows).rstrip(), ":1 :2 :3"),
    "files joined with their BOMs": ("rows.jsonl", each(BOM.__add__), ":1 :2 :3"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_the_same_rows_from_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    name, written, expected = FILES[kind]
    path = tmp_path / name
    path.write_bytes(written(THREE))
    assert [row.value for row in read_rows(str(path)) if isinstance(row, Row)] == THREE
    assert places(path) == [f"{name}{place}" for place in expected.split()]


def test_a_cell_of_a_table_may_span_lines_and_hold_messages(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    cell = json.dumps(MESSAGES["messages"]).replace('"', '""')
    path.write_text(f'messages,prompt,response\n"{cell}",,\n', newline="")
    (found,) = read_conversations(str(path))
    assert isinstance(found, Conversation)
    assert found.messages == tuple(MESSAGES["messages"])
    path.write_text('prompt,response\n"two\nlines","a"\nq,a\n', newline="")
    assert [row.source.rpartition(":")[2] for row in read_rows(str(path))] == ["2", "4"]


@pytest.mark.parametrize(
    ("name", "data", "num_rows", "note"),
    [
        ("rows.json", lines(PAIR, PAIR), 2, "holds one JSON value per line"),
        ("rows.jsonl", json.dumps([PAIR, PAIR], indent=2).encode(), 2, "holds one JSON value over the whole file"),
        ("rows.jsonl", json.dumps([PAIR, PAIR]).encode(), 2, "holds one JSON value over the whole file"),
        ("rows.jsonl", json.dumps(PAIR, indent=2).encode(), 1, "holds one JSON value over the whole file"),
        ("rows.json", json.dumps(MESSAGES).encode(), 1, None),
        ("rows.json", json.dumps(MESSAGES, indent=2).encode(), 1, None),
    ],
)
def test_json_and_json_lines_under_each_others_names_are_taken_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, data: bytes, num_rows: int, note: str | None
) -> None:
    (tmp_path / name).write_bytes(data)
    with caplog.at_level(logging.WARNING):
        found = list(read_conversations(str(tmp_path / name)))
    assert [type(item) for item in found] == [Conversation] * num_rows
    assert [record.getMessage() for record in caplog.records] == (
        [f"{tmp_path}/{name}: {note}, unlike its name says; it is read as such."] if note else []
    )


def test_line_ends_are_newlines_and_nothing_else(tmp_path: Path) -> None:
    odd = {"prompt": "a\u2028b\u2029c\x85d\x0be", "response": "a"}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(odd, ensure_ascii=False)}\n" * 2)
    assert [row.value for row in read_rows(str(tmp_path / "rows.jsonl")) if isinstance(row, Row)] == [odd, odd]


def test_a_line_of_ten_megabytes(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(lines({"prompt": "x" * 10_000_000, "response": "a"}, PAIR))
    first, second = read_conversations(str(tmp_path / "rows.jsonl"))
    assert isinstance(first, Conversation)
    assert len(first.messages[0]["content"]) == 10_000_000
    assert second.source.endswith(":2")


def test_a_line_without_end_is_refused_and_reading_goes_on_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sft.text_rows.MAX_LINE_BYTES", 2**20)
    (tmp_path / "rows.jsonl").write_bytes(lines(PAIR) + b'{"prompt": "' + b"x" * 5 * 2**20 + b"\n" + lines(PAIR))
    first, long, last = read_rows(str(tmp_path / "rows.jsonl"))
    assert isinstance(long, BadRow)
    assert str(long) == f"{tmp_path}/rows.jsonl:2: the line is longer than 1 MiB; a row must be on a line of its own."
    assert (first.source[-2:], last.source[-2:]) == (":1", ":3")


def test_only_the_first_rows_and_nothing_behind_them_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(lines(PAIR) + b"\n\n" + lines(PAIR) + b"no JSON\n")
    assert [item.source[-2:] for item in read_conversations(str(tmp_path / "rows.jsonl"), max_rows=2)] == [":1", ":4"]
    *_, last = read_conversations(str(tmp_path / "rows.jsonl"), max_rows=3)
    assert isinstance(last, BadRow)
    assert last.source.endswith(":5:1")


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow stream", "csv"])
def test_a_file_is_never_whole_in_memory(tmp_path: Path, kind: str) -> None:
    name, written, _ = FILES[kind]
    row = {"prompt": "q" * 500, "response": "a" * 500}
    data = b"prompt,response\n" + b"q,a\n" * 20_000 if kind == "csv" else written([row] * 20_000)
    (tmp_path / name).write_bytes(data)
    del data
    list(itertools.islice(read_rows(str(tmp_path / name)), 3))  # what is imported on the way stays
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(str(tmp_path / name))) == 20_000
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4_000_000  # a thousand rows of a batch and buffers; all rows have 20 MB


def test_rows_come_before_the_rest_is_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines(*[PAIR] * 100_000))[:-2000])
    rows = read_rows(str(tmp_path / "rows.jsonl.gz"))
    assert next(rows).source.endswith(":1")
    with pytest.raises(DataError, match="cannot be read from here on"):
        list(rows)


def test_failure_mode_13_null_keys_that_arrow_filled_in_are_removed(tmp_path: Path) -> None:
    def called(**arguments: Any) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        return {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call]}]}

    rows = [called(city="Bonn"), called(radius=2, deep={"a": 1}), called(deep={"b": [{"x": 1}, {"y": None}]})]
    for name, written in (("rows.parquet", parquet_file), ("rows.arrow", arrow_stream), ("rows.jsonl", None)):
        (tmp_path / name).write_bytes(written(rows) if written else lines(*rows))
        found = [item for item in read_conversations(str(tmp_path / name)) if isinstance(item, Conversation)]
        arguments = [talk.messages[1]["tool_calls"][0]["function"]["arguments"] for talk in found]
        assert arguments[:2] == [{"city": "Bonn"}, {"radius": 2, "deep": {"a": 1}}]
        # In JSON a null is what somebody wrote; in Arrow nobody can tell.
        assert arguments[2] == {"deep": {"b": [{"x": 1}, {"y": None} if name == "rows.jsonl" else {}]}}


def test_failure_mode_16_the_first_row_decides_nothing(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    rows = [
        MESSAGES,
        PAIR,
        {"conversations": turns},
        {"x": 1},
        {"question": "q", "answer": "a"},
        MESSAGES,
        {"text": "t"},
    ]
    rows += [{"instruction": "q", "output": "a"}, {"prompt": MESSAGES["messages"][:1], "completion": "a"}]
    everything = {key: None for row in rows for key in row}
    for name, mixed in (("rows.jsonl", rows), ("nulls.jsonl", [{**everything, **row} for row in rows])):
        (tmp_path / name).write_bytes(lines(*mixed))
        found = list(read_conversations(str(tmp_path / name)))
        good = [item for item in found if isinstance(item, Conversation)]
        assert [talk.messages for talk in good] == [tuple(MESSAGES["messages"])] * 7
        assert [talk.format for talk in good] == [
            "messages", "prompt/response", "sharegpt", "question/answer", "messages", "alpaca", "prompt/completion",
        ]  # fmt: skip
        assert [item.source for item in found if isinstance(item, BadRow)] == [f"{tmp_path}/{name}:{n}" for n in (4, 7)]


def test_failure_mode_19_no_row_is_dropped_in_silence(tmp_path: Path) -> None:
    rows = [lines(PAIR)] * 97
    for number, bad in (
        (9, b"{\n"),
        (49, b'{"prompt": 1, "response": "a"}\n'),
        (80, b'{"prompt": 2, "response": "a"}\n'),
    ):
        rows.insert(number, bad)
    (tmp_path / "rows.jsonl").write_bytes(b"".join(rows))

    def counted(bad_rows: BadRows) -> tuple[int, BadRows]:
        num_good = 0
        for item in read_conversations(str(tmp_path / "rows.jsonl")):
            if isinstance(item, BadRow):
                bad_rows.add(item)
            else:
                num_good += 1
        bad_rows.finish(num_good + bad_rows.count)
        return num_good, bad_rows

    num_good, bad_rows = counted(BadRows("skip", 3))
    assert (num_good, bad_rows.count) == (97, 3)
    assert sum(bad_rows.reasons.values()) == 3
    assert bad_rows.reasons["`prompt` is a number; it must be text."] == 2
    assert [bad.source.removeprefix(f"{tmp_path}/rows.jsonl") for bad in bad_rows.examples] == [":10:2", ":50", ":81"]
    with pytest.raises(DataError, match=r"rows\.jsonl:81: .*\nThat is more than max_bad_rows: 2\."):
        counted(BadRows("skip", 2))
    with pytest.raises(DataError, match=r"rows\.jsonl:10:2: (.|\n)*\n3 of 100 rows cannot be used\.") as error:
        counted(BadRows("error", 100))
    assert error.value.exit_code == 3


def test_many_bad_rows_are_told_by_the_first_ten_and_by_reason() -> None:
    bad_rows = BadRows("error")
    for number in range(25):
        bad_rows.add(BadRow(f"a.jsonl:{number}", f"messages[{number}] is 'x{number}'; it must not be."))
    bad_rows.add(BadRow("b.jsonl:1", "something else."))
    with pytest.raises(DataError) as error:
        bad_rows.finish(30)
    told = str(error.value).splitlines()
    assert told[0] == "a.jsonl:0: messages[0] is 'x0'; it must not be."
    assert told[9] == "a.jsonl:9: messages[9] is 'x9'; it must not be."
    assert told[10:] == [
        "… and 16 more",
        "     25 × messages[…] is …; it must not be.",
        "      1 × something else.",
        "26 of 30 rows cannot be used.",
    ]


def test_skipping_every_row_leaves_nothing_to_train_on() -> None:
    bad_rows = BadRows("skip", 5)
    bad_rows.add(BadRow("a.jsonl:1", "broken."))
    bad_rows.finish(2)
    bad_rows.add(BadRow("a.jsonl:2", "broken."))
    with pytest.raises(DataError, match="2 of 2 rows cannot be used"):
        bad_rows.finish(2)
    with pytest.raises(DataError, match="the data holds no row"):
        BadRows("skip", 5).finish(0)


def folder(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(lines(PAIR))
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("names", "split", "taken"),
    [
        ("b.jsonl a.jsonl c/d.jsonl", "", "a.jsonl b.jsonl c/d.jsonl"),
        ("train.jsonl test.jsonl", "", "train.jsonl"),
        ("train.jsonl test.jsonl", "@test", "test.jsonl"),
        ("train-0-of-2.jsonl train-1-of-2.jsonl", "", "train-0-of-2.jsonl train-1-of-2.jsonl"),
        ("train/a.jsonl validation/a.jsonl", "", "train/a.jsonl"),
        ("train/a.jsonl dev/a.jsonl", "@validation", "dev/a.jsonl"),
        ("chat.jsonl math.jsonl test.jsonl", "", "chat.jsonl math.jsonl"),
        ("test.jsonl", "", "test.jsonl"),
        ("contest.jsonl latest.jsonl training_2.jsonl", "", "contest.jsonl latest.jsonl training_2.jsonl"),
        ("a.jsonl .hidden.jsonl _old/b.jsonl README.md dataset_info.json state.json", "", "a.jsonl"),
    ],
)  # fmt: skip
def test_the_files_of_a_folder(tmp_path: Path, names: str, split: str, taken: str) -> None:
    path = folder(tmp_path, *names.split())
    assert source_files(f"{path}{split}") == [path / name for name in taken.split()]
    assert places(path, f"{path}{split}") == [f"data/{name}:1" for name in taken.split()]


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        ("test.jsonl dev.jsonl", "", r"the folder has the splits test, validation\. Choose one: .*/data@test\."),
        ("train.jsonl", "@dev", r"data@validation: the folder has no such split; it has train\."),
        ("README.md", "", r"data: the folder holds no data; it must hold \.json, \.jsonl"),
    ],
)
def test_a_folder_that_leaves_open_what_is_meant(tmp_path: Path, names: str, split: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        source_files(f"{folder(tmp_path, *names.split())}{split}")


def test_held_out_files_that_are_left_out_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder(tmp_path, "train.jsonl", "test.jsonl")
    assert len(list(read_rows(str(path)))) == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: held-out splits are left out: test.jsonl. Name one with {path}@split."
    ]


def test_a_dataset_that_was_saved_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    saved = {split: datasets.Dataset.from_list([PAIR] * size) for split, size in (("train", 3), ("test", 2))}
    datasets.DatasetDict(saved).save_to_disk(str(tmp_path / "data"))
    assert [row.value for row in read_rows(str(tmp_path / "data")) if isinstance(row, Row)] == [PAIR] * 3
    assert len(list(read_rows(f"{tmp_path}/data@test"))) == 2


def test_what_the_datasets_library_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    path = folder(tmp_path, "train.jsonl", "test.jsonl")
    rows: list[Any] = [PAIR, {**PAIR, "meta": {"x": 1}}, {**PAIR, "meta": {"y": 1}}]
    (path / "train.jsonl").write_bytes(lines(*rows))
    assert list(hub_rows(str(path))) == [Row(row, f"{path}[{index}]") for index, row in enumerate(rows)]
    assert list(hub_rows(f"{path}:default@test")) == [Row(PAIR, f"{path}:default@test[0]")]
    assert source_files("owner/name:main@test") == []
    with pytest.raises(DataError, match="nowhere: neither a file nor a dataset that could be loaded: Couldn't find"):
        list(hub_rows(f"{tmp_path}/nowhere"))


@pytest.mark.parametrize(
    ("times", "num_rows"), [(1, 1000), (2, 2000), (0.5, 500), (2.5, 2500), (0.001, 1), (3.9, 3900)]
)
def test_a_source_is_seen_as_often_as_it_is_to_be(times: float, num_rows: int) -> None:
    seen = num_times(range(1000), times).tolist()
    assert abs(sum(seen) - num_rows) <= 2
    assert set(seen) <= {int(times), int(times) + 1}
    for start in range(0, 1000, 100):  # evenly over the source, and over what every second row may have in common
        assert abs(sum(seen[start : start + 100]) - num_rows / 10) <= 3
    assert abs(sum(seen[::2]) - num_rows / 2) <= 3
