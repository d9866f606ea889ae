"""Faults on purpose: what is meant by their words, and that each happens once."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path

import pytest

from sft import faults
from sft.faults import (
    PART_COMMITTED,
    Fault,
    InjectedFaultError,
    RandomFaults,
    fault_at,
    flip_bit,
    install,
    parse_faults,
)
from strict_settings import SettingsError


@pytest.fixture(autouse=True)
def none_left() -> object:
    yield
    install({})


def test_words() -> None:
    assert parse_faults("kill@1:7, always:raise@0:3,enospc@2:5:manifest,kill@poisson:1:60") == [
        Fault("kill", 1, 7),
        Fault("raise", 0, 3, is_repeated=True),
        Fault("enospc", 2, 5, "manifest"),
        RandomFaults(("kill",), 1, 60.0),
    ]


@pytest.mark.parametrize(
    "text",
    [
        *("kill", "kill@1", "explode@1:7", "kill@-1:7", "kill+bang@poisson:1:60", "kill@poisson:1:0"),
        *("bitflip@0:7:save_part", "kill+bitflip@poisson:1:60"),
    ],
)
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="SFT_FAULT is"):
        install({"SFT_FAULT": text})


def test_a_slow_step_may_take_so_many_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("sft.faults.time.sleep", slept.append)
    install({"SFT_FAULT": "slow15@0:3:save_part,slow@0:4"})
    for point, step in (("step", 3), ("save_part", 3), ("step", 4)):
        assert fault_at(point, step, 0) is None
    assert slept == [15, 0.3]
    install({})


def test_without_the_variable_nothing_happens() -> None:
    install({})
    assert fault_at("step", 7, 1) is None


def test_a_fault_happens_at_its_point_once_in_a_run(tmp_path: Path) -> None:
    environ = {"SFT_FAULT": "raise@1:7,nan@0:2:save,always:perturb@0:3", "CLEANSFT_RUN_DIR": str(tmp_path)}
    install(environ)
    assert [fault_at("step", 7, 0), fault_at("step", 6, 1), fault_at("save", 7, 1)] == [None] * 3
    assert (fault_at("save", 2, 0), fault_at("step", 3, 0)) == ("nan", "perturb")
    with pytest.raises(InjectedFaultError):
        fault_at("step", 7, 1)
    install(environ)  # the next attempt
    assert (fault_at("step", 7, 1), fault_at("save", 2, 0), fault_at("step", 3, 0)) == (None, None, "perturb")


def test_a_flipped_bit_has_a_point_of_its_own_where_no_random_fault_happens() -> None:
    install({"SFT_FAULT": "bitflip@1:7,raise@poisson:1:0.000001"})
    assert (fault_at(PART_COMMITTED, 7, 0), fault_at(PART_COMMITTED, 7, 1)) == (None, "bitflip")
    with pytest.raises(InjectedFaultError):
        fault_at("step", 7, 0)


def test_one_bit_is_flipped(tmp_path: Path) -> None:
    path = tmp_path / "part"
    path.write_bytes(bytes(7))
    flip_bit(path)
    assert path.read_bytes() == b"\0\0\0\1\0\0\0"


@pytest.mark.parametrize(("kind", "code"), [("kill", -9), ("segv", -11), ("abort", -6), ("term", -15), ("exit0", 0)])
def test_ends(kind: str, code: int) -> None:
    program = "import os\nfrom sft.faults import *\ninstall(os.environ)\nfault_at('step', 1, 0)\nos._exit(3)"
    root = str(Path(faults.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program], env={"SFT_FAULT": f"{kind}@0:1", "PYTHONPATH": root}, check=False
    )
    assert done.returncode == code


def test_random_faults_are_a_poisson_process_that_the_seed_repeats() -> None:
    faults_of_1 = RandomFaults(("kill", "stop"), 1, 60.0)
    found = list(islice(faults_of_1.course(4, "0"), 4000))
    assert found == list(islice(faults_of_1.course(4, "0"), 4000))
    assert found != list(islice(faults_of_1.course(4, "1"), 4000))
    gaps = [after[0] - before[0] for before, after in pairwise(found)]
    assert sum(gaps) / len(gaps) == pytest.approx(60, rel=0.1)
    assert sum(gap < 6 for gap in gaps) / len(gaps) == pytest.approx(0.095, abs=0.02)  # not periodic
    assert {(kind, rank) for _, kind, rank in found} == {(kind, rank) for kind in ("kill", "stop") for rank in range(4)}
