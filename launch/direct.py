"""Starts the ranks of one node by itself: `launcher: direct`, in torchrun's place.

torchrun imports torch on each node before it starts anything; this is standard library only, so ranks begin seconds
sooner, and scripts that know no torch can be run as well. The words are torchrun's own names for the same things, and
ranks get the variables that `torch.distributed` reads (`init_method="env://"`); rank 0 opens the store.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

if __name__ == "__main__":
    # Started by its path: `launch` is found from here, and no module of it by a bare name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.errors import OK
from launch.processes import as_shell, before_exec, send


def rank_variables(
    node: int, local_rank: int, *, nodes: int, procs_per_node: int, address: str, port: str
) -> dict[str, str]:
    """What a rank is told of itself and the others. Pure."""
    return {
        "RANK": str(node * procs_per_node + local_rank),
        "WORLD_SIZE": str(nodes * procs_per_node),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(procs_per_node),
        "GROUP_RANK": str(node),
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
    }


class Ranks:
    """The ranks of this node, as processes."""

    def __init__(self, argv: Sequence[str], environments: Sequence[Mapping[str, str]]) -> None:
        self._living: dict[int, subprocess.Popen[bytes]] = {}
        self._told: list[int] = []
        """Signals to pass on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        for environment in environments:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **environment},
                preexec_fn=before_exec(signal.SIGKILL),  # noqa: PLW1509 - one thread only
            )
            self._living[process.pid] = process
        for told in tuple(self._told):  # while some of them were not there yet
            send(tuple(self._living), told)

    def wait(self) -> int:
        """0 when all are done; the code of the first one that fails, after which the others are ended."""
        code = OK
        while self._living:
            pid, status = os.waitpid(-1, 0)
            if self._living.pop(pid, None) is not None and code == OK:
                code = as_shell(os.waitstatus_to_exitcode(status))
                if code != OK:
                    send(tuple(self._living), signal.SIGTERM)
        return code

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self._told.append(number)
        send(tuple(self._living), number)


def main(words: Sequence[str]) -> int:
    """Runs the ranks of this node to their end; the exit code."""
    parser = argparse.ArgumentParser(prog="direct.py", description=__doc__, allow_abbrev=False)
    for name in ("--nnodes", "--node-rank", "--nproc-per-node"):
        parser.add_argument(name, type=int, required=True)
    for name in ("--master-addr", "--master-port"):
        parser.add_argument(name, required=True)
    parser.add_argument("script")
    given = parser.parse_args(words)
    environments = [
        rank_variables(
            given.node_rank,
            local_rank,
            nodes=given.nnodes,
            procs_per_node=given.nproc_per_node,
            address=given.master_addr,
            port=given.master_port,
        )
        for local_rank in range(given.nproc_per_node)
    ]
    return Ranks([sys.executable, "-u", given.script], environments).wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
