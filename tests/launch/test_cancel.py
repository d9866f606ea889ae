"""`launch cancel` of many runs: one call of scancel, a few of squeue; one that is refused keeps no other running."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from made_runs import calls, made_run, stand_in, write

from launch.__main__ import main
from launch.runs import Run
from launch.spec import JobSpec
from launch.verbs import cancel

NUM_RUNS = 5
IDS = [f"77_{number}" for number in range(NUM_RUNS)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_spec: Callable[..., JobSpec]) -> Path:
    """A sweep whose runs all go on. The queue is a file; scancel takes out of it what it is told to."""
    sweep = tmp_path / "runs" / "s"
    for number, job_id in enumerate(IDS):
        made_run(sweep / str(number), make_spec, job_id=job_id, name=f"s-{number}", sweep="s", stop_grace_s=0.0)
    points = [{"seed": str(number)} for number in range(NUM_RUNS)]
    write(sweep / "sweep.json", {"axes": {"seed": [point["seed"] for point in points]}, "points": points})
    (tmp_path / "queue").write_text("".join(f"{job}|{80 + k}|RUNNING|None|N/A\n" for k, job in enumerate(IDS)))
    stand_in(tmp_path / "bin", "squeue", f"cat {tmp_path}/queue")
    stand_in(tmp_path / "bin", "scancel", f'for job; do sed -i "/^$job|/d" {tmp_path}/queue; done')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cancel, "SQUEUE_INTERVAL_S", 0.05)
    return tmp_path


def test_a_sweep_is_cancelled_by_one_call(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cancel", "s"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"s-{number}: CANCELLED" for number in range(NUM_RUNS)]
    assert calls(folder / "bin", "scancel") == [" ".join(reversed(IDS))]
    assert len(calls(folder / "bin", "squeue")) <= 3  # however many runs there are


def test_one_that_is_refused_does_not_keep_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = "scancel: error: Kill job error on job id 77_1: Access/permission denied"
    take = f'[ $job = 77_1 ] && {{ echo "{error}" >&2; code=1; }} || sed -i "/^$job|/d" {folder}/queue'
    stand_in(folder / "bin", "scancel", f"code=0; for job; do {take}; done; exit $code")
    assert main(["cancel", "s", "--json"]) == 2
    told = capsys.readouterr()
    states = [json.loads(line).get("state") for line in told.out.splitlines()]
    assert states == ["CANCELLED", "RUNNING", *["CANCELLED"] * (NUM_RUNS - 2), None]
    assert f"s-1: scancel refused: {error}" in told.err
    assert [Run(folder / "runs" / "s" / str(number)).is_cancelled for number in range(3)] == [True, False, True]


def test_one_that_does_not_end_is_told_by_the_code(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancel, "CANCEL_MARGIN_S", 0.0)
    stand_in(folder / "bin", "scancel", f'for job; do [ $job = 77_4 ] || sed -i "/^$job|/d" {folder}/queue; done')
    assert main(["cancel", "s"]) == 1
    told = capsys.readouterr()
    assert told.out.splitlines()[3:] == ["s-3: CANCELLED", "s-4: RUNNING"]
    assert "s-4 did not end within 0 s" in told.err


def test_a_scheduler_that_does_not_answer_is_not_asked_run_by_run(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder / "bin"))
    (folder / "bin" / "scancel").unlink()
    (folder / "bin" / "squeue").unlink()
    assert main(["cancel", "s"]) == 2
    assert capsys.readouterr().err.count("scancel is not on PATH") == NUM_RUNS
    assert not any(Run(folder / "runs" / "s" / str(number)).is_cancelled for number in range(NUM_RUNS))
