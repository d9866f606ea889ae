"""`python -m sft inspect`: what is printed for people and for programs, and the page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tiny import QWEN3, TOKENIZER, write_conversations
from transformers import AutoTokenizer

from sft.__main__ import main
from sft.config import ROOT

TEMPLATES = ROOT / "tests" / "oracle" / "templates"
CHAT = [{"role": "user", "content": "Which day?"}, {"role": "assistant", "content": "Friday."}]


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Any:
    """(exit code, stdout, stderr) of a command line."""

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["inspect", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def printed(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


# --- for programs


def test_json_has_whole_documents_of_all_rows(tmp_path: Path, inspect: Any) -> None:
    rows = [{"messages": CHAT}, {"nothing": 1}, {"question": "1 + 1?", "answer": "2"}, "{broken\n", {"messages": CHAT}]
    code, out, _ = inspect(write(tmp_path / "data.jsonl", *rows), "--json", "--tokenizer", TOKENIZER)
    found = printed(out)
    assert code == 0
    assert [item["row"] for item in found] == [0, 1, 2, 3, 4]
    assert [item["source"].split("data.jsonl:")[1].split(":")[0] for item in found] == ["1", "2", "3", "4", "5"]
    assert ["refused" in item for item in found] == [False, True, False, True, False]
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    assert found[0]["input_ids"] == tokenizer.apply_chat_template(CHAT, tokenize=True)["input_ids"]
    assert set(found[0]) >= {"document", "trained", "weights", "notes", "truncated"}
    trained = [token for token, flag in zip(found[0]["input_ids"], found[0]["trained"], strict=True) if flag]
    assert tokenizer.decode(trained) == "Friday.<|im_end|>"
    assert (found[0]["weights"], found[0]["truncated"], found[0]["document"]) == (None, False, 0)
    assert set(found[1]) == {"row", "source", "refused"}


def test_json_is_cut_only_where_a_length_is_given(tmp_path: Path, inspect: Any) -> None:
    file = write(tmp_path / "data.jsonl", {"messages": CHAT * 9})
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"model_config": QWEN3, "tokenizer_name": TOKENIZER, "train_file": file,
                                  "max_length": 20}))  # fmt: skip
    _, whole, _ = inspect(file, "--json", "--config", str(config))
    _, cut, _ = inspect(file, "--json", "--max_length", "20")
    _, dropped, _ = inspect(file, "--json", "--max_length=20", "--truncation=drop")
    (whole,), (cut,), (dropped,) = printed(whole), printed(cut), printed(dropped)
    assert (len(cut["input_ids"]), cut["truncated"], whole["truncated"]) == (15, True, False)  # the first answer's end
    assert cut["input_ids"] == whole["input_ids"][:15]
    assert (dropped["input_ids"], dropped["truncated"]) == ([], True)
    assert "longer than max_length" in dropped["dropped"]


def test_json_cut_from_the_left_keeps_whole_turns(tmp_path: Path, inspect: Any) -> None:
    chat = [{"role": "system", "content": "Short."}, *CHAT * 9]
    _, out, _ = inspect(
        write(tmp_path / "a.jsonl", {"messages": chat}), "--json", "--max_length=40", "--truncation=left"
    )
    text = AutoTokenizer.from_pretrained(TOKENIZER).decode(printed(out)[0]["input_ids"])
    assert text.startswith("<|im_start|>system\nShort.<|im_end|>\n<|im_start|>user\nWhich")
    assert text.endswith("Friday.<|im_end|>")


def test_weights_and_mask_settings_are_options(tmp_path: Path, inspect: Any) -> None:
    chat = [*CHAT, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Monday.", "weight": 0.5}]
    file = write(tmp_path / "data.jsonl", {"messages": chat})
    _, out, _ = inspect(file, "--json")
    both = printed(out)[0]
    assert set(both["weights"]) == {0.0, 0.5, 1.0}
    _, out, _ = inspect("--train_on", "last", "--json", file)
    assert sum(printed(out)[0]["trained"]) < sum(both["trained"])


def test_rows_are_chosen_by_number(tmp_path: Path, inspect: Any) -> None:
    file = str(write_conversations(tmp_path / "data.jsonl", 6))
    chosen = {("--row", "4"): [4], ("--rows", "2:4"): [2, 3], ("--rows", "4:"): [4, 5], (): [0, 1, 2, 3, 4, 5]}
    for words, rows in chosen.items():
        assert [item["row"] for item in printed(inspect(file, "--json", *words)[1])] == rows


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["gone.jsonl"], 3, "no such file"),
        (["{file}", "--row", "77"], 2, "--row is '77'; it must be among the data's rows"),
        (["{file}", "--row", "-1"], 2, "--row"),
        (["{file}", "--rows", "1-2"], 2, "must be A:B"),
        (["{file}", "--row", "1", "--rows", "1:2"], 2, "not be given with --row"),
        (["{file}", "--train_onn", "last"], 2, "Did you mean 'train_on'?"),
        (["{file}", "--tokenizer", "/no/where"], 2, "/no/where"),
        (["{file}", "--chat-template", "none.jinja"], 2, "none.jinja"),
        (["{file}", "--chat-template", "{folder}"], 2, "chat_template_path"),
        ([], 2, "FILE"),
    ],
)
def test_what_cannot_be_done_is_told(tmp_path: Path, inspect: Any, words: list[str], code: int, said: str) -> None:
    file = write(tmp_path / "data.jsonl", {"messages": CHAT})
    words = [word.format(file=file, folder=tmp_path) for word in words]
    found, out, err = inspect(*words)
    assert (found, out) == (code, "")
    assert said in err


def test_a_file_that_breaks_off_is_an_error_of_the_data(tmp_path: Path, inspect: Any) -> None:
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(b"\x1f\x8b\x08\x00 this is no gzip")
    code, _, err = inspect(str(path), "--json")
    assert code == 3
    assert str(path) in err


def test_a_bare_tokenizer_gets_the_bundled_template(tmp_path: Path, inspect: Any) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "tokenizer.json").write_bytes((Path(TOKENIZER) / "tokenizer.json").read_bytes())
    file = write(tmp_path / "data.jsonl", {"messages": CHAT})
    for name in (tmp_path / "bare", tmp_path / "bare" / "tokenizer.json"):
        code, out, err = inspect(file, "--json", "--tokenizer", str(name))
        assert (code, sum(printed(out)[0]["trained"])) == (0, 4)
        assert "the bundled chatml is taken" in err
    _, _, err = inspect(file, "--json", "--tokenizer", str(tmp_path / "bare"), "--chat-template", "chatml")
    assert "bundled" not in err


# --- for people


def test_without_colour_what_is_trained_stands_in_brackets(tmp_path: Path, inspect: Any) -> None:
    file = write(tmp_path / "data.jsonl", {"messages": CHAT}, {"nothing": 1})
    code, out, err = inspect(file)
    assert code == 0
    assert "the quick start's small one is taken" in err
    assert f"── {file}:1 · row 0 · messages · " in out
    assert "assistant↵\n⟦Friday.<|im_end|>⟧↵" in out
    assert "Which day?<|im_end|>↵" in out
    assert f"── {file}:2 · row 1\nrefused: the row needs `messages`" in out
    assert "\x1b" not in out


def test_colour_is_for_terminals_unless_it_is_asked_for(
    tmp_path: Path, inspect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "data.jsonl", {"messages": CHAT})
    assert "\x1b[" in inspect(file, "--color=always")[1]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in inspect(file)[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in inspect(file)[1]


def test_painted_text_is_the_text(tmp_path: Path, inspect: Any) -> None:
    """Nothing is lost by showing tokens one by one, also where several make up one character."""
    answer = "naïve 你好 🙂 − x" + " = \ufffd end"
    file = write(tmp_path / "data.jsonl", {"prompt": "?", "response": answer})
    for color in ("always", "never"):
        out = inspect(file, f"--color={color}")[1]
        assert answer in re.sub(r"\x1b\[[0-9;]*m", "", out)


def test_data_cannot_steer_the_terminal(tmp_path: Path, inspect: Any) -> None:
    file = write(tmp_path / "data.jsonl", {"prompt": "\x1b]0;title\x07 \u202e", "response": "ok"}, {"\x1b[31m": 1})
    out = inspect(file)[1]
    assert not set(out) & {"\x1b", "\x07", "\u202e"}
    assert "␛]0;title␇ \\u202e" in out


def test_what_is_cut_off_is_shown_with_the_reason(tmp_path: Path, inspect: Any) -> None:
    file = write(tmp_path / "data.jsonl", {"messages": CHAT * 4})
    out = inspect(file, "--max_length", "24")[1]
    assert "15 of 64 tokens, 4 trained" in out
    assert "truncated" in out
    assert re.search(r"✂⟨.*Which day\?", out, re.DOTALL)


def test_long_documents_are_shortened_unless_wanted_in_full(tmp_path: Path, inspect: Any) -> None:
    file = write(tmp_path / "data.jsonl", {"prompt": "a " * 4000, "response": "the end"})
    short, full = inspect(file)[1], inspect(file, "--full")[1]
    assert len(short) < 4500
    assert len(full) > 8000
    assert "--full prints them" in short
    assert "⟦the end<|im_end|>⟧" in short


def test_failure_mode_14_inspect_names_injected_text(tmp_path: Path, inspect: Any) -> None:
    empty = {"messages": [{"role": "system", "content": ""}, *CHAT]}
    file = write(tmp_path / "data.jsonl", {"messages": CHAT}, empty)
    template = str(TEMPLATES / "chatml-default-system.jinja")
    code, out, _ = inspect(file, "--chat-template", template)
    without, with_empty = out.split("── ")[1:]
    injected = re.search(r"note: the template adds a text of its own: '(.+)'", without)
    assert code == 0
    assert injected is not None
    assert injected[1] == "system You answer briefly."
    assert "You answer briefly" in without.split("note:")[0]
    assert "You answer briefly" not in with_empty
    assert "<|im_start|>system↵\n<|im_end|>" in with_empty


# --- the page


class Page(HTMLParser):
    """What is in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.tips: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.links += [str(values[name]) for name in ("src", "href") if name in values]
        if "data-t" in values:
            self.tips.append(str(values["data-t"]))


def test_the_page_holds_all_tokens_and_nothing_from_elsewhere(tmp_path: Path, inspect: Any) -> None:
    evil = '<script>alert("x")</script> </pre> {{ 7 * 7 }} <img src=x onerror=y>'
    rows = [{"prompt": evil, "response": evil}, {evil: evil}]
    file = write(tmp_path / "<b>data.jsonl", *rows)
    page_file = tmp_path / "out.html"
    code, _, err = inspect(file, "--html", str(page_file))
    text = page_file.read_text()
    page = Page(text)
    assert code == 0
    assert str(page_file) in err
    assert not {"script", "img", "iframe", "link", "b>data"} & set(page.tags)
    assert page.links == []
    assert "http" not in text.replace("http-equiv", "")
    assert "{{ 7 * 7 }}" in text
    num_tokens = len(printed(inspect(file, "--row", "0", "--json")[1])[0]["input_ids"])
    assert len(page.tips) == num_tokens
    assert page.tips[0].startswith("token 0 · id 1 · not trained")
    assert "Refused:" in text


def test_a_page_of_rows_with_half_characters(tmp_path: Path, inspect: Any) -> None:
    file = write(tmp_path / "data.jsonl", '{"messages": [{"role": "\\ud800", "content": "q"}]}\n')
    code, _, err = inspect(file, "--html", str(tmp_path / "out.html"))
    assert code == 0, err
    assert r"messages[0].role is '\ud800'" in (tmp_path / "out.html").read_text().replace("&#39;", "'")


def test_the_page_cannot_be_written(tmp_path: Path, inspect: Any) -> None:
    code, _, err = inspect(
        write(tmp_path / "data.jsonl", {"messages": CHAT}), "--html", str(tmp_path / "data.jsonl" / "x.html")
    )
    assert code == 13
    assert "cannot be written: File exists. Choose another place." in err


def test_an_answer_in_seconds_from_a_cold_start(tmp_path: Path) -> None:
    """torch takes most of a start; an answer needs none of it."""
    file = write(tmp_path / "odd.jsonl", {"ask": "Which day?", "reply": "Friday."})
    code = (
        "import sys; from sft.__main__ import main; code = main(sys.argv[1:])\n"
        "sys.exit(code or ('torch' in sys.modules and 'torch was imported'))"
    )
    command = [sys.executable, "-c", code, "inspect", file, "--columns", "{prompt: ask, response: reply}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, "⟦Friday.<|im_end|>⟧" in done.stdout) == (0, True), done.stderr
