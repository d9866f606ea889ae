"""Ranks of one machine that compute on its CPUs each keep to their own cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sft.config import ROOT
from sft.core_binding import cores, keep_to_own_cores, share

TWO = {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}
BINDS = """
import json, os, sys, threading
from sft.core_binding import keep_to_own_cores
allowed = sorted(os.sched_getaffinity(0))
going_on = threading.Event()
earlier = threading.Thread(target=going_on.wait, daemon=True)
earlier.start()
bound = keep_to_own_cores(os.environ, int(sys.argv[1]))
print(json.dumps([allowed, bound, *(sorted(os.sched_getaffinity(thread)) for thread in (0, earlier.native_id))]))
"""


def bind(num_threads: int, **environment: str) -> list[list[int] | None]:
    """(CPUs before, what is told, CPUs after, and those of a thread that was there before), in a process of its own."""
    command = [sys.executable, "-c", BINDS, str(num_threads)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found: list[list[int] | None] = json.loads(done.stdout)
    return found


def machine(folder: Path, siblings: dict[int, str], packages: dict[int, int]) -> Path:
    """What Linux tells of CPUs."""
    for cpu, text in siblings.items():
        topology = folder / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{text}\n")
        (topology / "physical_package_id").write_text(f"{packages[cpu]}\n")
    return folder


is_plain = pytest.mark.skipif(
    len(cores(os.sched_getaffinity(0))) < 2 or Path("/sys/devices/cpu_atom").exists(),
    reason="the tests may use one core only, or cores of two kinds",
)


@is_plain
def test_a_rank_and_all_its_threads_keep_to_its_share() -> None:
    found = [bind(1, LOCAL_WORLD_SIZE="2", LOCAL_RANK=rank) for rank in "01"]
    allowed = found[0][0]
    for _, told, own, of_the_thread in found:
        assert told is not None
        assert sorted(told) == own == of_the_thread
    first, second = (set(told or ()) for _, told, _, _ in found)
    assert first
    assert len(first) == len(second)
    assert not first & second
    assert first | second <= set(allowed or ())


@is_plain
@pytest.mark.parametrize(
    ("num_threads", "environment"),
    [
        (1, {}),
        (1, {"LOCAL_WORLD_SIZE": "1"}),
        (1, {"LOCAL_SIZE": "1"}),
        (1, {**TWO, "OMP_PROC_BIND": "false"}),
        (1, {**TWO, "GOMP_CPU_AFFINITY": "0"}),
        (len(os.sched_getaffinity(0)), TWO),
        (1, {"LOCAL_WORLD_SIZE": "10000", "LOCAL_RANK": "0"}),
    ],
)
def test_nothing_is_bound_that_should_not_be(num_threads: int, environment: dict[str, str]) -> None:
    allowed, told, own, _ = bind(num_threads, **environment)
    assert (told, own) == (None, allowed)


@is_plain
def test_deepspeeds_launcher_has_another_name_for_the_number_of_ranks() -> None:
    assert bind(1, LOCAL_SIZE="2", LOCAL_RANK="1")[1] == bind(1, **TWO)[1]


def test_two_threads_of_a_core_stay_together_and_so_do_the_cores_of_a_socket(tmp_path: Path) -> None:
    # Two sockets of two cores, numbered in turn; the second threads come after all first ones.
    siblings = {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}
    folder = machine(tmp_path, siblings, {cpu: cpu % 2 for cpu in range(8)})
    found = cores(range(8), folder)
    assert found == [[0, 4], [2, 6], [1, 5], [3, 7]]
    assert [share(found, rank, 2) for rank in range(2)] == [[0, 4, 2, 6], [1, 5, 3, 7]]
    assert cores([1, 2, 5], folder) == [[2], [1, 5]]  # what Slurm has given


def test_a_share_is_of_whole_cores_and_as_large_as_any_other() -> None:
    assert [share([[0], [1], [2]], rank, 2) for rank in range(2)] == [[0], [1]]
    assert share([[0, 1]], 0, 2) == []


def test_a_system_that_tells_nothing_of_its_cores_has_one_for_each_cpu(tmp_path: Path) -> None:
    assert cores([3, 1], tmp_path) == [[1], [3]]


def test_cores_of_two_kinds_are_left_to_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sft.core_binding._SLOWER_CORES", tmp_path)
    assert keep_to_own_cores(TWO, 1) is None
