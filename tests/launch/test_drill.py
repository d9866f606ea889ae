"""`launch drill`: what it submits, how it judges, and (make soak) a whole one on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launch import options
from launch.__main__ import main
from launch.drill import ROWS, Evidence, gather, problems, words_of
from launch.records import write_json
from launch.spec import ROOT

KILL = next(row for row in ROWS if row.name == "kill")
UNDISTURBED = Evidence((0,), (), {1: 2.5, 2: 2.25}, {"model.safetensors": "aa"})
GONE_ON = replace(UNDISTURBED, codes=(11, 0))


def test_a_run_that_went_on_as_if_nothing_had_been_passes() -> None:
    assert list(problems(KILL, GONE_ON, UNDISTURBED)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"codes": (11,), "weights": {}, "said": "launch.chain is none"},
            "ended with 11; they must with 11 then 0 (launch",
        ),
        ({"codes": (0,)}, "its attempts ended with 0; they must with 11 then 0"),
        ({"weights": {}}, "there is no final model"),
        (
            {"losses": {1: 2.5, 2: 2.2500000000000004}},
            "the loss of step 2 is 2.2500000000000004; undisturbed it is 2.25",
        ),
        ({"losses": {1: 2.5}}, "the loss of step 2 is None"),
        ({"weights": {"model.safetensors": "bb"}}, "the final weights are others than undisturbed"),
    ],
)
def test_what_is_other_than_it_must_be_is_told(change: dict[str, object], said: str) -> None:
    found = list(problems(KILL, replace(GONE_ON, **change), UNDISTURBED))  # type: ignore[arg-type]
    assert any(said in problem for problem in found), found


def test_a_row_submits_what_the_user_would_with_a_fault_and_few_steps() -> None:
    given = "drill --nodes 2 --zero 2 --config run.yaml --env A=b --steps 12 -- --learning_rate 1e-3".split()
    words = words_of(options.parse(given), KILL, "d-kill", 4)
    assert words[0] == "submit"
    own, dashes = words[1 : words.index("--")], words[words.index("--") + 1 :]
    assert {"--nodes=2", "--zero=2", "--config=run.yaml", "--name=d-kill", "--env=A=b", "--wait"} <= set(own)
    assert "--env=SFT_FAULT=kill@3:9" in own
    assert dashes[:2] == ["--learning_rate", "1e-3"]
    assert {"--max_steps=12", "--save_steps=4", "--logging_steps=1"} <= set(dashes)
    options.parse(words)  # the launcher understands it


def test_too_few_steps_are_refused() -> None:
    assert main(["drill", "--steps", "2"]) == 2


def test_the_evidence_is_read_from_the_run_directory(tmp_path: Path) -> None:
    for number, (code, ended_at) in enumerate([(11, 100.0), (0, 160.0)]):
        folder = tmp_path / "exit" / str(number)
        folder.mkdir(parents=True)
        write_json(folder / "attempt.json", {"began_at": ended_at - 57.5})
        write_json(folder / "end.json", {"own_code": code, "ended_at": ended_at, "reason": f"because {number}"})
    write_json(tmp_path / "training_log.json", [{"type": "train", "step": 1, "loss": 0.1}, {"type": "summary"}])  # type: ignore[arg-type]
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    found = gather(tmp_path)
    assert (found.codes, found.pauses_s, found.losses, found.said) == ((11, 0), (2.5,), {1: 0.1}, "because 1")
    assert list(found.weights) == ["model.safetensors"]


@pytest.mark.soak
@pytest.mark.ranks
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("words", "code", "said"), [([], 0, "6 of 6 rows passed"), (["--chain", "none"], 1, "launch.chain is none")]
)
def test_a_drill_on_this_machine(words: list[str], code: int, said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launch", "drill", "--executor", "local", "--nodes", "2", "--name", "d", *words]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert (result.returncode, said in result.stdout) == (code, True), result.stdout + result.stderr
