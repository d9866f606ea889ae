"""Node lists, allocations and ports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.errors import RendezvousError
from launch.rendezvous import FIRST_PORT, LAST_PORT, allocation_from, candidate_ports, expand_hostlist


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("n1", "n1"),
        ("n[1-3]", "n1 n2 n3"),
        ("n[1-3,07-10],gpu-a[1-2]b", "n1 n2 n3 n07 n08 n09 n10 gpu-a1b gpu-a2b"),
        ("a,b-c,d[5]", "a b-c d5"),
        ("r[1-2]n[08-10].x", "r1n08.x r1n09.x r1n10.x r2n08.x r2n09.x r2n10.x"),
        ("n[099-101]", "n099 n100 n101"),
    ],
)
def test_expand_hostlist(text: str, hosts: str) -> None:
    assert expand_hostlist(text) == tuple(hosts.split())


@pytest.mark.parametrize(
    "text", ["", "n[1-", "n1-3]", "n[a-b]", "n[3-1]", "n[1-3],", "n[[1]]", "n[]", "n[1-999999999]"]
)
def test_broken_hostlists(text: str) -> None:
    with pytest.raises(RendezvousError, match="the node list is"):
        expand_hostlist(text)


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z][a-z-]{0,5}[a-z]", fullmatch=True),
            st.lists(st.tuples(st.integers(0, 200), st.integers(0, 9), st.integers(1, 4)), min_size=1, max_size=4),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_expanding_undoes_compressing(groups: list[tuple[str, list[tuple[int, int, int]]]]) -> None:
    text, expected = [], []
    for prefix, ranges in groups:
        words = []
        for first, length, width in ranges:
            words.append(f"{first:0{width}}-{first + length:0{width}}" if length else f"{first:0{width}}")
            expected += [f"{prefix}{number:0{len(f'{first:0{width}}')}}" for number in range(first, first + length + 1)]
        text.append(f"{prefix}[{','.join(words)}]")
    assert expand_hostlist(",".join(text)) == tuple(expected)


@given(st.integers(1, 10**8), st.integers(0, 50), st.integers(1024, 60_000), st.integers(0, 40_000))
def test_ports_avoid_what_the_kernel_hands_out(job: int, attempt: int, low: int, length: int) -> None:
    high = min(low + length, 65_535)
    ports = candidate_ports(f"{job}.{attempt}", (low, high))
    assert ports == candidate_ports(f"{job}.{attempt}", (low, high))
    assert len(set(ports)) == len(ports) >= 16
    if low > FIRST_PORT + 100 or high < LAST_PORT - 100:
        assert all(FIRST_PORT <= port <= LAST_PORT and not low <= port <= high for port in ports)


def test_jobs_and_attempts_begin_at_different_ports() -> None:
    # Ids that are congruent modulo any round number too.
    first = {
        candidate_ports(f"{job}.{attempt}", (32768, 60999))[0] for job in range(0, 10**6, 1000) for attempt in (0, 1)
    }
    assert len(first) > 1900


VARIABLES = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NODEID": "1",
}


def test_allocation() -> None:
    allocation = allocation_from(VARIABLES | {"SLURM_RESTART_COUNT": "3"})
    assert (allocation.hosts, allocation.node_rank, allocation.rendezvous_id) == (("n1", "n2"), 1, "17.3")
    assert allocation_from(VARIABLES).rendezvous_id == "17.0"


@pytest.mark.parametrize(
    "change",
    [{"SLURM_NODEID": "2"}, {"SLURM_JOB_NUM_NODES": "1"}, {"SLURM_JOB_ID": ""}, {"SLURM_JOB_NODELIST": "n[1"}],
)
def test_contradicting_variables(change: dict[str, str]) -> None:
    with pytest.raises(RendezvousError) as error:
        allocation_from(VARIABLES | change)
    assert error.value.exit_code == 17
