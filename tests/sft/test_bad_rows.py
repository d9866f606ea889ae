"""Every way in which data goes wrong: the message names the place and the reason, and the run ends with code 3 before
its first step; or the row is counted and skipped."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from tiny import QWEN3, TOKENIZER

from sft.errors import DataError
from sft.formats import Conversation
from sft.rows import BadRow, BadRows
from sft.sources import read_conversations
from sft.train import main

ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
GOOD = json.dumps({"messages": [ASKED, SAID]})
PAIR = {"prompt": "q", "response": "a"}
MANY = b"".join(b'{"prompt": "%d", "response": "%d"}\n' % (number, number**90) for number in range(2000))


def talk(*turns: Any, **columns: Any) -> dict[str, Any]:
    return {"messages": list(turns), **columns}


def said(**more: Any) -> dict[str, Any]:
    return talk(ASKED, {**SAID, **more})


def content(value: Any) -> dict[str, Any]:
    return talk({"role": "user", "content": value}, SAID)


def call(**function: Any) -> dict[str, Any]:
    return talk(ASKED, {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]})


def sharegpt(turn: dict[str, Any]) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": "q"}, turn]}


ROWS: dict[str, tuple[Any, str]] = {
    # lines
    "half a row": ('{"prompt": "q", "resp', ":2:17: not valid JSON: Unterminated string starting at."),
    "a colon lost": ('{"prompt" "q", "response": "a"}', ":2:11: not valid JSON: Expecting ':' delimiter."),
    "two rows on a line": (f"{GOOD} {GOOD}", f":2:{len(GOOD) + 2}: not valid JSON: Extra data."),
    "Python, not JSON": ("{'prompt': 'q', 'response': 'a'}", ":2:2: not valid JSON: Expecting property name"),
    "trailing comma": ('{"prompt": "q", "response": "a",}', ":2:3"),
    "plain text": ("How are you?", ":2:1: not valid JSON: Expecting value."),
    "NUL bytes": (b"\0" * 100, ":2: the line holds NUL bytes, as a file does that was not written to its end."),
    "not UTF-8": (GOOD.encode() + b"\xff", f":2: byte {len(GOOD)} is not UTF-8. Save the file as UTF-8."),
    "Latin-1": ('{"prompt": "caf\xe9", "response": "a"}'.encode("latin-1"), ":2: byte 15 is not UTF-8."),
    "deep nesting": ('{"prompt": ' + "[" * 100_000, ":2: JSON that is nested too deeply."),
    "nesting that a parser takes": ('{"messages": ' + "[" * 900 + "]" * 900 + "}", ":2: messages[0] is a list; it"),
    "a number of 5000 digits": ('{"prompt": ' + "9" * 5000 + "}", ":2: JSON that cannot be read: Exceeds the limit"),
    "NaN": ('{"prompt": "q", "response": "a", "weight": NaN}', ":2: JSON that cannot be read: NaN is no JSON number."),
    "Infinity": ('{"prompt": "q", "score": -Infinity}', ":2: JSON that cannot be read: -Infinity is no JSON number."),
    "1e999": ('{"prompt": "q", "score": 1e999}', ":2: JSON that cannot be read: the number 1e999 is too large."),
    "a key twice": ('{"prompt": "q", "prompt": "p"}', ":2: JSON that cannot be read: the key 'prompt' stands twice"),
    # rows
    "null": (None, ":2: the row is null; it must be an object with named columns."),
    "a list": ([ASKED, SAID], ":2: the row is a list; it must be an object with named columns."),
    "a number": (7, ":2: the row is a number; it must be"),
    "text": ("q", ":2: the row is text; it must be"),
    "true": (True, ":2: the row is true; it must be"),
    "no columns": ({}, ":2: the row needs `messages`, or `prompt` and `response`, or another form "
                       "of docs/data-formats.md; it has the columns none. Map yours with columns: {prompt: …,"),
    "other columns": ({"input_text": "q", "target": None}, ":2: the row needs `messages`, or `prompt` and `response`, "
                      "or another form of docs/data-formats.md; it has the columns input_text, target (null)."),
    "text only": ({"text": "q a"}, ":2: the row has only a `text`, which does not say who speaks; it must hold turns."),
    "half a pair": ({"prompt": "q"}, ":2: the row needs `messages`, or `prompt` and `response`"),
    "null response": ({"prompt": "q", "response": None}, ":2: `response` is null; it must be text."),
    "number as prompt": ({"prompt": 1, "response": "a"}, ":2: `prompt` is a number; it must be text."),
    "two forms": ({**PAIR, "question": "q", "answer": "a"}, ":2: the row can be read as `prompt/response` or"),
    "alpaca without instruction": ({"instruction": "", "input": " ", "output": "a"}, ":2: `instruction` is empty;"),
    "alpaca with broken history": ({"instruction": "q", "output": "a", "history": [["q"]]}, ":2: `history` is a"),
    "empty response": ({"prompt": "q", "response": ""}, ":2: messages[1] is an assistant turn that is empty; it"),
    # messages
    "messages null": ({"messages": None}, ":2: the row needs `messages`, or `prompt` and `response`"),
    "messages an object": ({"messages": ASKED}, ":2: `messages` is an object; `messages` must be a list with at"),
    "messages empty": (talk(), ":2: `messages` is an empty list; `messages` must be a list with at least one message."),
    "messages text": ({"messages": "[{"}, ":2: `messages` is not valid JSON: Expecting property name enclosed in"),
    "message text": (talk("hi"), ":2: messages[0] is text; it must be an object with a `role` and a `content`."),
    "message null": (talk(ASKED, None), ":2: messages[1] is null; it must be an object"),
    "no role": (talk({"content": "x"}), ":2: messages[0] has no `role`; it must be an object with a `role` that is"),
    "role null": (talk({"role": None, "content": "x"}), ":2: messages[0] has a `role` that is null; it must be"),
    "role a number": (talk({"role": 1, "content": "x"}), ":2: messages[0] has a `role` that is a number; it must be"),
    "unknown role": (talk({"role": "critic", "content": "x"}), ":2: messages[0].role is 'critic'; it must be one of"),
    "unknown from": ({"conversations": [{"from": "moderator", "value": "x"}]}, ":2: conversations[0].from is"),
    "no answer": (talk(ASKED), ":2: no message has the role `assistant`: there is nothing to train on."),
    "empty answer": (talk(ASKED, {"role": "assistant", "content": None}), ":2: messages[1] is an assistant turn"),
    "blank answer": (talk(ASKED, {"role": "assistant", "content": " \n"}), ":2: messages[1] is an assistant turn that "
                     "is only white space; it must hold text, reasoning or a call. Take it out, or give it weight 0."),
    "two system messages": (talk({"role": "system", "content": "s"}, {"role": "system", "content": "t"}, ASKED, SAID),
                            ":2: messages[1] is a second system message in a row. Join the two."),
    "two system prompts": (talk({"role": "system", "content": "s"}, ASKED, SAID, system="t"),
                           ":2: the row has `system` and a first message with the role `system`. Keep one."),
    "result first": (talk({"role": "tool", "content": "r"}, SAID), ":2: messages[0] is a tool result; it must follow"),
    "result of a user": (talk(ASKED, {"role": "tool", "content": "r"}, SAID), ":2: messages[1] is a tool result; it"),
    # content
    "content missing": (talk({"role": "user"}, SAID), ":2: messages[0].content is missing; it must be text."),
    "value missing": ({"conversations": [{"from": "human"}]}, ":2: conversations[0].value is missing; it must be"),
    "content null": (content(None), ":2: messages[0].content is null; it must be text."),
    "content a number": (content(7), ":2: messages[0].content is a number; it must be text."),
    "content true": (content(True), ":2: messages[0].content is true; it must be text."),
    "content an object": (content({"text": "x"}), ":2: messages[0].content is an object; it must be text."),
    "part without type": (content([{"text": "x"}]), ":2: messages[0].content[0].type is missing; it must be one of"),
    "part an image": (content([{"type": "image_url", "url": "x"}]), ":2: messages[0].content[0].type is 'image_url'"
                      "; it must be one of reasoning, thinking, text,"),
    "part a number": (content([7]), ":2: messages[0].content[0] is a number; a content part must be an object with"),
    "part without text": (content([{"type": "text", "text": None}]), ":2: messages[0].content[0] has no text: it is"),
    "parts out of order": (said(content=[{"type": "text", "text": "a"}, {"type": "thinking", "thinking": "t"}]),
                           ":2: messages[1].content[1] stands too late; a turn is reasoning, then text, then calls."),
    "half a surrogate pair": ('{"prompt": "\\ud83d", "response": "a"}', ":2: `prompt` holds half of a surrogate"),
    "half a pair in a message": ('{"messages": [{"role": "assistant", "content": "x\\udc00"}]}',
                                 ":2: messages[0].content holds half of a surrogate pair, which is no character"),
    "half a pair in a call": (json.dumps(call(name="f", arguments={"x": ["\ud800"]})),
                              ":2: messages[1].tool_calls[0] holds half of a surrogate pair"),
    "half a pair in a call's JSON": (call(name="f", arguments='{"x": "\\ud800"}'),
                                     ":2: messages[1].tool_calls[0] holds half of a surrogate pair"),
    "half a pair in reasoning": (json.dumps(said(thinking="\udc00")), ":2: messages[1]'s reasoning holds half of a"),
    # reasoning, calls, tools
    "a user who reasons": (talk({**ASKED, "thinking": "t"}, SAID), ":2: messages[0] has the role `user` and"),
    "a user who calls": (talk({**ASKED, "tool_calls": [{"name": "f"}]}, SAID), ":2: messages[0] has the role `user`"),
    "reasoning twice": (said(thinking="t", reasoning_content="u"), ":2: messages[1] has reasoning in two places"),
    "reasoning a number": (said(reasoning=1), ":2: messages[1].reasoning is a number; it must be text."),
    "arguments broken": (call(name="f", arguments='{"x": '), ":2: messages[1].tool_calls[0].arguments is not valid "
                         "JSON: Expecting value at column 7."),
    "arguments a list": (call(name="f", arguments=[1]), ":2: messages[1].tool_calls[0].arguments is a list; it must"),
    "arguments JSON of a number": (call(name="f", arguments="1"), ":2: messages[1].tool_calls[0].arguments is a"),
    "arguments with NaN": (call(name="f", arguments='{"x": NaN}'), ":2: messages[1].tool_calls[0].arguments is JSON"),
    "call without name": (call(arguments={}), ":2: messages[1].tool_calls[0] has no name; a call must be an object"),
    "call a number": (said(tool_calls=[7]), ":2: messages[1].tool_calls[0] is a number; a call must be an object"),
    "calls a number": (said(tool_calls=7), ":2: messages[1].tool_calls is a number; it must be a call {name,"),
    "calls no JSON": (said(tool_calls="f(1)"), ":2: messages[1].tool_calls is not valid JSON: Expecting value at"),
    "function_call no JSON": (sharegpt({"from": "function_call", "value": "f(1)"}),
                              ":2: conversations[1].value is not valid JSON: Expecting value at column 1."),
    "function_call null": (sharegpt({"from": "function_call", "value": None}),
                           ":2: conversations[1].value is null; it must be a call {name, arguments} or a list of"),
    "tools broken": (talk(ASKED, SAID, tools="[{]"), ":2: `tools` is not valid JSON: "),
    "tools a number": (talk(ASKED, SAID, tools=3), ":2: `tools` is a number; it must be a list of function schemas."),
    "tool without name": (talk(ASKED, SAID, tools=[{"description": "d"}]), ":2: tools[0] has no name; it must be a"),
    "tool a name": (talk(ASKED, SAID, tools=[3]), ":2: tools[0] is a number; it must be a function's schema, an"),
    # weights and variables
    "weight negative": (said(weight=-1), ":2: messages[1].weight is -1; it must be a number of at least 0."),
    "weight text": (said(weight="1"), ":2: messages[1].weight is '1'; it must be a number of at least 0."),
    "weight true": (said(loss_weight=True), ":2: messages[1].loss_weight is true; it must be a number of at least 0."),
    "two weights": (said(weight=1, loss_weight=2), ":2: messages[1].weight and loss_weight differ. Keep one."),
    "train text": (said(train="no"), ":2: messages[1].train is 'no'; it must be true or false."),
    "train misspelt": (said(trian=False), ":2: messages[1].trian is not known; it must be train, or another name"),
    "weight misspelt": (said(wieght=0), ":2: messages[1].wieght is not known; it must be weight, or another name"),
    "train a number": (said(train=1), ":2: messages[1].train is 1; it must be true or false."),
    "no turn has weight": (said(train=False), ":2: every assistant turn has weight 0: there is nothing to train on."),
    "row weight negative": (said() | {"weight": -0.5}, ":2: `weight` is -0.5; it must be a number of at least 0."),
    "row weight 0": (said() | {"weight": 0}, ":2: every assistant turn has weight 0: there is nothing to train on."),
    "weights too large": (said(weight=1e300) | {"weight": 1e300}, ":2: the row's weight times a message's is too"),
    "variables text": (said() | {"chat_template_kwargs": "no"}, ":2: `chat_template_kwargs` is not valid JSON: "),
    "variables a list": (said() | {"chat_template_kwargs": [1]}, ":2: `chat_template_kwargs` is a list; it must be"),
    "variables of ours": (said() | {"chat_template_kwargs": {"tools": []}}, ":2: `chat_template_kwargs` sets"),
}  # fmt: skip


def line(row: Any) -> bytes:
    return row if isinstance(row, bytes) else (row if isinstance(row, str) and row != "q" else json.dumps(row)).encode()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words of a run that would train if its data were good."""
    folder = tmp_path_factory.mktemp("run")
    words = {"model_config": json.dumps(QWEN3), "tokenizer_name": TOKENIZER, "output_dir": folder, "report_to": "none"}
    return [f"--{name}={value}" for name, value in {**words, "bf16": "false", "save_steps": 0, "max_steps": 1}.items()]


def error_of(settings: list[str], source: str, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """What the training script says about its data, when it ends with code 3."""
    capsys.readouterr()
    assert main([*settings, f"--train_file={source}", *more]) == 3
    (_, message) = capsys.readouterr().err.split("error: ", 1)
    return str(message)


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_row_ends_the_run_with_its_place_and_reason(
    name: str, tmp_path: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    row, message = ROWS[name]
    (tmp_path / "rows.jsonl").write_bytes(GOOD.encode() + b"\n" + line(row) + b"\n" + GOOD.encode() + b"\n")
    told = error_of(settings, f"{tmp_path}/rows.jsonl", capsys)
    assert told.startswith(f"{tmp_path}/rows.jsonl{message}")
    assert told.splitlines()[1:] == ["1 of 3 rows cannot be used."]
    assert not any(word in told for word in ("NoneType", "Traceback", " dict", " str ", " int "))


def test_all_bad_rows_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    lines = [GOOD.encode(), *(line(row) for row, _ in ROWS.values()), GOOD.encode()]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    bad_rows, good = BadRows("skip", len(ROWS)), 0
    for item in read_conversations(f"{tmp_path}/rows.jsonl"):
        if isinstance(item, BadRow):
            bad_rows.add(item)
        else:
            good += 1
    bad_rows.finish(good + bad_rows.count)
    assert (good, bad_rows.count) == (2, len(ROWS))
    limited = BadRows("skip", 3)
    bad = BadRow("rows.jsonl:2", "broken.")
    for _ in range(3):
        limited.add(bad)
    with pytest.raises(DataError, match=r"That is more than max_bad_rows: 3\."):
        limited.add(bad)


def test_a_row_that_ends_with_the_file_is_said_to(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(f'{GOOD}\n{{"prompt": "q", "resp')
    _, bad = read_conversations(f"{tmp_path}/rows.jsonl")
    reason = "not valid JSON: Unterminated string starting at; the file ends in the middle of this row."
    assert bad == BadRow(f"{tmp_path}/rows.jsonl:2:17", reason)


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        ({"prompt": "ask", "response": "reply"}, {"question": "q", "reply": "a"},
         "columns says {prompt: ask}, which the row does not have; it has the columns question, reply."),
        ({"messages": "dialog"}, {"prompt": "q", "text": "t"},
         "columns says {messages: dialog}, which the row does not have; it has the columns prompt, text."),
        ({"prompt": "ask", "response": "reply"}, {"ask": "q", "reply": None}, "`reply` is null; it must be text."),
        ({"prompt": "ask", "response": "reply"}, {"ask": 3, "reply": "a"}, "`ask` is a number; it must be text."),
        ({"messages": "dialog"}, {"dialog": [{"role": "user"}]}, "dialog[0].content is missing; it must be text."),
        ({"tools": "functions"}, {"messages": [ASKED], "functions": None}, "no message has the role `assistant`"),
        ({"system": "rules"}, {"question": "q"}, "the row needs `messages`, or `prompt` and `response`"),
    ],
)  # fmt: skip
def test_a_mapping_that_does_not_fit_is_told_in_the_files_own_names(
    tmp_path: Path, columns: dict[str, str], row: dict[str, Any], message: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (bad,) = read_conversations(f"{tmp_path}/rows.jsonl", columns)
    assert str(bad).startswith(f"{tmp_path}/rows.jsonl:1: {message}")


def damaged_gzip() -> bytes:
    data = bytearray(gzip.compress(MANY))
    data[-6] ^= 1  # in the checksum
    return bytes(data)


def zstd(data: bytes) -> bytes:
    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


def parquet_file(num_rows: int) -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist([PAIR] * num_rows), sink)
    return bytes(sink.getvalue().to_pybytes())


def arrow_file() -> bytes:
    table, sink = pyarrow.Table.from_pylist([PAIR] * 50), pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def zip_file() -> bytes:
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("rows.jsonl", GOOD)
        file.seek(0)
        return file.read()


FILES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "nothing": ("rows.jsonl", lambda: b"", ": the file holds no row."),
    "blank lines": ("rows.jsonl", lambda: b"\n\r\n \n", ": the file holds no row."),
    "only a BOM": ("rows.jsonl", lambda: b"\xef\xbb\xbf", ": the file holds no row."),
    "an empty list": ("rows.json", lambda: b"[]", ": the file holds no row."),
    "an empty JSON": ("rows.json", lambda: b" ", ": the file holds no row."),
    "only a header": ("rows.csv", lambda: b"prompt,response\n", ": the file holds no row."),
    "no rows of Parquet": ("rows.parquet", lambda: parquet_file(1)[:0], ": the file holds no row."),
    "UTF-16": ("rows.jsonl", lambda: GOOD.encode("utf-16"), ": is text in UTF-16 and not UTF-8; it must be JSON"),
    "UTF-16 without BOM": ("rows.jsonl", lambda: GOOD.encode("utf-16-le"), ": is text in UTF-16 or UTF-32 and not"),
    "UTF-32": ("rows.json", lambda: GOOD.encode("utf-32-be"), ": is text in UTF-16 or UTF-32 and not UTF-8. Save"),
    "truncated gzip": ("rows.jsonl.gz", lambda: gzip.compress(MANY)[:-20],
                       ": cannot be read from here on: Compressed file ended before the end-of-stream marker was"),
    "damaged gzip": ("rows.jsonl.gz", damaged_gzip, ": cannot be read from here on: CRC check failed"),
    "truncated zstd": ("rows.jsonl.zst", lambda: zstd(MANY)[:-5],
                       ": cannot be read from here on: Truncated compressed stream."),
    "truncated Parquet": ("rows.parquet", lambda: parquet_file(50)[:-50], ": cannot be read as Parquet: "),
    "truncated Arrow": ("rows.arrow", lambda: arrow_file()[:-50], ": cannot be read as Arrow: "),
    "text as Parquet": ("rows.parquet", GOOD.encode, ": is no Parquet file, whatever its name says."),
    "text as Arrow": ("rows.arrow", GOOD.encode, ": is no Arrow file, whatever its name says."),
    "a pickle": ("rows.json", lambda: pickle.dumps([PAIR]), ": is a pickle, which could run code; it must be JSON"),
    "a ZIP archive": ("rows.jsonl", zip_file, ": is a ZIP archive (also .xlsx, .npz and PyTorch files are); it must"),
    "a PDF": ("rows.json", lambda: b"%PDF-1.7\n", ": is a PDF document; it must be JSON"),
    "bzip2": ("rows.jsonl", lambda: b"BZh91AY&SY", ": is compressed with bzip2; it must be JSON"),
    "a tar archive": ("rows.jsonl.gz", lambda: gzip.compress(b"rows.jsonl".ljust(257, b"\0") + b"ustar\0"),
                      ": is a tar archive. Unpack it."),
    "a web page": ("rows.jsonl", lambda: b"\n<!DOCTYPE html><html>", ": is a web page (HTML or XML), perhaps of a"),
    "a web page as CSV": ("rows.csv", lambda: b"<html><body>404", ": is a web page (HTML or XML), perhaps of a failed"),
    "a Git LFS pointer": ("rows.jsonl", lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
                          ": is a pointer of Git LFS and not the file itself; it must be JSON, JSON Lines, CSV, "
                          "Parquet or Arrow. Fetch it with `git lfs pull`."),
    "prose": ("rows.txt", lambda: b"Once upon a time", ": is no data file that is known; it must be JSON"),
    "broken JSON": ("rows.json", f"[{GOOD},\nx]".encode, ":2:1: not valid JSON: Expecting value."),
    "half a JSON": ("rows.json", f"[\n{GOOD},\n{GOOD[:30]}".encode, ":3:31: not valid JSON: "),
    "JSON not UTF-8": ("rows.json", lambda: b'[\n{"prompt": "\xff"}]', ":2: byte 14 is not UTF-8. Save the file as"),
    "JSON of a number": ("rows.json", lambda: b"7", ": the file holds a number; it must hold a list of rows."),
    "an object without rows": ("rows.json", lambda: b'{"version": 1}', ": the file holds an object with no list; it"),
    "an object with two lists": ("rows.json", lambda: b'{"a": [], "b": []}', ": the file holds an object with 2"),
    "deep JSON": ("rows.json", lambda: b"[" * 100_000, ": JSON that is nested too deeply."),
    "rows over several lines": ("rows.jsonl", lambda: b'{\n"prompt": "q",\n"response": "a"\n}\n{\n}\n',
                                ":5:1: not valid JSON: Extra data. A row of JSON Lines stands on one line."),
    "an open quote": ("rows.csv", lambda: b'prompt,response\nq,a\nq,"a\nq,a\n', ":3: no valid CSV: unexpected end"),
    "a column twice": ("rows.csv", lambda: b"prompt,prompt\nq,a\n", ":1: a column's name stands twice; each must be"),
    "CSV not UTF-8": ("rows.csv", lambda: b"prompt,response\nq,caf\xe9\n", ":2: byte 5 is not UTF-8. Save the file"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_data_ends_the_run(
    name: str, tmp_path: Path, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file, written, message = FILES[name]
    (tmp_path / file).write_bytes(written())
    told = error_of(settings, f"{tmp_path}/{file}", capsys)
    place = told.removeprefix(f"{tmp_path}/{file}")
    if "from here on" in message:  # the line depends on the library's buffers
        number, place = place.removeprefix(":").split(":", 1)
        assert 1000 <= int(number) <= 2001
        place = f":{place}"
    assert place.startswith(message)
    assert len(told.splitlines()) == 1


def test_rows_of_a_table_with_too_many_or_too_few_cells(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,response\nq,a\nq\nq,a,b\n\nq,a\n")
    found = list(read_conversations(f"{tmp_path}/rows.csv"))
    assert [str(item).removeprefix(str(tmp_path)) for item in found if isinstance(item, BadRow)] == [
        "/rows.csv:3: the row has 1 cells; it must have 2.",
        "/rows.csv:4: the row has 3 cells; it must have 2.",
    ]
    assert [item.source[-2:] for item in found if isinstance(item, Conversation)] == [":2", ":6"]


def test_what_is_no_file(tmp_path: Path, settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.jsonl").write_text(GOOD)
    for name, message in {
        "pipe": "pipe: is neither a file nor a folder.",
        "empty": "empty: the folder holds no data; it must hold .json",
        "rows.jsonl@test": "rows.jsonl@test: a file has no splits; name ",
    }.items():
        assert error_of(settings, f"{tmp_path}/{name}", capsys).startswith(f"{tmp_path}/{message}")
    for name, message in {
        "loop": "loop: cannot be read: Too many levels of symbolic links.",
        "dangling": "dangling: cannot be read: No such file or directory.",
        "gone.jsonl": "gone.jsonl: no such file or folder.",
        "rows.jsonl/x.jsonl": "rows.jsonl/x.jsonl: no such file or folder.",
    }.items():
        with pytest.raises(DataError) as error:
            list(read_conversations(f"{tmp_path}/{name}"))
        assert str(error.value) == f"{tmp_path}/{message}"


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that everybody may read, while this process may no more than anybody."""
    if os.geteuid() == 0:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)
            yield Path(folder)
            os.seteuid(0)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def test_what_may_not_be_read(as_nobody: Path) -> None:
    (as_nobody / "rows.jsonl").write_text(GOOD)
    (as_nobody / "rows.jsonl").chmod(0)
    (as_nobody / "locked").mkdir()
    (as_nobody / "locked" / "rows.jsonl").write_text(GOOD)
    (as_nobody / "locked").chmod(0)
    if os.geteuid() == 0:  # root may read everything
        os.seteuid(65534)
    with pytest.raises(DataError, match=r"rows\.jsonl: cannot be read: Permission denied\."):
        list(read_conversations(f"{as_nobody}/rows.jsonl"))
    with pytest.raises(DataError, match=r"locked: cannot be read: Permission denied\."):
        list(read_conversations(f"{as_nobody}/locked"))
