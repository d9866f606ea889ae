"""`lab.py exec`: become a command in the lab. Imports next to nothing, since tests call it hundreds of times."""

from __future__ import annotations

import json
import os
import sys

USAGE = "usage: lab.py exec [--dir DIR] [--node NAME] -- COMMAND..."
EXIT_USAGE = 2
EXIT_NO_LAB = 125  # as env, nohup and docker: the wrapper itself failed


def main(arguments: list[str], default_dir: str) -> int:
    """Replace this process by the command; returns only when that is impossible, with an exit code."""
    options = {"--dir": default_dir, "--node": "ctl"}
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "--":
        name, joined, value = rest.pop(0).partition("=")
        if name not in options or not (joined or rest):
            print(USAGE, file=sys.stderr)
            return EXIT_USAGE
        options[name] = value if joined else rest.pop(0)
    command = rest[1:] if rest[:1] == ["--"] else rest
    if not command:
        print(USAGE, file=sys.stderr)
        return EXIT_USAGE
    root = os.path.abspath(options["--dir"])
    try:
        pid = _anchor_pid(root, options["--node"])
    except LookupError as error:
        print(f"lab.py exec: {error.args[0]}", file=sys.stderr)
        return EXIT_NO_LAB
    environment = {**os.environ, "SLURM_CONF": f"{root}/etc/slurm.conf"}
    # Entering a mount namespace moves to its root; `env` goes back to where the caller stood.
    enter = ["nsenter", "--target", str(pid), "--net", "--uts", "--mount", "--", "env", f"--chdir={os.getcwd()}"]
    sys.stdout.flush()
    os.execvpe(enter[0], [*enter, *command], environment)


def _anchor_pid(root: str, node: str) -> int:
    """The pid of the process that keeps a node's namespaces, once it is sure that it still is that process."""
    try:
        with open(f"{root}/state.json", encoding="utf-8") as file:
            processes = json.load(file)["processes"]
    except FileNotFoundError:
        raise LookupError(f"no lab in {root}; start one with `lab.py up`") from None
    if f"anchor:{node}" not in processes:
        names = ", ".join(name.removeprefix("anchor:") for name in processes if name.startswith("anchor:"))
        raise LookupError(f"node is {node}; it must be one of {names or 'none'}")
    anchor = processes[f"anchor:{node}"]
    try:
        with open(f"/proc/{anchor['pid']}/stat", encoding="utf-8", errors="replace") as file:
            start_ticks = int(file.read().rpartition(")")[2].split()[19])
    except OSError:
        start_ticks = -1
    if start_ticks != anchor["start_ticks"]:
        raise LookupError(f"node {node} of the lab in {root} has ended; restart it with `lab.py up`")
    return int(anchor["pid"])
