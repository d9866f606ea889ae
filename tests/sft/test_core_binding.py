"""Ranks of one machine that compute on its CPUs each keep to their own cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sft.config import ROOT
from sft.core_binding import are_alike, cores, own_share

TWO = {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}
BINDS = """
import json, os, sys, threading
from sft.core_binding import own_cores

def thread():
    found = threading.Thread(target=threading.Event().wait, daemon=True)
    found.start()
    return found.native_id

seen = [sorted(os.sched_getaffinity(0))]
earlier = thread()
with own_cores(os.environ, int(sys.argv[1])) as own:
    seen.append(own)
    seen += [sorted(os.sched_getaffinity(number)) for number in (0, earlier, thread())]
seen += [sorted(os.sched_getaffinity(number)) for number in (0, earlier)]
print(json.dumps(seen))
"""


def bind(num_threads: int, **environment: str) -> list[list[int] | None]:
    """CPUs of a process of its own: before, those told, of it and of two threads meanwhile, of it and of one after."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP", "GOMP", "KMP", "LOCAL"))
    }
    command = [sys.executable, "-c", BINDS, str(num_threads)]
    environment = {**inherited, **environment}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found: list[list[int] | None] = json.loads(done.stdout)
    return found


def machine(devices: Path, siblings: dict[int, str], packages: dict[int, int]) -> Path:
    """What Linux tells of CPUs."""
    for cpu, text in siblings.items():
        topology = devices / f"system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{text}\n")
        (topology / "physical_package_id").write_text(f"{packages[cpu]}\n")
    return devices


@pytest.fixture
def allowed() -> list[int]:
    """The CPUs of the tests, on which two ranks can be bound."""
    found = sorted(os.sched_getaffinity(0))
    if own_share(found, 0, 2, 1) is None:
        pytest.skip("the tests may use one core only, or cores of two kinds")
    return found


def test_a_rank_and_all_its_threads_keep_to_its_share_and_are_free_again_after_it(allowed: list[int]) -> None:
    shares = []
    for rank in "01":
        before, own, *meanwhile, after, after_thread = bind(1, **TWO | {"LOCAL_RANK": rank})
        assert own is not None
        assert meanwhile == [sorted(own)] * 3
        assert before == after == after_thread == allowed
        shares.append(set(own))
    assert shares[0] & shares[1] == set()
    assert shares[0] | shares[1] <= set(allowed)


@pytest.mark.parametrize(
    ("num_threads", "environment"),
    [
        (1, {}),
        (1, {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}),
        (1, {"LOCAL_WORLD_SIZE": "two", "LOCAL_RANK": "1"}),
        (1, {"LOCAL_SIZE": "1", "LOCAL_RANK": "0"}),
        (1, {"LOCAL_WORLD_SIZE": "2"}),
        (1, {**TWO, "OMP_PROC_BIND": "false"}),
        (1, {**TWO, "OMP_PLACES": "cores"}),
        (1, {**TWO, "GOMP_CPU_AFFINITY": "0"}),
        (1, {**TWO, "KMP_AFFINITY": "none"}),
        (10_000, TWO),
        (1, {"LOCAL_WORLD_SIZE": "10000", "LOCAL_RANK": "1"}),
    ],
)
def test_nothing_is_bound_that_should_not_be(allowed: list[int], num_threads: int, environment: dict[str, str]) -> None:
    before, own, *rest = bind(num_threads, **environment)
    assert own is None
    assert [before, *rest] == [allowed] * 6


def test_a_rank_beyond_their_number_is_not_bound(allowed: list[int]) -> None:
    assert bind(1, LOCAL_WORLD_SIZE="2", LOCAL_RANK="2")[1] is None


def test_deepspeeds_launcher_has_another_name_for_the_number_of_ranks(allowed: list[int]) -> None:
    assert bind(1, LOCAL_SIZE="2", LOCAL_RANK="1")[1] == bind(1, **TWO)[1] != allowed


def test_two_threads_of_a_core_stay_together_and_so_do_the_cores_of_a_socket(tmp_path: Path) -> None:
    # Two sockets of two cores, numbered in turn; the second threads come after all first ones.
    siblings = {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}
    devices = machine(tmp_path, siblings, {cpu: cpu % 2 for cpu in range(8)})
    assert cores(range(8), devices) == [[0, 4], [2, 6], [1, 5], [3, 7]]
    assert [own_share(range(8), rank, 2, 4, devices) for rank in (0, 1)] == [[0, 4, 2, 6], [1, 5, 3, 7]]
    assert [own_share(range(8), rank, 2, 5, devices) for rank in (0, 1)] == [None, None]
    # Part of a machine: of one core Slurm has given both threads, of the other one. All ranks decide alike.
    assert [own_share([1, 2, 5], rank, 2, 1, devices) for rank in (0, 1)] == [[2], [1, 5]]
    assert [own_share([1, 2, 5], rank, 2, 2, devices) for rank in (0, 1)] == [None, None]


def test_a_share_is_of_as_many_cores_as_any_other(tmp_path: Path) -> None:
    devices = machine(tmp_path, {0: "0-1", 1: "0-1", 2: "2", 3: "3", 4: "4"}, dict.fromkeys(range(5), 0))
    assert [own_share([2, 3, 4], rank, 2, 1, devices) for rank in (0, 1)] == [[2], [3]]
    assert own_share([0, 1], 0, 2, 1, devices) is None


def test_a_system_that_tells_nothing_of_its_cores_has_one_for_each_cpu(tmp_path: Path) -> None:
    assert cores([3, 1], tmp_path) == [[1], [3]]
    assert are_alike([3, 1], tmp_path)


def test_cores_of_two_kinds_are_told_apart(tmp_path: Path) -> None:
    for cpu, capacity in ((0, 1024), (1, 1024), (2, 446)):
        folder = tmp_path / f"system/cpu/cpu{cpu}"
        folder.mkdir(parents=True)
        (folder / "cpu_capacity").write_text(f"{capacity}\n")
    assert are_alike([0, 1], tmp_path)
    assert not are_alike([0, 1, 2], tmp_path)
    assert [own_share(cpus, 0, 2, 1, tmp_path) for cpus in ([0, 1], [0, 1, 2])] == [[0], None]
    (tmp_path / "cpu_atom").mkdir()
    assert not are_alike([0, 1], tmp_path)
