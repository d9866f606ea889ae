"""How the agents of a job find each other: each says that it is there, and node 0 offers an address and a port."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch import network
from launch.errors import RendezvousError
from launch.records import read_json, write_json
from launch.rendezvous import Allocation, Rendezvous, candidate_ports

RENDEZVOUS_TIMEOUT_S = 60.0
ANSWER_S = 3.0
"""How much longer the others wait: node 0 says who is missing."""
_POLL_S = 0.1
_LOOK_THERE = "Look there whether Python starts and the run directory's disk is mounted."


class Meeting:
    """The meeting of an attempt's nodes, in its folder of records."""

    def __init__(self, allocation: Allocation, records: Path, executor: str, is_stopped: Callable[[], bool]) -> None:
        self._allocation = allocation
        self._node = allocation.node_rank
        self._records = records
        self._executor = executor
        self._is_stopped = is_stopped

    def hold(self) -> Rendezvous:
        """Waits for all nodes; where they meet.

        Raises:
            RendezvousError: a node is missing, or said nothing, in RENDEZVOUS_TIMEOUT_S; or this one was told to stop.
        """
        path = self._records / "rendezvous.json"
        host = self._allocation.hosts[self._node]
        addresses = [address for address in network.interface_addresses().values() if not address.startswith("127.")]
        here = {"host": host, "pid": os.getpid(), "at": time.time(), "addresses": addresses}
        write_json(self._records / f"here-{self._node}.json", here)
        if self._node == 0:
            self._await_all_nodes()
            port = network.first_free_port(
                candidate_ports(self._allocation.rendezvous_id, network.ephemeral_ports()),
            )
            record = {"address": self._address(), "port": port, "job_id": self._allocation.job_id}
            write_json(path, {**record, "nonce": secrets.token_hex(16)})
        meeting = self._published(path)
        return Rendezvous(
            self._allocation.rendezvous_id,
            meeting["address"],
            str(meeting["port"]),
            self._node,
            self._allocation.hosts,
            meeting["nonce"],
        )

    def _await_all_nodes(self) -> None:
        """Node 0 offers an address only when all are there: whoever starts alone would wait for the others for long."""
        deadline = time.monotonic() + RENDEZVOUS_TIMEOUT_S
        hosts = self._allocation.hosts
        while missing := self._missing():
            if self._is_stopped():
                raise self._stopped()
            if time.monotonic() > deadline:
                raise RendezvousError(
                    f"{len(hosts) - len(missing)} of {len(hosts)} nodes after {RENDEZVOUS_TIMEOUT_S:.0f} s: missing "
                    f"{_shown(missing)}. {_LOOK_THERE}"
                )
            time.sleep(_POLL_S)

    def _missing(self) -> list[str]:
        """The hosts whose agents have not said that they are there."""
        present = set(os.listdir(self._records))
        return [host for index, host in enumerate(self._allocation.hosts) if f"here-{index}.json" not in present]

    def _stopped(self) -> RendezvousError:
        """Where a node's task ends at once, srun ends all others within seconds: that node is among the missing."""
        missing = self._missing()
        where = f": {_shown(missing)} had not come. {_LOOK_THERE}" if missing else "."
        return RendezvousError(f"stopped while waiting for the other nodes{where}")

    def _address(self) -> str:
        if self._executor == "local" or len(self._allocation.hosts) == 1:
            return "127.0.0.1"
        return network.published_address(self._allocation.hosts, self._allocation.reached_at)

    def _published(self, path: Path) -> dict[str, Any]:
        deadline = time.monotonic() + RENDEZVOUS_TIMEOUT_S + ANSWER_S
        while time.monotonic() < deadline and not self._is_stopped():
            os.listdir(path.parent)  # makes NFS look again
            if (meeting := read_json(path)) is not None:
                return meeting
            time.sleep(_POLL_S)
        if self._is_stopped():
            raise self._stopped()
        raise RendezvousError(
            f"{path} did not appear within {RENDEZVOUS_TIMEOUT_S:.0f} s; node 0 ({self._allocation.hosts[0]}) must "
            "write it. Look at its log, and whether both nodes share the run directory's disk."
        )


def _shown(hosts: Sequence[str]) -> str:
    return ", ".join(hosts[:5]) + (", …" if len(hosts) > 5 else "")
