"""Rows of every shape that is taken, and the message for every shape that is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sft.errors import DataError
from sft.formats import read_conversations

MESSAGES = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
PAIR = {"prompt": "q", "response": "a"}


def write(path: Path, *lines: object) -> str:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)


def test_rows_decide_for_themselves(tmp_path: Path) -> None:
    first, second = read_conversations(write(tmp_path / "mixed.jsonl", MESSAGES, "", PAIR))
    assert first.messages == second.messages
    assert [first.source, second.source] == [f"{tmp_path}/mixed.jsonl:{line}" for line in (1, 3)]


def test_json_lists_bom_and_line_ends(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps([PAIR, MESSAGES]))
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(PAIR).encode() + b"\r\n\r\n")
    assert len(read_conversations(str(tmp_path / "list.json"))) == 2
    assert len(read_conversations(str(tmp_path / "bom.jsonl"))) == 1


def test_columns_are_mapped(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", {"question": "q", "answer": "a"})
    (talk,) = read_conversations(file, {"prompt": "question", "response": "answer"})
    assert talk.messages == ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})


def test_only_the_first_rows(tmp_path: Path) -> None:
    assert len(read_conversations(write(tmp_path / "rows.jsonl", *[PAIR] * 5), max_rows=3)) == 3


def test_a_folder_is_read_by_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.jsonl", PAIR, PAIR)
    assert len(read_conversations(str(tmp_path / "data"))) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "q"', "rows.jsonl:2: not valid JSON at column"),
        ({"question": "q"}, "rows.jsonl:2: the row needs `messages`, or `prompt` and `response`; it has the columns q"),
        ([1], "rows.jsonl:2: the row is a list; it must be an object"),
        ({"prompt": 1, "response": "a"}, "rows.jsonl:2: `prompt` is a int; it must be text"),
        ({"messages": []}, "rows.jsonl:2: `messages` must be a list with at least one message"),
        ({"messages": [{"content": "x"}]}, r"rows.jsonl:2: messages\[0\] must be an object with a `role`"),
        ({"messages": [{"role": "user"}]}, r"rows.jsonl:2: messages\[0\].content is a NoneType; it must be text"),
        ({"messages": [{"role": "user", "content": "x"}]}, "rows.jsonl:2: no message has the role `assistant`"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        read_conversations(write(tmp_path / "rows.jsonl", PAIR, line))
    assert error.value.exit_code == 3


def test_many_bad_rows_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"… and 15 more\n25 of 26 rows cannot be used"):
        read_conversations(write(tmp_path / "rows.jsonl", PAIR, *[{"x": 1}] * 25))


@pytest.mark.parametrize(("content", "message"), [(b"", "holds no row"), (b"\xff\xfe{", "not UTF-8")])
def test_empty_and_foreign_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_conversations(str(tmp_path / "rows.jsonl"))
