"""Examines nodes: on Slurm inside an allocation (`salloc … python -m launch.doctor …`), else agents on this machine."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import diagnosis, host_checks, node_probe, node_report, script
from launch.devices import VISIBLE, node_devices
from launch.errors import EXAMINATION_FAILED, OK
from launch.examination import Answers, examine
from launch.node_group import NodeGroup
from launch.records import make_directory
from launch.rendezvous import expand_hostlist
from launch.spec import JobSpec, python_path

JOB_MIN = 15
Tell = Callable[[str], None]


def srun_words(python: Sequence[str], num_nodes: int, cpus_per_task: int) -> list[str]:
    """The step that starts a probe on each node. One that fails or ends does not take the others with it. Pure."""
    return [
        "srun", "--overlap", f"--nodes={num_nodes}", f"--ntasks={num_nodes}", "--ntasks-per-node=1",
        f"--cpus-per-task={cpus_per_task}", "--kill-on-bad-exit=0", "--wait=0", "--no-kill",
        *python, "-u", "-m", "launch.node_probe",
    ]  # fmt: skip


def salloc_words(spec: JobSpec, inner: Sequence[str]) -> list[str]:
    """The allocation in which nodes are examined, and what runs in it, behind the job's modules and setup. Pure."""
    time_min = min(spec.resources.time_min or JOB_MIN, JOB_MIN)
    options = {"job-name": "doctor", **script.resource_options(spec), "time": time_min}
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return ["salloc", *words, *script.prepared_words(spec, inner)]


def probe_variables(spec: JobSpec) -> dict[str, str]:
    """What lets probes measure what the job's ranks would: their variables, and the interface that they would use. Not
    among the words of a command, which everybody sees. Pure."""
    interface = spec.interface if spec.resources.nodes > 1 and spec.is_elsewhere else None
    return {node_probe.SETTINGS: json.dumps({"env": dict(spec.env), "interface": interface})}


def on_slurm(
    python: Sequence[str],
    folder: Path,
    cpus_per_task: int,
    environ: Mapping[str, str],
    ports: Sequence[int],
    tell: Tell,
) -> Answers:
    """Examines the nodes of the allocation that this process runs in.

    Args:
        python: the words that run it on a node, in the job's container where there is one.
        folder: on the disk that the nodes should share.
        cpus_per_task: CPUs of the probe on each node.
        environ: of this process, in the allocation, with `probe_variables`.
        ports: that must be free.
        tell: is given a line before each part.
    """
    hosts = expand_hostlist(environ["SLURM_JOB_NODELIST"])
    argv = srun_words(python, len(hosts), cpus_per_task)
    environment = {**environ, "PYTHONPATH": python_path(environ)}
    attempt = environ.get("CLEANSFT_ATTEMPT") or "0"
    group = NodeGroup([(argv, environment)], len(hosts))
    try:
        return examine(group, hosts, folder, f"{environ['SLURM_JOB_ID']}.{attempt}", ports=ports, tell=tell)
    finally:
        group.close()


def here(spec: JobSpec, folder: Path, environ: Mapping[str, str], ports: Sequence[int], tell: Tell) -> Answers:
    """Examines this machine as the nodes of a job."""
    num_nodes = spec.resources.nodes
    base = {**environ, "PYTHONPATH": python_path(environ), "SLURM_CPUS_PER_TASK": str(spec.cpus_per_task)}
    base |= probe_variables(spec)
    argv = script.prepared_words(spec, [spec.python, "-u", "-m", "launch.node_probe"])
    devices = [node_devices(spec, node, environ.get(VISIBLE)) for node in range(num_nodes)]
    own = [{"SLURM_NODEID": str(node), **seen} for node, seen in enumerate(devices)]
    group = NodeGroup([(argv, base | variables) for variables in own], num_nodes)
    hosts = [f"{socket.gethostname()}.{node}" if num_nodes > 1 else socket.gethostname() for node in range(num_nodes)]
    try:
        return examine(group, hosts, folder, f"doctor-{os.getpid()}.0", ports=ports, is_local=True, tell=tell)
    finally:
        group.close()


def on_hosts(spec: JobSpec, folder: Path, environ: Mapping[str, str], ports: Sequence[int], tell: Tell) -> Answers:
    """Examines a job's hosts by ssh."""
    return host_checks.asked(spec, folder, {**environ, **probe_variables(spec)}, ports=ports, measures=True, tell=tell)


def concluded(answers: Answers, *, is_json: bool, checks: Sequence[Mapping[str, Any]] = ()) -> int:
    """Prints the report; the exit code."""
    findings = diagnosis.diagnose(answers)
    if is_json:
        from launch.options import JSON_VERSION

        facts = node_report.report_facts(answers, findings)
        print(json.dumps({"version": JSON_VERSION, "verb": "doctor", "checks": list(checks), **facts}))
    else:
        print(node_report.report_text(answers, findings), end="")
        if wrong := diagnosis.wrong_nodes(findings):
            print(f"\nDo without them: {_without(wrong, answers)}")
    return EXAMINATION_FAILED if any(finding.verdict == "error" for finding in findings) else OK


def _without(wrong: Sequence[int], answers: Answers) -> str:
    if answers.is_by_ssh:
        others = [host for node, host in enumerate(answers.hosts) if node not in wrong]
        return f"--hosts {','.join(others)}." if others else "no host is left."
    return f"--exclude {','.join(answers.hosts[node] for node in wrong)}. Report them to whoever runs the cluster."


def shared_folder(runs_dir: Path) -> Path:
    """A new folder where runs are made, on the disk that nodes should share."""
    make_directory(runs_dir)
    return Path(tempfile.mkdtemp(prefix=".doctor-", dir=runs_dir))


def main(words: Sequence[str]) -> int:
    """`python -m launch.doctor JSON`, which salloc runs: python, runs_dir, cpus_per_task, ports, checks, json."""
    request = json.loads(words[0])
    folder = shared_folder(Path(request["runs_dir"]))
    try:
        answers = on_slurm(
            request["python"], folder, request["cpus_per_task"], os.environ, request["ports"], tell_on_terminal
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return concluded(answers, is_json=request["json"], checks=request["checks"])


def tell_on_terminal(text: str) -> None:
    """Shows what is being done, where somebody looks."""
    if sys.stderr.isatty():
        print(f"{text} …", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
