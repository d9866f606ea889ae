"""The page on one run or several: self-contained, readable, nothing of the data unescaped."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_args, write_conversations

from sft.__main__ import main
from sft.plots import Curve, plot
from sft.report import names_of, read_run, report_page
from sft.report_figures import balance, memory, step_split, time_split
from sft.report_timeline import time_line
from sft.run_files import evaluations_of
from sft.train import train_with


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that differ in a setting; `first` has attempts and an evaluation."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_conversations(folder / "data.jsonl", 8)
    for name, rate in (("first", 1e-2), ("second", 1e-3)):
        args = tiny_args(data, folder / name, max_steps=6, learning_rate=rate, eval_file=str(data), eval_steps=3)
        train_with(args)
    for number, (began, ended, code) in enumerate(((100.0, 160.0, 139), (170.0, 400.0, 0))):
        attempt = folder / "first" / "exit" / str(number)
        attempt.mkdir(parents=True)
        (attempt / "attempt.json").write_text(json.dumps({"attempt": number, "step": 3 * number, "began_at": began}))
        end = {"own_code": code, "ended_at": ended, "reason": "<b>signal</b>" if code else "", "step": 3}
        (attempt / "end.json").write_text(json.dumps(end))
    assert main(["evaluate", str(folder / "first"), str(data), "--max-new-tokens", "4"]) == 0
    return folder


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_from_anywhere(runs: Path) -> None:
    assert main(["report", str(runs / "first")]) == 0
    text = (runs / "first" / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"url\((?!#)", text)


def test_what_a_run_tells_is_on_the_page(runs: Path) -> None:
    text = report_page([read_run(runs / "first", 0)])
    for wanted in (
        "Best held-out loss",
        "exact match",
        "from step 3",
        "exit code 139",
        "forward",
        "data.jsonl",
        "learning_rate",
        "between attempts 10.0 s",
        "evaluation and other",
        "Memory of a rank",
        "trained tokens",
        "longest",
    ):
        assert wanted in text
    assert "&lt;b&gt;signal&lt;/b&gt;" in text
    assert "<b>signal" not in text


def test_tokens_are_those_of_the_last_record_and_not_added_up(runs: Path, tmp_path: Path) -> None:
    records = json.loads((runs / "first" / "training_log.json").read_text())
    last = records.pop()
    assert last["type"] == "summary"  # a run that has not ended has none
    (tmp_path / "training_log.json").write_text(json.dumps(records))
    text = report_page([read_run(tmp_path, 0)])
    assert f"{last['num_tokens']:,} tokens seen, {last['num_trained_tokens']:,} trained" in text
    assert "0 tokens seen" in report_page([read_run(tmp_path / "none", 0)])


def test_memory_stands_beside_what_was_to_be_expected(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs / "first"), "--samples", "0"]) == 0
    text = (runs / "first" / "report.html").read_text()
    (total,) = re.findall(r"to be expected: ([\d.]+) GiB; (?:\d+)% of it was taken", text)
    assert float(total) >= 0.6  # a process, and a tiny model
    assert "optimizer states" in text
    assert main(["report", str(runs / "first"), "--samples", "0", "--no-estimate"]) == 0
    assert "to be expected is not known" in (runs / "first" / "report.html").read_text()
    assert capsys.readouterr().err.count("no memory is estimated") == 0


def test_ranks_that_compute_for_longer_are_seen() -> None:
    ranks = {"data_s": [1.0, 1.0, 2.0], "forward_s": [2.0, 3.0, 4.0], "peak_bytes": [2.0**30, 2.0**31, 2.0**30]}
    found = balance([{"type": "summary", "ranks": ranks}])
    assert found is not None
    assert found["slowest"] == "rank 2, 38.5% above the mean"
    assert [row["share"] for row in found["rows"]] == [50.0, 66.67, 100.0]
    assert found["rows"][1]["memory"] == "2.00 GiB"
    many = {name: [float(rank) for rank in range(100)] for name in ranks}
    found = balance([{"type": "summary", "ranks": many}])
    assert found is not None
    assert (len(found["rows"]), found["left_out"], found["rows"][0]["name"]) == (32, 68, "rank 99")
    assert balance([{"type": "summary"}]) is None
    taken = memory([{"type": "summary", "ranks": ranks}], {"weights": 3 * 2**30, "buffers": 2**30})
    assert taken is not None
    assert taken["measured"] == "2.00 GiB on rank 1, which has most"
    assert taken["estimated"] == "4.00 GiB; 50% of it was taken"
    assert (taken["share"], [part["share"] for part in taken["parts"]]) == (50.0, [75.0, 25.0])


def test_the_time_of_a_run_is_told_whole() -> None:
    steps = [{"type": "train", "step": step, "forward_s": 1.0, "backward_s": 2.0} for step in (1, 4)]
    records = [*steps, {"type": "summary", "step": 4, "elapsed_s": 20.0}]
    attempts = [{"began_at": 100.0, "ended_at": 110.0}, {"began_at": 115.0, "ended_at": 140.0}]
    found = time_split(records, attempts)
    assert found is not None
    assert found["total"] == "40.0 s"
    assert [part["text"] for part in found["parts"]] == [
        "forward 4.0 s (10%)",
        "backward 8.0 s (20%)",
        "evaluation and other 8.0 s (20%)",
        "start, end, steps done again 15.0 s (38%)",
        "between attempts 5.0 s (12%)",
    ]
    assert time_split([], attempts) is None


def test_the_mean_step_and_the_whole_run_agree() -> None:
    records = [
        {"type": "train", "step": 1, "forward_s": 9.0, "backward_s": 1.0, "elapsed_s": 10.0},
        {"type": "train", "step": 10, "forward_s": 1.0, "backward_s": 1.0, "elapsed_s": 28.0},
    ]
    step, whole = step_split(records), time_split(records, [])
    assert step is not None
    assert whole is not None
    assert step["step"] == "2,800.0 ms"  # 28 seconds in ten steps
    assert [part["text"] for part in step["parts"]] == ["forward 64%", "backward 36%"]
    assert [part["text"] for part in whole["parts"]] == ["forward 18.0 s (64%)", "backward 10.0 s (36%)"]
    assert step_split([{"type": "train", "step": 1}]) is None
    assert step_split([]) is None


def test_an_attempt_whose_end_nobody_saw_ends_where_the_next_begins() -> None:
    attempts = [
        {"attempt": 0, "step": 0, "began_at": 100.0},
        {"attempt": 1, "step": 3, "began_at": 150.0, "ended_at": 200.0, "own_code": 0},
    ]
    found = time_line([], attempts)
    assert found is not None
    assert [(bar["x"], bar["width"]) for bar in found["bars"]] == [(0.0, 50.0), (50.0, 50.0)]
    assert found["bars"][0]["text"] == "0: from step 0, at most 50.0 s, no end recorded"
    assert found["bars"][1]["text"] == "1: from step 3, 50.0 s, done"
    assert time_line([], []) is None


def test_a_run_that_goes_on_is_shown_up_to_its_last_record(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "going"
    shutil.copytree(runs / "first", run)
    (run / "exit" / "1" / "end.json").unlink()
    os.utime(run / "training_log.json", (0, 230.0))
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "1: from step 3, at least 1 min 0 s, going on, or ended without a word" in page
    assert "2 min 10 s from" in page
    os.utime(run / "training_log.json", (0, 165.0))  # it has logged nothing yet
    assert main(["report", str(run)]) == 0
    assert "1: from step 3, at least 0.0 s, going on" in (run / "report.html").read_text()


@pytest.mark.parametrize("found", ['[{"type": "tr', '{"a": 1}'])
def test_a_broken_log_is_no_report(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], found: str) -> None:
    shutil.copytree(runs / "first", tmp_path / "run")
    (tmp_path / "run" / "training_log.json").write_text(found)
    assert main(["report", str(tmp_path / "run")]) == 3
    assert "training_log.json is no whole list of records" in capsys.readouterr().err


def test_what_is_no_evaluation_is_left_out_and_folders_are_made(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "first", tmp_path / "run")
    before = len(evaluations_of(tmp_path / "run"))
    for number, other in enumerate(
        ("{}", '{"figures": 3}', '{"figures": {}}', '{"figures": {"exact": 1}, "data": "a", "num_rows": 1}', "[")
    ):
        (tmp_path / "run" / "evaluation" / f"{number}.json").write_text(other)
    assert len(evaluations_of(tmp_path / "run")) == before
    assert main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "pages" / "a.html")]) == 0
    assert "exact match" in (tmp_path / "pages" / "a.html").read_text()


def test_steps_left_out_are_on_the_time_line(runs: Path, tmp_path: Path) -> None:
    spikes = [
        {"type": "spike", "step": step, "loss": 9.5, "highest_loss": 3.25, "rows": ["a", "b"], "elapsed_s": 1.0 * step}
        for step in (2, 8)
    ]
    records = [*spikes, {"type": "train", "step": 10, "loss": 1.0, "elapsed_s": 10.0, "num_tokens": 1}]
    records[-1] |= {"num_trained_tokens": 1, "learning_rate": 1.0, "tokens_per_s": 1.0}
    attempts = [
        {"attempt": 0, "step": 0, "began_at": 100.0, "ended_at": 140.0, "own_code": 1},
        {"attempt": 1, "step": 4, "began_at": 150.0, "ended_at": 200.0, "own_code": 0},
    ]
    found = time_line(records, attempts)
    assert found is not None
    assert found["marks"] == [20.0, 83.33]  # the middle of the first, two thirds of the second
    assert found["spikes"][1] == "step 8 left out: loss 9.5, above 3.25, 2 rows"
    alone = time_line(records, [])
    assert alone is not None
    assert (alone["marks"], alone["span"]) == ([20.0, 80.0], "10.0 s")
    many = time_line([spikes[0]] * 30, [])
    assert many is not None
    assert (len(many["marks"]), many["spikes"][-1]) == (30, "10 further steps left out, see training_log.json")
    (tmp_path / "training_log.json").write_text(json.dumps(records))
    page = report_page([read_run(tmp_path, 0)])
    assert "step 2 left out: loss 9.5" in page
    assert page.count('<i style="left:') == 2


def test_rows_of_the_data_are_painted(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(runs / "first"), "--samples", "1", "--output", str(runs / "one.html")]) == 0
    assert 'class="k t c"' in (runs / "one.html").read_text()
    shutil.copytree(runs / "first", runs / "moved")
    settings = json.loads((runs / "moved" / "arguments.json").read_text())
    (runs / "moved" / "arguments.json").write_text(json.dumps({**settings, "train_file": "gone.jsonl"}))
    assert main(["report", str(runs / "moved")]) == 0
    assert "no rows are painted" in capsys.readouterr().err


def test_several_runs_are_laid_over_each_other(runs: Path) -> None:
    text = report_page([read_run(runs / name, number) for number, name in enumerate(("first", "second"))])
    (differing,) = re.findall(r'<tr class="differs"><td class="mono">learning_rate</td>.*?</tr>', text)
    assert "0.01" in differing
    assert "0.001" in differing
    assert text.index("learning_rate</td>") < text.index("num_train_epochs</td>")  # what differs comes first


def test_curves_are_drawn_in_the_colour_of_the_text(runs: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'cleansft[report]'")
    runs_read = [read_run(runs / name, number) for number, name in enumerate(("first", "second"))]
    text = report_page(runs_read)
    assert text.count("<svg") >= 4
    assert "first · training" in text
    assert "#000000" not in text
    assert text == report_page(runs_read)
    assert "<script" not in text


def test_runs_whose_folders_have_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a/run", "b/run", "b/other", "b/run")]
    assert names_of(folders) == ["a/run", "b/run", "b/other", "b/run (2)"]
    assert names_of([tmp_path / "a"]) == ["a"]
    assert names_of([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]


def test_a_name_is_in_the_legend_whatever_it_begins_with() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install 'cleansft[report]'")
    svg = plot([Curve(name, [1.0, 2.0], [1.0, 2.0]) for name in ("_first", "$second", "third")], "y")
    assert svg is not None
    assert all(f">{name}<" in svg for name in ("_first", "$second", "third"))


def test_a_page_that_cannot_be_written_leaves_the_one_that_was_there(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "page.html").write_text("before")
    monkeypatch.setattr("sft.storage.sync", full)
    assert main(["report", str(runs / "first"), "--samples", "0", "--output", str(tmp_path / "page.html")]) == 13
    assert (tmp_path / "page.html").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_run_that_has_just_begun_has_a_page_too(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "training_log.json").write_text("[]")
    assert main(["report", str(tmp_path / "new"), "--samples", "0"]) == 0
    assert Page((tmp_path / "new" / "report.html").read_text()).open == []


def test_wrong_words_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "must be a run directory" in capsys.readouterr().err


def test_a_browser_shows_it_without_a_word_of_complaint(runs: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    (tmp_path / "page.html").write_text(report_page([read_run(runs / "first", 0)]))
    words = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--v=0",
        "--window-size=400,1200",
    ]
    # The width of what does not fit is written into the title, which the dump shows.
    script = "<script>document.title = 'overflow ' + (document.documentElement.scrollWidth - innerWidth)</script>"
    shown = (tmp_path / "page.html").read_text().replace("</body>", f"{script}</body>")
    (tmp_path / "page.html").write_text(shown)
    environment: dict[str, Any] = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    command = [
        browser,
        *words,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        f"file://{tmp_path / 'page.html'}",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr
    (overflow,) = re.findall(r"<title>overflow (-?\d+)</title>", done.stdout)
    assert int(overflow) <= 0
