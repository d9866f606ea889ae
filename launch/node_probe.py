"""The part of `launch doctor` on a node: answers requests that come on standard input, a line of JSON each.

Started once per node by srun, ssh or the doctor itself. The network between nodes is what is examined; requests and
answers travel over that of the scheduler. An answer is cut into short lines, `CLEANSFT <node> <more|end> <text>`: srun
mixes the lines of several nodes, but no short line with another.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from launch import network, node_facts, processes
from launch.rendezvous import REACHED_AT
from launch.spec import ROOT

MARK = "CLEANSFT"
SETTINGS = "CLEANSFT_PROBE"
"""Variable with what the job would run with, as JSON: `env` for its ranks, and its `interface`."""
MAX_LINE = 800
START_TIMEOUT_S = 120.0
"""For Python and torch, from a disk that all nodes read at once."""


def frames(node: int, message: Mapping[str, Any]) -> list[str]:
    """The lines of an answer. Pure."""
    text = json.dumps(message)
    parts = [text[at : at + MAX_LINE] for at in range(0, len(text), MAX_LINE)]
    return [f"{MARK} {node} {'end' if part is parts[-1] else 'more'} {part}" for part in parts]


class Child:
    """`sft/node_check.py`: what needs torch. It is ended, and started anew, where it does not answer in time."""

    def __init__(self, python: str) -> None:
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this

    def start(self, environ: Mapping[str, str]) -> None:
        """Starts it; torch is loaded while other things are looked at."""
        self._process = subprocess.Popen(
            [self._python, "-u", str(ROOT / "sft" / "node_check.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=dict(environ),
            bufsize=0,
            preexec_fn=processes.before_exec(9),  # noqa: PLW1509 - one thread only
        )

    def ask(self, request: Mapping[str, Any], environ: Mapping[str, str], timeout_s: float) -> dict[str, Any]:
        """Its answer, or `{"error": …}`."""
        if self._process is None:
            self.start(environ)
        process = self._process
        assert process is not None
        assert process.stdin is not None
        if request.get("do") != "ready":
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
            except BrokenPipeError:
                return self._ended()
        return self._answer(process, timeout_s)

    def _answer(self, process: subprocess.Popen[bytes], timeout_s: float) -> dict[str, Any]:
        assert process.stdout is not None
        line, deadline = b"", time.monotonic() + timeout_s
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                self._end()
                return {"error": f"no answer within {timeout_s:.0f} s"}
            part = os.read(process.stdout.fileno(), 65536)
            if not part:
                return self._ended()
            line += part
        answer: dict[str, Any] = json.loads(line.splitlines()[-1])
        return answer

    def _ended(self) -> dict[str, Any]:
        process = self._process
        assert process is not None
        code = process.wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip().splitlines() or ["nothing"]
        self._process = None
        return {"error": f"sft/node_check.py ended with code {code}: {said[-1][:300]}"}

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Probe:
    """Answers the requests of one node."""

    def __init__(self, node: int, python: str, environ: Mapping[str, str], interface: str | None = None) -> None:
        self._node = node
        self._environ = dict(environ)
        self._interface = interface
        self._child = Child(python)

    def run(self) -> None:
        """Says that it is there, then answers until there is no more."""
        self._say({"hello": os.uname().nodename})
        for line in sys.stdin:
            request = json.loads(line)
            own = request["nodes"].get(str(self._node), request["nodes"].get("all"))
            if request["do"] == "end":
                return
            if own is not None:
                self._say({"id": request["id"], **self._answer(request["do"], own)})

    def _answer(self, what: str, own: dict[str, Any]) -> dict[str, Any]:
        if what == "clock":
            return {"time": time.time()}
        if what == "facts":
            reached_at = self._environ.get(REACHED_AT)
            found = node_facts.facts(
                own["hosts"], self._node, own["nonce"], own["rendezvous_id"], own["ports"], reached_at
            )
            if own.get("loads_torch", True):
                self._prepare(found["address"])
            return found
        if what == "ready":
            return self._child.ask({"do": "ready"}, self._environ, START_TIMEOUT_S)
        return self._child.ask({"do": what, **own}, self._environ, own.get("timeout_s", 30.0) + 5.0)

    def _prepare(self, address: str) -> None:
        """Starts the child with the interface that the launcher would choose."""
        interface = self._interface or (network.interface_towards(address) if address else None)
        if interface is not None:
            self._environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            self._environ.setdefault("NCCL_SOCKET_IFNAME", interface)
        cpus = self._environ.get("SLURM_CPUS_PER_TASK") or "1"
        self._environ.setdefault("OMP_NUM_THREADS", cpus)
        self._child.start(self._environ)

    def _say(self, message: Mapping[str, Any]) -> None:
        for line in frames(self._node, message):
            print(line, flush=True)


if __name__ == "__main__":
    processes.die_with_parent(15)
    own = json.loads(os.environ.get(SETTINGS, "{}"))
    environ = {**os.environ, **own.get("env", {})}
    Probe(int(os.environ["SLURM_NODEID"]), sys.executable, environ, own.get("interface")).run()
