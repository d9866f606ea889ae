"""Nodes that find each other, and one that never starts."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from launch import meeting
from launch.errors import RendezvousError
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
