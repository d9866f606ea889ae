"""What nodes are asked by `launch doctor` and `submit --preflight`, in which order; the answers, as they came."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.node_group import NodeGroup
from launch.node_probe import START_TIMEOUT_S

HELLO_TIMEOUT_S = 60.0
FACTS_TIMEOUT_S = 60.0
MEET_TIMEOUT_S = 10.0
TOGETHER_TIMEOUT_S = 30.0
MAX_ROUNDS = 7
"""Of pairs: all pairs of up to eight nodes; of more, each node with seven others."""
FEW_NODES = 4
"""So many nodes are measured one after another: agents on one machine, and a lab, share its processors."""
WINDOW_S, NUM_WINDOWS = 0.25, 6
PAIR_MEGABYTES, ALL_MEGABYTES, NUM_REPEATS = 4, 16, 5


@dataclass
class Answers:
    """What the nodes have said. Node numbers are keys; a node that said nothing is missing."""

    hosts: list[str]
    """The name of each node."""
    began: dict[int, str] = field(default_factory=dict)
    """The host name that each node gave itself."""
    skew_s: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Its clock minus that of whoever asked, and how uncertain that is, in seconds."""
    facts: dict[int, dict[str, Any]] = field(default_factory=dict)
    torch: dict[int, dict[str, Any]] = field(default_factory=dict)
    rates: dict[int, dict[str, Any]] = field(default_factory=dict)
    pairs: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    """The worse of both answers."""
    together: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    """Backend → node → answer, of the nodes whose pairs were all right."""
    nonce: str = ""
    wanted_ports: tuple[int, ...] = ()
    is_local: bool = False
    is_by_ssh: bool = False
    said: list[str] = field(default_factory=list)
    """What srun said beside the answers."""
    said_by: dict[int, list[str]] = field(default_factory=dict)
    """The same of each node that has an ssh of its own."""


def examine(
    group: NodeGroup,
    hosts: Sequence[str],
    folder: Path,
    rendezvous_id: str,
    *,
    ports: Sequence[int] = (),
    is_local: bool = False,
    is_by_ssh: bool = False,
    measures: bool = True,
    tell: Callable[[str], None] = lambda _text: None,
) -> Answers:
    """Asks the nodes of a group all there is to know.

    Args:
        group: the probes.
        hosts: the nodes' names, in order.
        folder: a directory on the disk that the nodes should share.
        rendezvous_id: whose ports are tried on each node.
        ports: others to be tried.
        is_local: all nodes are agents on this machine.
        is_by_ssh: each node has an ssh of its own.
        measures: False leaves out what needs torch, and some ten seconds.
        tell: is given a line before each part.
    """
    answers = Answers(list(hosts), wanted_ports=tuple(ports), is_local=is_local, is_by_ssh=is_by_ssh)
    tell(f"waiting for {len(hosts)} nodes")
    answers.began = group.hello(HELLO_TIMEOUT_S)
    nodes = sorted(answers.began)
    if nodes:
        tell("clocks, names, versions, ports, GPUs")
        answers.skew_s = _skews(group, nodes)
        _ask_facts(group, nodes, folder, rendezvous_id, answers, measures=measures)
        if measures:
            _measure(group, answers, tell)
    answers.said = list(group.said)
    answers.said_by = {node: group.said_by(node) for node in range(len(hosts))} if is_by_ssh else {}
    return answers


def _skews(group: NodeGroup, nodes: Sequence[int]) -> dict[int, tuple[float, float]]:
    """The tightest of three readings of each node's clock."""
    best: dict[int, tuple[float, float]] = {}
    for _ in range(3):
        sent = time.time()
        for node, answer in group.ask("clock", {node: {} for node in nodes}, 10.0).items():
            if "time" in answer:
                half = (answer["received_at"] - sent) / 2
                if node not in best or half < best[node][1]:
                    best[node] = (answer["time"] - sent - half, half)
    return best


def _ask_facts(
    group: NodeGroup, nodes: Sequence[int], folder: Path, rendezvous_id: str, answers: Answers, *, measures: bool
) -> None:
    answers.nonce = secrets.token_hex(8)
    path = folder / "nonce"
    path.write_text(answers.nonce, encoding="ascii")
    request = {
        "hosts": [] if answers.is_local else answers.hosts,
        "nonce": str(path),
        "rendezvous_id": rendezvous_id,
        "ports": list(answers.wanted_ports),
        "loads_torch": measures,
    }
    answers.facts = group.ask("facts", dict.fromkeys(nodes, request), FACTS_TIMEOUT_S)
    path.unlink()


def _measure(group: NodeGroup, answers: Answers, tell: Callable[[str], None]) -> None:
    nodes = [node for node, facts in sorted(answers.facts.items()) if "error" not in facts]
    tell("loading torch")
    answers.torch = group.ask("ready", {node: {} for node in nodes}, START_TIMEOUT_S + 5)
    nodes = [node for node in nodes if "error" not in answers.torch[node]]
    tell("matrix products")
    request = {"seconds": WINDOW_S, "windows": NUM_WINDOWS, "timeout_s": 60.0}
    for some in [[node] for node in nodes] if len(nodes) <= FEW_NODES else [nodes]:
        answers.rates |= group.ask("rate", dict.fromkeys(some, request), 90.0)
    rounds = list(rounds_of_pairs(nodes))
    for number, pairs in enumerate(rounds):
        tell(f"all-reduce pair by pair, round {number + 1} of {len(rounds)}")
        _meet_in_pairs(group, pairs, number, answers)
    apart = {node for pair, answer in answers.pairs.items() if "error" in answer for node in pair}
    sound = [node for node in nodes if node not in apart]
    if len(sound) > 1:
        have_gpus = all(answers.torch[node].get("cuda") for node in sound)
        for backend in ("gloo", "nccl") if have_gpus else ("gloo",):
            tell(f"all-reduce of {len(sound)} nodes together, {backend}")
            requests = _requests(sound, backend, ALL_MEGABYTES, -1 if backend == "gloo" else -2, answers)
            answers.together[backend] = group.ask("meet", requests, TOGETHER_TIMEOUT_S + 10)


def rounds_of_pairs(nodes: Sequence[int]) -> Iterator[list[tuple[int, int]]]:
    """Rounds of pairs (the circle method), until all have met or MAX_ROUNDS are over. Pure."""
    circle: list[int | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    for _ in range(min(len(circle) - 1, MAX_ROUNDS)):
        half = len(circle) // 2
        facing = zip(circle[:half], reversed(circle[half:]), strict=True)
        yield [(min(a, b), max(a, b)) for a, b in facing if a is not None and b is not None]
        circle = [circle[0], circle[-1], *circle[1:-1]]


def _meet_in_pairs(group: NodeGroup, pairs: Sequence[tuple[int, int]], number: int, answers: Answers) -> None:
    requests: dict[int, dict[str, Any]] = {}
    for pair in pairs:
        requests |= _requests(pair, "gloo", PAIR_MEGABYTES, number, answers)
    found = group.ask("meet", requests, 2 * MEET_TIMEOUT_S + 10)
    for first, second in pairs:
        both = (found[first], found[second])
        failed = next((answer for answer in both if "error" in answer), None)
        answers.pairs[first, second] = failed or max(both, key=lambda answer: float(answer["seconds"]))


def _requests(
    nodes: Sequence[int], backend: str, megabytes: int, port_index: int, answers: Answers
) -> dict[int, dict[str, Any]]:
    """What each of the nodes is to do, so that they meet on the first of them."""
    host = answers.facts[nodes[0]]
    spare = host["spare"] or [0]
    return {
        node: {
            "address": host["address"],
            "port": spare[port_index % len(spare)],
            "rank": rank,
            "world": len(nodes),
            "backend": backend,
            "megabytes": megabytes,
            "repeats": NUM_REPEATS,
            "timeout_s": MEET_TIMEOUT_S if len(nodes) == 2 else TOGETHER_TIMEOUT_S,
        }
        for rank, node in enumerate(nodes)
    }
