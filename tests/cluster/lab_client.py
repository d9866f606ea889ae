"""What the tests in this folder do with a running Slurm lab. Not in conftest.py: that name is not unique."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

LAB_PROGRAM = Path(__file__).parents[2] / "slurm" / "lab" / "lab.py"
DEFAULT_TIMEOUT_S = 60.0


class NodeProcess(NamedTuple):
    """A process in the network namespace of a node."""

    node: str
    pid: int
    command_line: str


class Lab:
    """A running lab, as the tests use it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.slurm_conf = directory / "etc" / "slurm.conf"

    @property
    def state(self) -> dict[str, Any]:
        """The lab's own record, read afresh: a repair changes it."""
        state: dict[str, Any] = json.loads((self.directory / "state.json").read_text(encoding="utf-8"))
        return state

    @property
    def nodes(self) -> list[str]:
        return [name for name in self.state["namespaces"] if name != "ctl"]

    def pid(self, process: str) -> int:
        """The pid of a daemon: `slurmctld`, `slurmd:n2`, …"""
        return int(self.state["processes"][process]["pid"])

    def exec(self, argv: Sequence[str], *, node: str = "ctl", **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in the lab and wait for it; text in and out, captured, the exit code unchecked unless asked."""
        settings = {"capture_output": True, "text": True, "timeout": DEFAULT_TIMEOUT_S, "check": False, **options}
        return subprocess.run(self._command(argv, node), **settings)  # noqa: PLW1510

    def popen(self, argv: Sequence[str], *, node: str = "ctl", **options: Any) -> subprocess.Popen[str]:
        """Start a command in the lab; its pid is the command's own, so that signals reach it."""
        return subprocess.Popen(self._command(argv, node), **({"text": True} | options))

    def up(self) -> None:
        """Repair the lab after a fault: daemons run, links are up, nodes are in service."""
        done = run_lab("up", "--dir", str(self.directory))
        assert done.returncode == 0, done.stdout + done.stderr

    def node_processes(self, pattern: str = "", node: str | None = None) -> list[NodeProcess]:
        """The processes on the nodes (or one of them) whose command line matches, without the lab's own daemons."""
        state = self.state
        names = {inode: name for name, inode in state["namespaces"].items() if name in ([node] if node else self.nodes)}
        own = {process["pid"] for process in state["processes"].values()}
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) in own:
                continue
            try:
                inode = (entry / "ns" / "net").stat().st_ino
                command_line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:  # it ended meanwhile
                continue
            if inode in names and command_line and re.search(pattern, command_line):
                found.append(NodeProcess(names[inode], int(entry.name), command_line))
        return sorted(found)

    def _command(self, argv: Sequence[str], node: str) -> list[str]:
        wrapper = [sys.executable, str(LAB_PROGRAM), "exec", "--dir", str(self.directory), "--node", node, "--"]
        return [*wrapper, *map(str, argv)]


def run_lab(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(LAB_PROGRAM), *arguments], capture_output=True, text=True, timeout=300, check=False
    )
