"""The command line of the lab, but for `exec`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import lab_lifecycle
import lab_packages
from lab_config import LabError, LabOptions, LabPaths
from lab_exec import USAGE


def main(arguments: list[str], default_dir: str) -> int:
    """Run one subcommand; the exit code."""
    chosen = build_parser(default_dir).parse_args(arguments)
    # As `su` leaves it, PATH may lack the folders that hold `ip` and the daemons.
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:{lab_packages.SYSTEM_PATH}".lstrip(":")
    try:
        return _run(chosen)
    except LabError as error:
        print(f"lab.py {chosen.action}: {error}", file=sys.stderr)
        return 1


def build_parser(default_dir: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lab.py", description="A real Slurm cluster of N nodes on this machine.")
    actions = parser.add_subparsers(dest="action", required=True)
    up = actions.add_parser("up", help="start the lab, or what is missing of it")
    up.add_argument("--nodes", type=int, help="number of nodes (2)")
    up.add_argument("--cpus-per-node", type=int, help="CPUs that each node claims to have (8)")
    up.add_argument("--gpus-per-node", type=int, help="GPUs that each node pretends to have (8)")
    up.add_argument("--no-accounting", action="store_true", help="without slurmdbd and MariaDB, hence without sacct")
    down = actions.add_parser("down", help="end the lab and remove all that it made")
    status = actions.add_parser("status", help="exit 0 if every daemon runs and every node answers")
    for with_dir in (up, down, status):
        with_dir.add_argument("--dir", default=default_dir, help="where the lab's files lie (%(default)s)")
    actions.add_parser("exec", help=f"run a command in the lab; {USAGE}", usage=USAGE.removeprefix("usage: "))
    actions.add_parser("check", help="exit 0 if a lab can run on this machine")
    actions.add_parser("install", help="install the packages that are missing (root, Debian or Ubuntu)")
    return parser


def _run(chosen: argparse.Namespace) -> int:
    if chosen.action == "check":
        return _check()
    if chosen.action == "install":
        return lab_packages.install()
    paths = LabPaths(Path(chosen.dir).absolute())
    if chosen.action == "status":
        return 0 if lab_lifecycle.print_status(paths) else 1
    if obstacles := lab_packages.obstacles():
        raise LabError("\n".join(obstacles))
    if chosen.action == "down":
        lab_lifecycle.down(paths)
    else:
        lab_lifecycle.up(paths, _wanted_options(chosen), lab_packages.has_accounting())
        _print_usage(paths)
    return 0


def _check() -> int:
    obstacles = lab_packages.obstacles()
    print("\n".join(obstacles) or "ok")
    if not obstacles and not lab_packages.has_accounting():
        missing = " ".join(lab_packages.missing_packages(lab_packages.ACCOUNTING_PACKAGE_OF))
        print(f"note: without accounting (sacct), which needs: {missing}")
    if not obstacles and (missing_for_ssh := lab_packages.missing_packages(lab_packages.SSH_PACKAGE_OF)):
        print(f"note: without tests of hosts by ssh, which need: {' '.join(missing_for_ssh)}")
    return 1 if obstacles else 0


def _wanted_options(chosen: argparse.Namespace) -> LabOptions | None:
    """The options asked for; none if nothing was asked, so that any running lab will do."""
    numbers = {
        "num_nodes": chosen.nodes,
        "cpus_per_node": chosen.cpus_per_node,
        "gpus_per_node": chosen.gpus_per_node,
    }
    asked = {name: number for name, number in numbers.items() if number is not None}
    if not asked and not chosen.no_accounting:
        return None
    return LabOptions(**asked, accounting=not chosen.no_accounting and lab_packages.has_accounting())


def _print_usage(paths: LabPaths) -> None:
    program = f"python {Path(sys.argv[0])}"
    print(
        f"""
  {program} exec -- sinfo                  a command on the login node
  {program} exec -- sbatch --nodes=2 job.sh
  {program} exec --node n1 -- bash         a shell on a node
  {program} status                         daemons, pids, nodes
  {program} down                           end it

All nodes share this machine's file system, /tmp too: a path is the same everywhere.
SLURM_CONF={paths.slurm_conf}"""
    )
