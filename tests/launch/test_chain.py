"""What follows an attempt, and who may submit: decisions and claims, without any job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import attempts, claims
from launch.chain import Attempt, decide
from launch.errors import LaunchError, LockedError
from launch.spec import ROOT


def chain_of(*ends: tuple[int | None, int], **flags: bool) -> list[Attempt]:
    """Attempts with (code, newest checkpoint's step at its end); the flags are the last one's."""
    steps = [0, *(step for _, step in ends)]
    made = [Attempt(number, code, steps[number], step) for number, (code, step) in enumerate(ends)]
    return [*made[:-1], Attempt(made[-1].number, made[-1].code, made[-1].step_before, made[-1].step_after, **flags)]


@pytest.mark.parametrize(
    ("ends", "again", "code"),
    [
        ([(0, 9)], False, 0),
        *(([(code, 3)], True, code) for code in (10, 11, 12, 13, 17)),
        *(([(code, 3)], False, code) for code in (1, 2, 3, 14, 15, 16, 18, 42, 93)),
        ([(None, 3)], True, 143),
        ([(13, 3), (13, 6)], False, 13),
        ([(13, 3), (10, 6)], True, 10),
        ([(11, 0), (11, 0)], True, 11),
        ([(11, 0), (11, 0), (11, 0)], False, 93),
        ([(10, 0), (12, 0), (None, 0)], False, 93),
        ([(11, 5), (11, 5), (11, 5)], True, 11),
        ([(11, 5), (11, 5), (11, 5), (11, 5)], False, 93),
        ([(11, 1), (11, 1), (11, 2), (11, 2), (11, 2)], False, 11),
        ([(10, step) for step in range(1, 40)], True, 10),
    ],
)
def test_what_follows(ends: list[tuple[int | None, int]], again: bool, code: int) -> None:
    decision = decide(chain_of(*ends), "requeue", 4, is_cancelled=False)
    assert (decision.again, decision.code) == (again, code)


def test_a_signal_of_nobody_is_a_lost_rank_and_one_from_outside_is_a_stop() -> None:
    assert not decide(chain_of((137, 3)), "requeue", 4, is_cancelled=False).again
    assert decide(chain_of((137, 3), was_killed=True), "requeue", 4, is_cancelled=False).again
    stopped = chain_of(*((143, step) for step in range(1, 9)), was_stopped=True)
    assert decide(stopped, "singleton", 7, is_cancelled=False).again
    assert not decide(stopped, "singleton", 6, is_cancelled=False).again


@pytest.mark.parametrize(("chain", "is_cancelled"), [("none", False), ("requeue", True), ("singleton", True)])
def test_nothing_follows_where_nothing_may(chain: str, is_cancelled: bool) -> None:
    decision = decide(chain_of((10, 3)), chain, 4, is_cancelled=is_cancelled)  # type: ignore[arg-type]
    assert (decision.again, decision.code) == (False, 10)


def test_attempts_count_on_and_a_claim_begins_its_budget_anew(tmp_path: Path) -> None:
    job = {"resources": {"nodes": 1}, "chain": "requeue", "max_restarts": 5}
    claim = claims.make_claim(tmp_path, 0)
    assert claim is not None
    for number in range(2):
        assert attempts.begin(tmp_path, "7", {"CLEANSFT_CLAIM": "0"}) == number
        assert attempts.end(tmp_path, number, job, 12).again
    assert attempts.begin(tmp_path, "7", {"CLEANSFT_CLAIM": "0"}) == 2
    assert attempts.end(tmp_path, 2, job, 12).code == 93
    assert claims.make_claim(tmp_path, 0) is None
    assert claims.make_claim(tmp_path, 1) is not None
    with pytest.raises(LockedError, match="belongs to process"):
        attempts.begin(tmp_path, "7", {"CLEANSFT_CLAIM": "0"})
    (tmp_path / "checkpoints" / "step-00000030").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step-00000040.tmp").mkdir()
    assert attempts.begin(tmp_path, "8", {"CLEANSFT_CLAIM": "1"}) == 3
    assert [attempt.step_before for attempt in attempts.history(tmp_path, 1)] == [30]
    decision = attempts.end(tmp_path, 3, job, 12)
    assert (decision.again, decision.reason) == (True, "attempt 4 goes on from step 30")


def test_a_later_attempt_takes_up_what_an_earlier_one_of_the_same_submission_has_saved(tmp_path: Path) -> None:
    """Whatever `resume_from_checkpoint` says: that is for the first attempt, which may have passed over older ones."""

    def goes_on(claim: int) -> bool:
        number = attempts.begin(tmp_path, "7", {"CLEANSFT_CLAIM": str(claim)})
        return bool(attempts.read_begin(tmp_path, number)["goes_on"])

    assert claims.make_claim(tmp_path, 0) is not None
    assert [goes_on(0), goes_on(0)] == [False, False]
    (tmp_path / "checkpoints" / "step-00000030").mkdir(parents=True)
    assert goes_on(0)
    assert claims.make_claim(tmp_path, 1) is not None
    assert [goes_on(1), goes_on(1)] == [False, False]  # step 30 was there before: the settings may not want it
    (tmp_path / "checkpoints" / "step-00000030").rmdir()
    assert not goes_on(1)
    (tmp_path / "checkpoints" / "step-00000030").mkdir()
    assert goes_on(1)  # it is another one


def test_a_directory_that_others_may_write_is_not_run(tmp_path: Path) -> None:
    tmp_path.chmod(0o770)
    with pytest.raises(LaunchError, match="has mode 770; it must"):
        attempts.begin(tmp_path, "7", {})
    assert attempts.numbers(tmp_path) == []


def test_of_many_claims_at_once_one_is_made(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from launch.claims import make_claim; sys.stdin.read(1); "
        "print(make_claim(Path(sys.argv[1]), 0) is not None)"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(20)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("x")
        racer.stdin.flush()
    said = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert sorted(said) == ["False"] * 19 + ["True"]


def test_who_holds_a_claim(tmp_path: Path) -> None:
    claim = claims.make_claim(tmp_path, 0)
    assert claim is not None
    assert claim.submitter_lives() is True
    assert f"process {os.getpid()} on" in claim.holder
    for changes, lives in (({"start_ticks": 1}, False), ({"boot_id": "x"}, False), ({"host": "elsewhere"}, None)):
        claim.path.write_text(json.dumps({**claim.record, **changes}))
        latest = claims.latest_claim(tmp_path)
        assert latest is not None
        assert latest.submitter_lives() is lives
    assert "job 42" in claim.with_job("42").holder
    assert [path.name for path in (tmp_path / "claims").iterdir()] == ["0.json"]
