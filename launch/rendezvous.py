"""How the nodes of a job find each other. Pure: variables and texts in, values out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from launch.errors import RendezvousError

FIRST_PORT = 10_000
LAST_PORT = 65_000
NUM_CANDIDATE_PORTS = 32
MAX_HOSTS = 100_000
REACHED_AT = "CLEANSFT_REACHED_AT"
"""The variable that tells the agent of a host to which of its addresses ssh came."""
_LAST_RESORT = range(5_500, 5_600)
"""Where the kernel hands out every port from 10000 on: a stretch that is hardly used."""

_GROUP = re.compile(r"\[([^\[\]]*)\]")
_RANGE = re.compile(r"([0-9]+)(?:-([0-9]+))?")


@dataclass(frozen=True)
class Allocation:
    """What Slurm, or the local supervisor in its place, gave this node."""

    job_id: str
    attempt: int
    hosts: tuple[str, ...]
    node_rank: int
    reached_at: str | None = None
    """The address of this node by which ssh came to it; None on Slurm."""

    @property
    def rendezvous_id(self) -> str:
        """`<job>.<attempt>`: a requeued job never meets its own past."""
        return f"{self.job_id}.{self.attempt}"


@dataclass(frozen=True)
class Rendezvous:
    """Where the ranks of all nodes meet. Text, as the dry run fills in what is known later."""

    id: str
    address: str
    port: str
    node_rank: int | str
    hosts: tuple[str, ...]
    nonce: str = ""
    """By which ranks know that they are all of this attempt: hexadecimal digits."""


def allocation_from(variables: Mapping[str, str]) -> Allocation:
    """The allocation that Slurm's variables describe.

    Raises:
        RendezvousError: a variable is missing or contradicts another.
    """
    missing = [name for name in ("SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_NODEID") if not variables.get(name)]
    if missing:
        raise RendezvousError(f"{', '.join(missing)} is not set; the agent must run as a task of a Slurm step.")
    hosts = expand_hostlist(variables["SLURM_JOB_NODELIST"])
    node_rank = int(variables["SLURM_NODEID"])
    num_nodes = int(variables.get("SLURM_JOB_NUM_NODES", len(hosts)))
    if num_nodes != len(hosts) or not 0 <= node_rank < num_nodes:
        raise RendezvousError(
            f"SLURM_JOB_NODELIST names {len(hosts)} nodes, SLURM_JOB_NUM_NODES is {num_nodes} and SLURM_NODEID is "
            f"{node_rank}; they must agree. Is the agent started inside a step of another job?"
        )
    # The number that the batch script has opened counts over requeues, successors and resumed jobs.
    attempt = int(variables.get("CLEANSFT_ATTEMPT") or variables.get("SLURM_RESTART_COUNT") or 0)
    return Allocation(variables["SLURM_JOB_ID"], attempt, hosts, node_rank, variables.get(REACHED_AT))


def expand_hostlist(text: str) -> tuple[str, ...]:
    """`n[1-3,07-08],gpu-a[1-2]b` → n1 n2 n3 n07 n08 gpu-a1b gpu-a2b, in Slurm's order.

    Raises:
        RendezvousError: brackets or ranges that Slurm does not write.
    """
    hosts: list[str] = []
    for part in _split_outside_brackets(text):
        expanded = [""]
        position = 0
        for group in _GROUP.finditer(part):
            literal = part[position : group.start()]
            numbers = _expand_ranges(group[1], text)
            expanded = [prefix + literal + number for prefix in expanded for number in numbers]
            position = group.end()
        rest = part[position:]
        if not part or any(character in rest for character in "[]") or len(hosts) + len(expanded) > MAX_HOSTS:
            raise RendezvousError(f"the node list is {text!r}; it must be as Slurm writes it, like n[1-3,07].")
        hosts += [prefix + rest for prefix in expanded]
    return tuple(hosts)


def _split_outside_brackets(text: str) -> list[str]:
    return re.split(r",(?![^\[]*\])", text)


def _expand_ranges(ranges: str, text: str) -> list[str]:
    numbers: list[str] = []
    for part in ranges.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise RendezvousError(f"the node list is {text!r}; {part!r} in it must be a number or a range.")
        first, last = match[1], match[2] or match[1]
        if not 0 <= int(last) - int(first) < MAX_HOSTS:
            raise RendezvousError(f"the node list is {text!r}; the range {part!r} in it must grow.")
        # Slurm pads with zeros to the width of the first number.
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return numbers


def candidate_ports(rendezvous_id: str, ephemeral: tuple[int, int]) -> tuple[int, ...]:
    """Ports for node 0 to try in turn: the same for the same job and attempt, apart for different ones.

    Args:
        rendezvous_id: `<job>.<attempt>`.
        ephemeral: first and last port that the kernel hands out by itself
            (/proc/sys/net/ipv4/ip_local_port_range); a listener there meets outgoing connections.
    """
    import random  # 10 ms that only node 0 needs

    low, high = ephemeral
    below = range(FIRST_PORT, max(FIRST_PORT, min(low, LAST_PORT + 1)))
    above = range(max(high + 1, FIRST_PORT), LAST_PORT + 1)
    if len(below) + len(above) < NUM_CANDIDATE_PORTS:
        below, above = _LAST_RESORT, range(0)
    indices = random.Random(rendezvous_id).sample(range(len(below) + len(above)), NUM_CANDIDATE_PORTS)
    return tuple(below[index] if index < len(below) else above[index - len(below)] for index in indices)
