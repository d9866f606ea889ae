"""Logs of several ranks, nodes and attempts as one, from hand-made files; and the notes by which they are ordered."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from made_runs import end_run, made_run, write

from launch.__main__ import main
from launch.logs import Tail
from launch.merged_logs import Choice, Line, merged_lines
from launch.notes import LineClock
from launch.runs import Run
from launch.spec import JobSpec


@pytest.fixture
def run(tmp_path: Path, make_spec: Callable[..., JobSpec]) -> Run:
    return made_run(tmp_path / "runs" / "demo", make_spec)


class Ranks:
    """Writes logs as ranks would, and has their lines noted by a clock that the test moves."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch, attempt: int = 0) -> None:
        self.folder = run.path / "logs" / str(attempt)
        self.folder.mkdir(parents=True)
        (run.path / "exit" / str(attempt)).mkdir(parents=True, exist_ok=True)
        self._clocks = [LineClock(self.folder, node, (2 * node, 2 * node + 1)) for node in (0, 1)]
        self._monkeypatch = monkeypatch

    def say(self, at: float, rank: int, text: str) -> None:
        """`text` is there at `at`."""
        with (self.folder / f"rank-{rank}.log").open("a") as file:
            file.write(text)
        with self._monkeypatch.context() as patch:
            patch.setattr("launch.notes.time.time", lambda: at)
            self._clocks[rank // 2].look()


def texts(run: Run, choice: Choice | None = None) -> list[str]:
    return [line.text for line in merged_lines(run, choice or Choice(), None)]


def test_lines_are_in_the_order_of_time_and_each_is_there_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(run, monkeypatch)
    for at, rank, text in [
        (10.0, 2, "a\n"), (11.0, 0, "b\nc\n"), (12.0, 3, "d\n"), (12.5, 0, "half "), (13.0, 1, "e\n"),
        (14.0, 0, "whole\n"), (15.0, 2, "f\n"),
    ]:  # fmt: skip
        ranks.say(at, rank, text)
    later = Ranks(run, monkeypatch, attempt=1)
    later.say(20.0, 3, "g\n")
    later.say(21.0, 0, "h\n")
    assert texts(run) == ["a", "b", "c", "d", "e", "half whole", "f", "g", "h"]


def test_a_progress_bar_is_one_line_and_adds_no_notes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(run, monkeypatch)
    for at in range(50):
        ranks.say(100.0 + at, 0, f"\r{2 * at}%")
    assert not (ranks.folder / "node-0.times").exists()
    ranks.say(200.0, 0, "\r100%\n")
    assert (ranks.folder / "node-0.times").read_text().count("\n") == 1
    assert texts(run) == ["100%"]


def test_lines_that_nobody_has_noted_come_by_the_time_of_their_rank_s_end(run: Run) -> None:
    folder = run.path / "logs" / "0"
    folder.mkdir(parents=True)
    (folder / "rank-0.log").write_text("last\nno end")
    (folder / "rank-1.log").write_text("first\n")
    for rank, ended_at in ((0, 20.0), (1, 10.0)):
        write(run.path / "exit" / "0" / f"rank-{rank}.json", {"host": "n1", "ended_at": ended_at})
    assert texts(run) == ["first", "last", "no end"]


def test_a_long_log_is_read_in_pieces(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first line is there before the rest of a large log is read."""
    monkeypatch.setattr("launch.merged_logs.PIECE_BYTES", 1000)
    ranks = Ranks(run, monkeypatch)
    for number in range(500):
        ranks.say(10.0 + number, number % 4, f"line {number} é\n")
    read: list[int] = []
    before = Tail.read

    def counted(tail: Tail, num_bytes: int = -1) -> bytes:
        found = before(tail, num_bytes)
        read.append(len(found) if num_bytes > 0 else 0)
        return found

    monkeypatch.setattr(Tail, "read", counted)
    lines = merged_lines(run, Choice(), None)
    assert next(lines).text == "line 0 é"
    assert sum(read) <= 4 * 1000
    assert [line.text for line in lines] == [f"line {number} é" for number in range(1, 500)]


def test_choices(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Ranks(run, monkeypatch), Ranks(run, monkeypatch, attempt=1)
    for rank in range(4):
        first.say(10.0 + rank, rank, f"rank {rank}\n")
    second.say(30.0, 3, "again\n")
    (first.folder / "node-1.log").write_text("the launcher\n")
    assert texts(run, Choice(rank=3)) == ["rank 3", "again"]
    assert texts(run, Choice(node=1)) == ["rank 2", "rank 3", "again", "the launcher"]
    assert texts(run, Choice(attempt=1)) == ["again"]


def test_levels(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(run, monkeypatch)
    trace = "Traceback (most recent call last):\n  File 'x'\n    y()\nValueError: no error word\n"
    lines = f"step 1\nwarning: slow\n{trace}INFO fine\n[ERROR] bad\nerror: worse\nx.py:3: UserWarning: old\nterror\n"
    ranks.say(10.0, 0, lines)
    assert texts(run, Choice(level="error")) == [*trace.splitlines(), "[ERROR] bad", "error: worse"]
    warnings = ["warning: slow", *trace.splitlines(), "[ERROR] bad", "error: worse", "x.py:3: UserWarning: old"]
    assert texts(run, Choice(level="warning")) == warnings


def test_before_any_rank_has_begun_the_nodes_speak_and_before_them_the_job(run: Run) -> None:
    (run.path / "logs" / "0").mkdir(parents=True)
    (run.path / "exit" / "0").mkdir(parents=True)
    (run.path / "logs" / "slurm.log").write_text("slurmstepd: error: it went wrong\n")
    assert texts(run) == ["slurmstepd: error: it went wrong"]
    (run.path / "logs" / "0" / "node-1.log").write_text("node 1 starts\n")
    assert texts(run) == ["node 1 starts"]


def test_following_shows_what_comes_late_in_its_place_and_ends_with_the_run(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Node 1's note arrives half a second after node 0's, of a line that came before it."""
    ranks = Ranks(run, monkeypatch)
    has_ended = threading.Event()
    found: list[Line] = []

    def follow() -> None:
        found.extend(merged_lines(run, Choice(), has_ended.is_set))

    follower = threading.Thread(target=follow)
    follower.start()
    now = time.time()
    for step in range(3):
        ranks.say(now + step / 100 + 0.005, 0, f"after {step}\n")
    time.sleep(0.4)
    for step in range(3):
        ranks.say(now + step / 100, 2, f"before {step}\n")
    time.sleep(1.3)
    assert len(found) == 6  # shown while the run goes on
    ranks.say(time.time(), 1, "the end\n")
    has_ended.set()
    follower.join(timeout=10)
    assert not follower.is_alive()
    expected = [f"{word} {step}" for step in range(3) for word in ("before", "after")]
    assert [line.text for line in found] == [*expected, "the end"]


def test_what_would_steer_the_terminal_is_not_printed(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Ranks(run, monkeypatch).say(10.0, 3, "a\x07b\x1b]0;title\x07c\x1b[2Jd\te\x1b[31mf\x1bc\x1b(0\x1b7\x1b[>4;2mg\n")
    assert main(["logs", str(run.path)]) == 0
    assert capsys.readouterr().out.endswith(" abcd\te\x1b[31mfg\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rank", "4"], "--rank is 4; it must be from 0 to 3, as demo has no other."),
        (["--node", "2"], "--node is 2; it must be from 0 to 1, as demo has no other."),
        (["--attempt", "5"], "--attempt is 5; it must be 0, as demo has no other."),
    ],
)
def test_what_is_not_there_is_told(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    Ranks(run, monkeypatch).say(10.0, 3, "one\n")
    write(run.path / "exit" / "0" / "attempt.json", {"attempt": 0})
    assert main(["logs", str(run.path), *words]) == 2
    assert message in capsys.readouterr().err


def test_what_is_printed(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Ranks(run, monkeypatch).say(10.0, 3, "one \x1b[1m é\n")
    Ranks(run, monkeypatch, attempt=1).say(20.0, 0, "error: two\n")
    write(run.path / "exit" / "0" / "rank-3.json", {"host": "n2"})
    assert main(["logs", str(run.path)]) == 0
    assert capsys.readouterr().out == "[n2 rank 3] one \x1b[1m é\n[node 0 rank 0 attempt 1] error: two\n"
    assert main(["logs", str(run.path), "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {
        "at": 10.0,
        "attempt": 0,
        "node": 1,
        "host": "n2",
        "rank": 3,
        "level": "info",
        "text": "one \x1b[1m é",
    }
    assert (second["attempt"], second["level"]) == (1, "error")
    assert main(["logs", str(run.path), "--level", "warn"]) == 2
    assert "--level is 'warn'; it must be one of info, warning, error." in capsys.readouterr().err


def test_following_a_run_that_has_ended_ends_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Ranks(run, monkeypatch).say(10.0, 0, "said\n")
    end_run(run)
    began = time.monotonic()
    assert main(["logs", "-f", str(run.path)]) == 0
    assert time.monotonic() - began < 1.0
