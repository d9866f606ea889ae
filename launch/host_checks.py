"""Hosts before a job starts on them: reached by ssh without a password, with the same Python, disk and packages."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from launch import checks, hosts
from launch.agents import request_line
from launch.checks import Check
from launch.diagnosis import Finding, diagnose
from launch.examination import Answers, examine
from launch.node_group import NodeGroup
from launch.script import isolation, remote_words
from launch.spec import JobSpec

Tell = Callable[[str], None]


def asked(
    spec: JobSpec,
    folder: Path,
    environ: Mapping[str, str],
    *,
    ports: Sequence[int] = (),
    measures: bool = False,
    tell: Tell = lambda _text: None,
) -> Answers:
    """Starts a probe on each host, and asks it.

    Args:
        spec: the job.
        folder: on the disk that the hosts should share.
        environ: of this process, without an outer job's.
        ports: that must be free.
        measures: whether to ask what needs torch, too.
        tell: is given a line before each part.
    """
    command = remote_words(spec)
    argv = [hosts.ssh_words(host, spec.ssh_options, command) for host in spec.hosts]
    probe = [spec.python, "-u", *isolation(spec), "-m", "launch.node_probe"]
    openings = []
    for node in range(len(spec.hosts)):
        own = {"SLURM_NODEID": str(node), "SLURM_CPUS_PER_TASK": str(spec.cpus_per_task)}
        own["PYTHONPATH"] = _python_path(command, environ)
        openings.append(request_line(spec, probe, {**environ, **own}, replaces=True))
    group = NodeGroup([(words, environ) for words in argv], len(argv), openings)
    names = [hosts.node_name(host) for host in spec.hosts]
    rendezvous_id = f"{spec.name}-{os.getpid()}.0"
    try:
        return examine(group, names, folder, rendezvous_id, ports=ports, is_by_ssh=True, measures=measures, tell=tell)
    finally:
        group.close()


def _python_path(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """PYTHONPATH as the agents will have it: what ssh's command sets, in front of this environment's."""
    own = [word.removeprefix("PYTHONPATH=") for word in command if word.startswith("PYTHONPATH=")]
    return os.pathsep.join(filter(None, (*own, environ.get("PYTHONPATH"))))


def of_hosts(spec: JobSpec, environ: Mapping[str, str]) -> list[Check]:
    """The rows of a job's hosts: a few words of those that are well, and one for each finding."""
    answers = asked(spec, Path(spec.run_dir), environ)
    return rows(spec, answers, [*diagnose(answers), *gpu_findings(spec, answers), *same_machines(answers)])


def rows(spec: JobSpec, answers: Answers, findings: Sequence[Finding]) -> list[Check]:
    """The rows of the table. Pure."""
    found = []
    for finding in findings:
        named = [spec.hosts[node] for node in finding.nodes]
        what = f"{' and '.join(named)} {finding.what}".strip()
        found.append(Check("hosts", what, finding.verdict, _remedy(finding, answers, named)))
    if checks.worst(found) != "error":
        facts = answers.facts[0]
        torch = facts["packages"].get("torch", "none")
        found.append(Check("hosts", f"{', '.join(spec.hosts)}: Python {facts['python']}, torch {torch}"))
    return found


def _remedy(finding: Finding, answers: Answers, named: Sequence[str]) -> str:
    said = " ".join(answers.said_by.get(finding.nodes[0], ())) if finding.nodes else ""
    if "Permission denied" in said or "Host key verification failed" in said:
        how = "ssh must reach it without a question"
        key = f"`ssh-copy-id {named[0]}`" if "Permission denied" in said else f"`ssh {named[0]}` once by hand"
        return f"{how}: {key}. It says: {said}"
    return finding.remedy


def gpu_findings(spec: JobSpec, answers: Answers) -> Iterator[Finding]:
    """Hosts with fewer GPUs than each node is to give, where nvidia-smi tells. Pure."""
    wanted = spec.resources.gpus_per_node
    for node, facts in sorted(answers.facts.items()):
        seen = len(facts.get("gpus", ()))
        if wanted > seen and "error" not in facts:
            what = f"shows {seen} GPUs by nvidia-smi, and gpus_per_node is {wanted}"
            yield Finding((node,), what, "error" if seen else "warning", "Ask for fewer, or leave this host out.")


def same_machines(answers: Answers) -> Iterator[Finding]:
    """Hosts that are one machine under two names. Pure."""
    seen: dict[tuple[str, tuple[str, ...]], int] = {}
    for node, facts in sorted(answers.facts.items()):
        if "error" not in facts:
            other = seen.setdefault((facts["host"], tuple(sorted(facts["interfaces"].values()))), node)
            if other != node:
                what = f"is the same machine as {answers.hosts[other]}"
                yield Finding((node,), what, "error", "Name each machine once; --procs-per-node gives it more ranks.")


def require(spec: JobSpec, environ: Mapping[str, str]) -> None:
    """Prints what is not as it must be with a job's hosts, where it has any.

    Raises:
        ChecksFailedError: it can't start there.
    """
    found = of_hosts(spec, environ) if spec.hosts else []
    if checks.worst(found) != "ok":
        checks.tell(found, environ)
    if checks.worst(found) == "error":
        raise checks.ChecksFailedError(found, "Nothing was started.")
