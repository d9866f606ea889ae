"""`python -m sft audit`: what it counts, what it refuses, and its page."""

from __future__ import annotations

import itertools
import json
import math
import random
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import QWEN3, TOKENIZER, write_conversations

from sft.__main__ import main
from sft.audit import Auditor
from sft.config import ROOT, Args
from sft.epoch import epoch_of, padding_share
from sft.lengths import bins, quantile
from sft.masking import Masker, MaskOptions
from sft.tokenizer import build_tokenizer

TEMPLATES = ROOT / "tests" / "oracle" / "templates"
CHAT = [{"role": "user", "content": "Which day?"}, {"role": "assistant", "content": "Friday."}]


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def settings_file(folder: Path, **settings: Any) -> str:
    path = folder / "run.yaml"
    path.write_text(json.dumps({"model_config": QWEN3, "tokenizer_name": TOKENIZER, **settings}))
    return str(path)


@pytest.fixture
def audit(capsys: pytest.CaptureFixture[str]) -> Any:
    """(exit code, stdout, stderr) of a command line; with --json stdout is read."""

    def run(*words: str) -> tuple[int, Any, str]:
        code = main(["audit", *words])
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if "--json" in words else captured.out, captured.err

    return run


def levels(found: dict[str, Any], level: str) -> list[str]:
    return [finding["text"] for finding in found["findings"] if finding["level"] == level]


def test_what_the_training_counts_is_what_the_audit_counts(tmp_path: Path, audit: Any) -> None:
    from sft.dataset import ConversationDataset
    from sft.sources import read_conversations

    file = str(write_conversations(tmp_path / "data.jsonl", 300))
    code, found, _ = audit(file, "--json", "--max_length", "48", "--tokenizer", TOKENIZER)
    args = Args(model_name_or_path="x", tokenizer_name=TOKENIZER, train_file=file, max_length=48)
    data = ConversationDataset(read_conversations(file), Masker(build_tokenizer(args), 0, MaskOptions()), 48)
    assert code == 0
    assert (found["rows"], found["documents"]) == (300, len(data))
    assert (found["tokens"], found["trained_tokens"]) == (data.counts["tokens"], data.counts["trained_tokens"])
    assert sum(fate["number"] for fate in found["fates"]) == 300 - data.counts["whole"]
    assert sum(number for _, number in found["lengths"]) == 300
    assert [stop["text"] for stop in found["stop_tokens"]] == ["<|im_end|>"]
    assert {stop["id"] for stop in found["stop_tokens"]} == data.stop_token_ids


def test_failure_mode_14_the_audit_names_injected_text(tmp_path: Path, audit: Any) -> None:
    rows = [{"messages": CHAT}, {"messages": [{"role": "system", "content": ""}, *CHAT]}]
    template = str(TEMPLATES / "chatml-default-system.jinja")
    code, found, _ = audit(write(tmp_path / "data.jsonl", *rows), "--json", "--chat-template", template)
    expected = "1 document: the template adds a text of its own: 'system You answer briefly.'"
    assert (code, levels(found, "warning")) == (0, [expected])  # one of two: the empty one stays empty
    assert found["notes"][0]["examples"] == [f"{tmp_path / 'data.jsonl'}:1"]


def test_failure_mode_19_bad_rows_have_place_and_reason_and_the_totals_add_up(tmp_path: Path, audit: Any) -> None:
    rows: list[Any] = [{"messages": [{"role": "user", "content": f"{i}?"}, CHAT[1]]} for i in range(100)]
    rows[16], rows[40], rows[98] = {"messages": CHAT[:1]}, "{broken\n", {"text": "hello"}
    file = write(tmp_path / "data.jsonl", *rows)
    code, found, _ = audit(file, "--json")
    assert code == 3
    assert (found["rows"], found["num_refused"], found["documents"], sum(found["forms"].values())) == (100, 3, 97, 97)
    places = {finding["places"][0].split(": ")[0] for finding in found["findings"] if finding["level"] == "error"}
    assert {place.removeprefix(file).split(":")[1] for place in places} == {"17", "41", "99"}
    assert any("role `assistant`" in text for text in levels(found, "error"))
    assert sum(reason["number"] for reason in found["refused"]) == 3
    _, text, _ = audit(file)
    assert text.startswith("error: 1 row refused")
    assert "100: 3 refused, messages 97" in text
    assert f"{file}:17" in text


@pytest.mark.parametrize(("limit", "code"), [(3, 0), (2, 3)])
def test_skipped_rows_are_a_warning_up_to_the_limit(tmp_path: Path, audit: Any, limit: int, code: int) -> None:
    file = write(tmp_path / "data.jsonl", *[{"messages": CHAT}] * 7, *[{"text": "x"}] * 3)
    found_code, found, _ = audit(file, "--json", "--on_bad_row", "skip", "--max_bad_rows", str(limit))
    assert found_code == code
    refused = [finding for finding in found["findings"] if "3 rows refused" in finding["text"]]
    assert [finding["level"] for finding in refused] == ["warning" if code == 0 else "error"]
    assert [place.split(":")[1] for place in refused[0]["places"]] == ["8", "9", "10"]


@pytest.mark.parametrize(
    ("rows", "words", "said"),
    [
        ([], [], "the training data holds no row"),
        ([{"text": 1}], ["--on_bad_row", "skip"], "no row that can be used"),
        ([{"messages": CHAT}], ["--max_length", "8"], "no row with a trained token within max_length 8"),
    ],
)
def test_data_of_which_nothing_is_trained(tmp_path: Path, audit: Any, rows: Any, words: list[str], said: str) -> None:
    code, found, _ = audit(write(tmp_path / "data.jsonl", *rows), "--json", *words)
    assert code == 3
    assert any(said in text for text in levels(found, "error"))


def test_repeated_rows_are_named(tmp_path: Path, audit: Any) -> None:
    other = [CHAT[0], {"role": "assistant", "content": "Monday."}]
    train = write(tmp_path / "train.jsonl", {"messages": CHAT}, {"messages": CHAT}, {"messages": other})
    held_out = write(tmp_path / "eval.jsonl", {"messages": other}, {"prompt": "New?", "response": "Yes."})
    config = settings_file(tmp_path, train_file=train, eval_file=held_out)
    code, found, _ = audit(config, "--json")
    assert code == 0
    assert levels(found, "warning") == [
        "1 row: the prompt of an earlier row, with another answer",
        "1 row: in the evaluation's data and in the training data",
    ]
    assert levels(found, "note") == ["1 row: the same as an earlier row"]
    examples = {tally["what"]: tally["examples"] for tally in found["repeated"]}
    assert examples["the same as an earlier row"] == [f"{train}:2"]
    assert (found["held_out"]["rows"], found["rows"]) == (2, 3)


def test_notes_of_the_masks_are_counted(tmp_path: Path, audit: Any) -> None:
    escaped = [{"role": "user", "content": "What does <|im_end|> mean?"}, CHAT[1]]
    file = write(tmp_path / "data.jsonl", {"messages": CHAT}, {"messages": escaped})
    _, found, _ = audit(file, "--json")
    assert levels(found, "note") == ["1 document: control strings in data are kept as text"]
    _, found, _ = audit(file, "--json", "--chat-template", str(TEMPLATES / "no-stop.jinja"))
    assert any("no stop token ends the turn" in text for text in levels(found, "warning"))
    assert any("would not learn to stop" in text for text in levels(found, "warning"))


def test_sources_and_their_repeats_make_the_epoch(tmp_path: Path, audit: Any) -> None:
    first = write(tmp_path / "a.jsonl", *[{"messages": CHAT}] * 10)
    second = write(tmp_path / "b.jsonl", *[{"question": f"{i}", "answer": "yes"} for i in range(4)])
    config = settings_file(
        tmp_path, train_files={first: 1, second: 2.5}, per_device_train_batch_size=2, launch={"nodes": 2}
    )
    _, found, _ = audit(config, "--json")
    assert [(source["rows"], source["times"]) for source in found["sources"]] == [(10, 1.0), (4, 2.5)]
    assert found["forms"] == {"messages": 10, "question/answer": 4}
    epoch = found["epoch"]
    assert (epoch["num_processes"], epoch["rows_per_step"], epoch["documents"], epoch["steps"]) == (2, 4, 20, 5)
    _, found, _ = audit(config, "--json", "--processes", "5")
    assert found["epoch"]["rows_per_step"] == 10
    _, text, _ = audit(config)
    assert "×2.5" in text


def test_columns_and_sample_limits_of_the_settings_hold(tmp_path: Path, audit: Any) -> None:
    file = write(tmp_path / "data.jsonl", *[{"ask": f"{i}", "reply": "yes"} for i in range(9)])
    config = settings_file(
        tmp_path, train_file=file, columns={"prompt": "ask", "response": "reply"}, max_train_samples=5
    )
    code, found, _ = audit(config, "--json")
    assert (code, found["rows"], found["forms"]) == (0, 5, {"prompt/response": 5})


def test_the_quick_form_looks_at_the_first_rows_only(tmp_path: Path, audit: Any) -> None:
    file = write(tmp_path / "data.jsonl", *[{"messages": CHAT}] * 250, {"text": "x"})
    code, text, _ = audit(file, "--quick")
    assert code == 0
    assert text.splitlines()[-1].startswith("audit of the first 200 rows: 200 rows, 0 refused; 200 documents")
    assert audit(file, "--json")[0] == 3
    code, text, _ = audit(write(tmp_path / "bad.jsonl", {"text": "x"}), "--quick")
    assert (code, "bad.jsonl:1" in text) == (3, True)


def test_a_source_that_is_not_there(tmp_path: Path, audit: Any) -> None:
    code, out, err = audit(str(tmp_path / "gone.jsonl"))
    assert (code, out) == (3, "")
    assert "gone.jsonl: no such file" in err


def test_memory_holds_counts_and_not_rows(tmp_path: Path) -> None:
    """Ten times the rows take hardly more memory than their hashes."""
    args = Args(model_name_or_path="x", tokenizer_name=TOKENIZER, train_file="x")
    tokenizer = build_tokenizer(args)
    rng = random.Random(0)
    peaks = []
    for number in (300, 1_500):
        rows = [{"prompt": f"{rng.random()} " * 20, "response": f"{rng.random()} " * 20} for _ in range(number)]
        file = write(tmp_path / f"{number}.jsonl", *rows)
        del rows
        auditor = Auditor(Masker(tokenizer, 0, MaskOptions()), 2048)
        tracemalloc.start()
        auditor.train({file: 1.0})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert auditor.found.documents == number
    size = (tmp_path / "1500.jsonl").stat().st_size
    assert peaks[1] - peaks[0] < 1_200 * 400 < size


# --- numbers


def test_bins_hold_every_document_once() -> None:
    rng = np.random.default_rng(0)
    for sigma in (0.1, 1.0, 2.5):
        lengths = Counter((1 + rng.lognormal(4, sigma, 5000).astype(int)).tolist())
        found = bins(lengths)
        assert sum(bar.number for bar in found) == 5000
        assert len(found) <= 17
        assert found[0].first == 1
        assert all(after.first == bar.last + 1 for bar, after in itertools.pairwise(found) if bar.last)
        for bar in found:
            expected = sum(n for length, n in lengths.items() if bar.first <= length <= (bar.last or math.inf))
            assert bar.number == expected
    assert bins({}) == []
    assert quantile({1: 1, 5: 2, 9: 1}, 0.5) == 5


def test_padding_is_that_of_batches_sorted_within_a_step() -> None:
    assert padding_share({7: 100}, 8, 4) == 0.0
    assert padding_share({}, 8, 4) == 0.0
    assert padding_share({1: 1, 3: 1}, 1, 1) == 0.0
    # A pair of 1 and 3 tokens, which is every second one, has 2 of 6 tokens of padding; all pairs have 5 on average.
    assert padding_share({1: 50, 3: 50}, 2, 2) == pytest.approx(1.0 / 5.0, abs=0.03)
    sorted_in_step = padding_share({1: 50, 3: 50}, 64, 2)
    assert sorted_in_step < 0.03


def test_an_epoch_packed_holds_all_tokens() -> None:
    args = Args(model_name_or_path="x", train_file="x", max_length=100, per_device_train_batch_size=4)
    epoch = epoch_of([({60: 10, 40: 10, 100: 2}, 1.0)], args, 1)
    assert (epoch.documents, epoch.tokens, epoch.steps, epoch.packed_steps) == (22, 1200, 6, 3)
    assert epoch.packed_fill == 1.0


# --- the page


def test_the_page_tells_it_all_and_holds_nothing_from_elsewhere(tmp_path: Path, audit: Any) -> None:
    evil = {"<script>alert(1)</script>": 1}
    file = write(tmp_path / "<i>data.jsonl", *[{"messages": CHAT}] * 5, evil)
    page = tmp_path / "audit.html"
    code, _, err = audit(file, "--html", str(page))
    text = page.read_text()
    assert code == 3
    assert str(page) in err
    assert "<script" not in text
    assert "<i>data" not in text
    assert "&lt;script&gt;" in text
    assert "http" not in text
    assert text.index("Error") < text.index("Rows") < text.index("<svg")
    assert text.count('class="bar"') >= 1
    assert "data.jsonl:6" in text
