"""`launch attach`: a shell, or a command, on a node inside the job; of a local run with the run's environment.

`python -m launch.verbs.attach RUN_DIR ATTEMPT NODE [WORD …]` is what ssh runs on a host for it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from launch import attempts
from launch.cluster import without_outer_job
from launch.errors import LaunchError
from launch.records import read_json
from launch.runs import RUNNING, Run
from launch.script import outside_words, remote_words
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
    words = list(arguments.script_args) or shell_words(spec)
    if spec.executor == "slurm":
        host = _host(found, arguments.node)
        # The number alone: srun takes no `7_3`, as an array's task is called elsewhere.
        number = str(attempts.read_begin(found.path, found.current_attempt).get("job_id") or found.job_id)
        words = [
            *srun_words(number, host, has_terminal=sys.stdin.isatty()),
            f"--chdir={spec.working_dir}",
            *outside_words(spec),
            *words,
        ]
    elif spec.hosts:
        has_terminal = sys.stdin.isatty()
        words = ssh_words(spec, found.current_attempt, arguments.node, arguments.script_args, has_terminal=has_terminal)
    elif found.submission.get("host") != socket.gethostname():
        raise LaunchError(f"the run is local to {found.submission.get('host')}; attach to it there.")
    else:
        os.chdir(spec.working_dir)
    if arguments.json:
        print_json("attach", run=found.name, command=words)
    elif not arguments.script_args:
        print(f"a shell on node {arguments.node} of {found.name}; `exit` leaves it, and the run goes on", flush=True)
    _become(words, without_outer_job(os.environ), environment_of(spec, found.current_attempt, arguments.node))


def shell_words(spec: JobSpec) -> list[str]:
    """The user's shell, to be typed into."""
    own_shell = os.environ.get("SHELL") if spec.container is None else None  # which an image need not have
    return [own_shell or "/bin/bash", "-i"]


def _become(words: Sequence[str], environ: Mapping[str, str], own: Mapping[str, str]) -> NoReturn:
    os.umask(0o022)
    # As variables, which srun passes on: what is an argument can be read by all on the machine.
    os.execvpe(words[0], list(words), {**environ, **own})


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


def ssh_words(spec: JobSpec, attempt: int, node: int, words: Sequence[str], *, has_terminal: bool) -> list[str]:
    """ssh to a host of a run. The variables of the run are read there: they are no arguments. Pure."""
    command = [*remote_words(spec)[:-1], "launch.verbs.attach", spec.run_dir, str(attempt), str(node), *words]
    return ["ssh", "-t" if has_terminal else "-T", *spec.ssh_options, spec.hosts[node], shlex.join(command)]


def on_host(run_dir: str, attempt: str, node: str, words: Sequence[str]) -> NoReturn:
    """Becomes the shell, or the command, on the host that ssh has come to."""
    spec = JobSpec.from_json(Run(Path(run_dir)).job)
    os.chdir(spec.working_dir)
    _become(words or shell_words(spec), os.environ, environment_of(spec, int(attempt), int(node)))


def _host(run: Run, node: int) -> str:
    folder = Path(run.path) / "exit" / str(run.current_attempt)
    record = read_json(folder / f"here-{node}.json") or {}
    if "host" not in record:
        raise LaunchError(f"node {node} of {run.name} has not begun; try again in a moment.")
    return str(record["host"])


if __name__ == "__main__":
    on_host(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
