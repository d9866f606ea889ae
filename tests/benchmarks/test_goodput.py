"""What faults cost: the arithmetic of the benchmark, and (make soak) twenty faults that fall on one run."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from faults.recording import Shows

from benchmarks import goodput
from benchmarks.goodput import Attempt, Parts, Step, epochs_with_other_rows, lineage

# Steps of 1 s, a checkpoint after each second one, which takes 0.5 s; a fault in step 6 at 112; the second attempt goes
# on from step 4, is struck while it loads, and the third trains steps 5 to 7.
BEGINNINGS = {1: 105.0, 2: 106.0, 3: 107.5, 4: 108.5, 5: 110.0}
FIRST = Attempt(
    102.0,
    115.0,
    tuple(Step(step, began, began + 1.0, (step,)) for step, began in BEGINNINGS.items()),
    ((111.5, "kill"),),
)
SECOND = Attempt(116.0, 120.0, (), ((118.0, "stop"),))
THIRD = Attempt(121.0, 133.0, tuple(Step(step, 120.0 + step, 121.0 + step, (step,)) for step in (5, 6, 7)), ())


def test_the_parts_of_a_run_make_its_whole() -> None:
    parts = Parts.of(100.0, [FIRST, SECOND, THIRD])
    assert parts == Parts(
        whole=33.0,
        new_steps=7.0,
        start=3.0 + 2.0 + 4.0,
        redone=0.5 + 1.0,
        detect=3.5 + 2.0,
        restart=2.0 + 1.0 + 1.0,
        saving=1.0,
        end=5.0,
    )
    own = vars(parts)
    assert sum(seconds for name, seconds in own.items() if name != "whole") == own["whole"]


def test_the_steps_that_count_are_those_of_the_last_attempt_that_did_them() -> None:
    again = Attempt(0.0, 9.0, (Step(2, 0.0, 1.0, (7, 3)),))
    assert lineage([FIRST, again])[2] == [3, 7]
    assert lineage([FIRST, again])[1] == [1]


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        ({1: [0, 1], 2: [2, 3], 3: [3, 2], 4: [1, 0]}, []),
        ({1: [0, 1], 2: [2, 2], 3: [3, 2], 4: [1, 0]}, [1]),
        ({1: [0, 1], 2: [2, 3], 3: [3, 2], 4: [1]}, [2]),
        ({1: [0, 1], 2: [2, 3], 3: [3]}, []),  # an epoch that is not whole
    ],
)
def test_rows_that_are_not_seen_exactly_once(rows: dict[int, list[int]], wrong: list[int]) -> None:
    assert epochs_with_other_rows(rows, 4, 2) == wrong


def test_other_rows_or_weights_end_the_benchmark(tmp_path: Path) -> None:
    for name, weights in (("undisturbed", b"a"), ("same", b"a"), ("other", b"b")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "model.safetensors").write_bytes(weights)
    every = {1: list(range(64))}
    goodput.require_same(tmp_path, "same", every, every)
    with pytest.raises(SystemExit, match="the final weights of other"):
        goodput.require_same(tmp_path, "other", every, every)
    with pytest.raises(SystemExit, match="have computed other rows"):
        goodput.require_same(tmp_path, "same", {1: [0]}, every)


def twenty_faults(num_steps: int) -> str:
    """Of random kinds, on random ranks, in random steps and points, the same each time."""
    rng = random.Random(20)
    points = (("data", goodput.KINDS), ("step", goodput.KINDS), ("save_part_written", ("kill", "segv", "stop")))
    found = []
    for step in sorted(rng.sample(range(2, num_steps), 20)):
        point, kinds = rng.choice(points)
        at = -(-step // 16) * 16 if point.startswith("save") else step
        found.append(f"{rng.choice(kinds)}@{rng.randrange(2)}:{at}:{point}")
    return ",".join(found)


@pytest.mark.soak
@pytest.mark.ranks
@pytest.mark.timeout(3600)
def test_twenty_random_faults_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], shows: Shows) -> None:
    """Bar 6: the benchmark compares weights, and rows of each epoch."""
    words = ["--rounds", "1", "--steps", "640", "--step-s", "0.05", "--work", str(tmp_path)]
    goodput.main([*words, "--fault", twenty_faults(640)])
    printed = capsys.readouterr().out
    assert "20 faults (" in printed
    assert "**goodput 0." in printed
    shows(52, code=0, note=next(line for line in printed.splitlines() if "20 faults (" in line).strip())
