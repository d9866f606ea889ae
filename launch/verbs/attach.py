"""`launch attach`: a shell, or a command, on a node inside the job; of a local run with the run's environment."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from launch.cluster import without_outer_job
from launch.errors import LaunchError
from launch.records import read_json
from launch.runs import RUNNING, Run
from launch.spec import JobSpec
from launch.verbs.common import Watch, find, print_json


def run(arguments: argparse.Namespace) -> int:
    """Becomes the shell."""
    found = find(arguments)
    status = Watch(found).now()
    if status.state != RUNNING:
        raise LaunchError(f"{found.name} is {status.state}; it must be RUNNING to be attached to.")
    spec = JobSpec.from_json(found.job)
    if not 0 <= arguments.node < spec.resources.nodes:
        raise LaunchError(f"--node is {arguments.node}; it must be 0 to {spec.resources.nodes - 1}.")
    words = list(arguments.script_args) or [os.environ.get("SHELL") or "/bin/bash", "-i"]
    if spec.executor == "slurm":
        host = _host(found, arguments.node)
        words = [
            *srun_words(found.job_id, host, has_terminal=sys.stdin.isatty()),
            f"--chdir={spec.working_dir}",
            *words,
        ]
    elif found.submission.get("host") != socket.gethostname():
        raise LaunchError(f"the run is local to {found.submission.get('host')}; attach to it there.")
    else:
        os.chdir(spec.working_dir)
    if arguments.json:
        print_json("attach", run=found.name, command=words)
    elif not arguments.script_args:
        print(f"a shell on node {arguments.node} of {found.name}; `exit` leaves it, and the run goes on", flush=True)
    os.umask(0o022)
    # As variables, which srun passes on: what is an argument can be read by all on the machine.
    own = environment_of(spec, found.current_attempt, arguments.node)
    os.execvpe(words[0], words, {**without_outer_job(os.environ), **own})


def environment_of(spec: JobSpec, attempt: int, node: int) -> Mapping[str, str]:
    """The variables of the run that its ranks have, without secrets (`launch.env_file`). Pure."""
    own = {
        "CLEANSFT_RUN_DIR": spec.run_dir,
        "CLEANSFT_ATTEMPT": str(attempt),
        "CLEANSFT_NODE_RANK": str(node),
    }
    return {**spec.env, **own}


def srun_words(job_id: str, host: str, *, has_terminal: bool) -> list[str]:
    """A step beside the job's own, which takes nothing of what that one uses. Pure."""
    words = ["srun", f"--jobid={job_id}", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={host}"]
    return words + (["--pty"] if has_terminal else [])


def _host(run: Run, node: int) -> str:
    folder = Path(run.path) / "exit" / str(run.current_attempt)
    record = read_json(folder / f"here-{node}.json") or {}
    if "host" not in record:
        raise LaunchError(f"node {node} of {run.name} has not begun; try again in a moment.")
    return str(record["host"])
