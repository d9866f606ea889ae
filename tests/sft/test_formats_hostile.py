"""Files that a program or a person got wrong in ways that parsers do not expect."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sft.errors import DataError
from sft.formats import read_conversations

PAIR = json.dumps({"prompt": "q", "response": "a"})


def refusal(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as caught:
        read_conversations(str(path))
    return str(caught.value)


def test_the_rows_after_those_that_are_wanted_are_not_even_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{PAIR}\n{PAIR}\nnot JSON\n")
    assert len(read_conversations(str(tmp_path / "rows.jsonl"), max_rows=2)) == 2
    with pytest.raises(DataError, match=r"rows\.jsonl:3: not valid JSON at column 1"):
        read_conversations(str(tmp_path / "rows.jsonl"), max_rows=3)


def test_max_rows_counts_rows_and_not_lines(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{PAIR}\n\n\n{PAIR}\n{PAIR}\n")
    sources = [talk.source.rpartition(":")[2] for talk in read_conversations(str(tmp_path / "rows.jsonl"), max_rows=2)]
    assert sources == ["1", "4"]


def test_half_a_surrogate_pair_is_refused_before_a_tokenizer_meets_it(tmp_path: Path) -> None:
    row = '{"prompt": "\\ud83d", "response": "a"}'
    assert "rows.jsonl:1: `prompt` holds half of a surrogate pair" in refusal(tmp_path / "rows.jsonl", row)
    row = '{"messages": [{"role": "assistant", "content": "x\\udc00"}]}'
    assert "messages[0].content holds half of a surrogate pair" in refusal(tmp_path / "rows.jsonl", row)
    (tmp_path / "whole.jsonl").write_text('{"prompt": "\\ud83d\\ude00", "response": "a"}')
    assert read_conversations(str(tmp_path / "whole.jsonl"))[0].messages[0]["content"] == "😀"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("9" * 5000, "rows.jsonl:1: JSON that cannot be read"),
        ("[" * 100_000, "rows.jsonl:1: JSON that cannot be read"),
        ("null", "rows.jsonl:1: the row is a NoneType; it must be an object with named columns."),
        ('{"prompt": "q", "response": null}', "rows.jsonl:1: the row needs `messages`, or `prompt` and `response`"),
        ("{}", "it has the columns none."),
        ('{"messages": {"role": "user"}}', "`messages` must be a list with at least one message."),
        ('{"messages": ["hi"]}', "messages[0] must be an object with a `role` that is text."),
        ('{"messages": [{"role": "assistant", "content": ["a"]}]}', "messages[0].content is a list; it must be text."),
        (PAIR.encode() + b"\n\xff\xfe", "rows.jsonl:2: byte 0 is not UTF-8. Save the file as UTF-8."),
    ],
    ids=lambda value: repr(value)[:25],
)
def test_a_row_that_no_parser_expects_is_refused_with_its_line(tmp_path: Path, row: str | bytes, message: str) -> None:
    assert message in refusal(tmp_path / "rows.jsonl", row)


def test_a_json_file_holds_a_list_and_names_the_line_of_a_mistake(tmp_path: Path) -> None:
    assert "the file holds a dict; it must hold a list of rows." in refusal(tmp_path / "rows.json", PAIR)
    assert "rows.json: not valid JSON at line 2, column 1" in refusal(tmp_path / "rows.json", f"[{PAIR},\nx]")
    assert "rows.json[1]: the row is a int" in refusal(tmp_path / "rows.json", f"[{PAIR}, 3]")
    assert "holds no row" in refusal(tmp_path / "rows.json", "[]")


def test_all_bad_rows_of_a_file_come_in_one_message(tmp_path: Path) -> None:
    lines = refusal(tmp_path / "rows.jsonl", f"3\n{PAIR}\n{{}}\n").splitlines()
    assert [line.split(": ")[0].rpartition(":")[2] for line in lines[:2]] == ["1", "3"]
    assert lines[2] == "2 of 3 rows cannot be used."


def test_a_dataset_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(DataError, match="neither a JSON or JSONL file nor a dataset that could be loaded"):
        read_conversations(str(tmp_path / "nowhere"))


def test_messages_and_splits_of_a_dataset_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(f"{json.dumps({'messages': messages})}\n" * 2)
    (tmp_path / "data" / "test.jsonl").write_text(f"{json.dumps({'messages': messages})}\n")
    train = read_conversations(str(tmp_path / "data"))
    assert [dict(message) for message in train[0].messages] == messages
    assert [talk.source for talk in train] == [f"{tmp_path}/data[0]", f"{tmp_path}/data[1]"]
    assert len(read_conversations(f"{tmp_path}/data@test")) == 1
