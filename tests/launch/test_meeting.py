"""Nodes that find each other, and one that never starts."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from launch import meeting
from launch.agent import run_node
from launch.errors import RENDEZVOUS_FAILED, RendezvousError
from launch.meeting import Meeting
from launch.rendezvous import Allocation

HOSTS = ("n1", "n2", "n3")


def of_node(node: int, records: Path) -> Meeting:
    return Meeting(Allocation("7", 0, HOSTS, node), records, "local", lambda: False)


def test_all_nodes_meet_where_node_0_says(tmp_path: Path) -> None:
    found = {}
    threads = [
        threading.Thread(target=lambda node=node: found.update({node: of_node(node, tmp_path).hold()}))
        for node in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert {(place.address, place.port, place.id) for place in found.values()} == {("127.0.0.1", found[0].port, "7.0")}
    assert [found[node].node_rank for node in range(3)] == [0, 1, 2]


def test_a_node_that_never_starts_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 46 of the faults: node 0 waits for all, and says who is missing; the others end by themselves."""
    monkeypatch.setattr(meeting, "RENDEZVOUS_TIMEOUT_S", 0.5)
    monkeypatch.setattr(meeting, "ANSWER_S", 0.3)

    def hold_in_vain() -> None:
        with pytest.raises(RendezvousError):
            of_node(1, tmp_path).hold()

    other = threading.Thread(target=hold_in_vain)
    other.start()
    with pytest.raises(RendezvousError, match=r"^2 of 3 nodes after 0 s: missing n3\."):
        of_node(0, tmp_path).hold()
    other.join(10)
    assert not (tmp_path / "rendezvous.json").exists()


def test_who_was_told_to_stop_waits_no_longer(tmp_path: Path) -> None:
    with pytest.raises(RendezvousError, match="stopped while waiting"):
        Meeting(Allocation("7", 0, HOSTS, 1), tmp_path, "local", lambda: True).hold()


def test_a_node_whose_task_ended_at_once_is_named(tmp_path: Path) -> None:
    """srun then tells all others to stop, long before they would give up; nothing is published for the missing one."""
    (tmp_path / "here-2.json").write_text("{}")
    for node in (0, 2):
        with pytest.raises(RendezvousError, match=r"^stopped while waiting for the other nodes: .*n2.* Look there wh"):
            Meeting(Allocation("7", 0, HOSTS, node), tmp_path, "local", lambda: True).hold()
    assert not (tmp_path / "rendezvous.json").exists()


@pytest.mark.parametrize("names", [{}, {"SLURM_JOB_NODELIST": "n[1", "SLURM_JOB_ID": "7", "SLURM_NODEID": "0"}])
def test_an_agent_that_cannot_begin_ends_with_the_code_of_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], names: dict[str, str]
) -> None:
    """With one line, not a traceback: without a job.json, or with a list of nodes that is none."""
    slurm = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "7", "SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "2"}
    for name, value in (slurm | names).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        run_node(str(tmp_path))
    assert ended.value.code == RENDEZVOUS_FAILED
    said = capsys.readouterr().err
    assert said.startswith("error: the node list is 'n[1'" if names else f"error: {tmp_path}/job.json is missing")
