"""The picture of `launch top`: from plain values, and from a run's records."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest_golden import check_golden
from made_runs import end_run, made_run, write

from launch import screen
from launch.__main__ import main
from launch.progress import Progress, RankProgress
from launch.spec import JobSpec

FACTS: dict[str, Any] = {
    "run": "demo", "state": "RUNNING", "job_id": "7", "attempt": 1, "nodes": 2, "ranks": {"expected": 4},
    "submitted_at": 1000.0, "explanation": "", "reason": "", "progress": {"eta_s": 4500.0, "checkpoint_step": 120},
}  # fmt: skip


def rank(number: int, slowness: float | None = 1.0) -> RankProgress:
    return RankProgress(number, f"n{number // 2 + 1}", "step", 138, 1000, 0.5, slowness, 1.0)


def picture(num_ranks: int = 4, **facts: Any) -> screen.Picture:
    ranks = tuple(rank(number, 1.75 if number == 3 else 1.0 - number / 100) for number in range(num_ranks))
    records: list[dict[str, Any]] = [
        {"type": "train", "step": step, "loss": 2.0 + math.exp(-step / 30), "tokens_per_s": 1000.0 + step, "mfu": 0.41}
        for step in range(1, 138)
    ]
    lines = [("rank 0", "step 137: eval_loss 2.0\x1b[31m")]
    return screen.Picture(
        FACTS | facts, Progress(137, 1000, 2.01, None, 1137.0, 0.5, 1.0, ranks), records, lines, 8200.0
    )


def as_text(rows: list[screen.Row]) -> str:
    return "".join(screen.ansi(row, is_coloured=False) + "\n" for row in rows)


def test_the_whole_picture() -> None:
    check_golden("top.txt", as_text(screen.rows(picture(), 110, 32)))


@pytest.mark.parametrize("width", [20, 60, 79, 80, 200])
@pytest.mark.parametrize("height", [5, 12, 24, 60])
@pytest.mark.parametrize("num_ranks", [0, 1, 64])
def test_it_fits_every_terminal(width: int, height: int, num_ranks: int) -> None:
    rows = screen.rows(picture(num_ranks), width, height)
    assert len(rows) <= height
    assert all(sum(len(text) for text, _ in row) <= width for row in rows)
    assert "demo  RUNNING"[:width] in as_text(rows)


def test_of_many_ranks_the_slowest_are_shown() -> None:
    lines = as_text(screen.rows(picture(64), 110, 40)).splitlines()
    head = next(index for index, line in enumerate(lines) if line.startswith("rank  host"))
    assert lines[head + 1].split()[0] == "3"
    assert "1.75 × the median" in lines[head + 1]
    assert any(line.startswith("and ") and line.endswith(" more, none slower") for line in lines)


def test_why_it_waits_is_told() -> None:
    facts = {"state": "PENDING", "explanation": "other jobs stand before it", "reason": "Priority"}
    assert as_text(screen.rows(picture(0, **facts), 80, 24)).splitlines()[1] == "other jobs stand before it"


@pytest.mark.parametrize(
    ("share", "drawn"),
    [(0.0, ""), (1.0, "████"), (0.5, "██"), (0.03, "▏"), (2.0, "████"), (-1.0, ""), (0.97, "███▉"), (0.99, "████")],
)
def test_bars(share: float, drawn: str) -> None:
    assert screen.bar(share, 4) == drawn


def test_curves_go_from_corner_to_corner() -> None:
    down, up = screen.braille([2.0, 1.0], 4, 2), screen.braille([1.0, 2.0, 3.0], 4, 2)
    assert (down[0][0], down[1][-1]) != ("⠀", "⠀")
    assert (down[1][0], down[0][-1]) == ("⠀", "⠀")
    assert (up[1][0], up[0][-1]) != ("⠀", "⠀")
    assert [len(line) for line in (*down, *up)] == [4] * 4
    for values in ([5.0], [5.0, 5.0], [5.0] * 1000):
        flat = screen.braille(values, 4, 2)
        assert [set(line) == {"⠀"} for line in flat].count(True) == 1
        assert len({*flat[0]} | {*flat[1]}) == 2
    peak = screen.braille([0.0] * 500 + [100.0] * 500, 10, 1)
    assert peak[0][:5] != peak[0][5:]


def test_a_log_writes_no_control_characters_on_the_terminal() -> None:
    text = as_text(screen.rows(picture(), 110, 40))
    assert "\x1b" not in text
    assert "eval_loss 2.0·[31m" in text


def test_one_picture_without_a_terminal(
    tmp_path: Path, make_spec: Callable[..., JobSpec], capsys: pytest.CaptureFixture[str]
) -> None:
    run = made_run(tmp_path / "runs" / "demo", make_spec)
    end_run(run, 42)
    (run.path / "logs" / "0").mkdir(parents=True)
    (run.path / "logs" / "0" / "rank-0.log").write_text("a\nthe last words\n")
    write(run.path / "training_log.json", [{"type": "train", "step": 3, "loss": 1.5, "tokens_per_s": 9.0}])
    assert main(["top", str(run.path)]) == 0
    text = capsys.readouterr().out
    assert "demo  FAILED" in text
    assert "rank 0 the last words" in text
    assert "loss 1.5000" in text
    assert main(["top", str(run.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["log"][0]["step"] == 3
    assert main(["top", str(run.path), "--interval-s", "0"]) == 2
    assert "--interval-s is 0.0; it must be 0.1 or more." in capsys.readouterr().err
