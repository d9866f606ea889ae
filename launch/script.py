"""The texts: the batch script, the local script, and the dry run, which is written to plan.txt. Pure."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

from launch import command, hosts, site
from launch.attempts import NOT_BEGUN
from launch.checks import counted
from launch.rendezvous import Rendezvous
from launch.spec import ROOT, JobSpec

MAX_NODES_SHOWN = 4
_JOB, _ATTEMPT = "<job id>", "<attempt>"
SRUN = ("srun", "--kill-on-bad-exit=1", "--wait=0", "--unbuffered")
"""When one node fails, all stop (the first option); one that is done waits for that which still writes (the second)."""
WAIT_FOR_SRUN = (
    "# In the background, as a trap runs only between commands; `wait` returns early for one.",
    "while true; do",
    "  code=0; wait $srun || code=$?",
    "  kill -0 $srun 2> /dev/null || break",
    "done",
)
"""Bash: waits for the process `$srun`, whatever signals come meanwhile; its exit code as `$code`."""


def script_text(spec: JobSpec) -> str:
    """submit.sh: what sbatch is given, or what bash runs on this machine."""
    return _slurm_script(spec) if spec.executor == "slurm" else _local_script(spec)


def _slurm_script(spec: JobSpec) -> str:
    # `--cpus-per-task` again: since Slurm 22.05 srun does not take it from sbatch.
    srun = [*SRUN, f"--cpus-per-task={spec.cpus_per_task}", *_task_words(spec)]
    batch = shlex.join([spec.host_python, *isolation(spec), "-m", "launch.batch"])
    folder = shlex.quote(spec.run_dir)
    lines = [
        "#!/bin/bash",
        f"# Run {spec.name}: {_size(spec)}. Written by `python -m launch submit`.",
        *sbatch_lines(_sbatch_options(spec), _requeue_words(spec)),
        "",
        "# When Slurm announces the end (SIGUSR1: a time limit or preemption is near; SIGTERM: it ends now), the ranks",
        "# are asked to save and stop: their agents look for this file.",
        "told=",
        "ask_to_stop() {",
        '  told="$told $1"',
        '  [ -z "$CLEANSFT_ATTEMPT" ] ||',
        f"""    echo '{{"reason": "'$1'"}}' > {folder}/exit/$CLEANSFT_ATTEMPT/stop.json || true""",
        "}",
        "trap 'ask_to_stop signal' USR1",
        "trap 'ask_to_stop terminated' TERM",
        *_note_of_end(spec),
        *_prologue(spec),
        "",
        "# A new attempt of this run: 0, 1, 2, … also after a requeue.",
        f"CLEANSFT_ATTEMPT=$({batch} begin {folder})",
        "export CLEANSFT_ATTEMPT",
        '[ -z "$told" ] || ask_to_stop signal',
        *_preflight(spec),
        "",
        "# One agent per node; it starts the node's ranks. When one fails, all are stopped,",
        "# and the exit code of the training script becomes the exit code of the job.",
        "export SUBMITIT_EXECUTOR=slurm",
        f"{shlex.join(srun)} &",
        "srun=$!",
        *_end_of_torn_step(spec, folder),
        *WAIT_FOR_SRUN,
        "kill $watcher 2> /dev/null || true",
        "",
        "# What follows: the end, the same job again, or its successor. Nobody is left to be asked.",
        "trap '' USR1 TERM",
        f"{batch} end {folder} $code $told",
    ]
    return "\n".join(lines) + "\n"


def _end_of_torn_step(spec: JobSpec, folder: str) -> list[str]:
    return [
        "# Where a node's slurmstepd was killed, srun is never told that its agent has ended, and would keep the nodes",
        "# until the time limit. So it is ended itself, half a minute after the records of all agents are there.",
        "all_ended() {",
        f'  set -- {folder}/exit/$CLEANSFT_ATTEMPT/node-*.json; [ $# -ge {spec.resources.nodes} ] && [ -e "$1" ]',
        "}",
        "{ until all_ended; do sleep 10; done; sleep 30; kill -KILL $srun; } 2> /dev/null &",
        "watcher=$!; disown $watcher",
    ]


def _preflight(spec: JobSpec) -> list[str]:
    if not spec.preflight:
        return []
    return [
        "",
        "# The nodes are examined. Where one is wrong, the job ends here and goes back into the queue, without it.",
        f"{shlex.join([spec.host_python, *isolation(spec), '-m', 'launch.preflight'])} {shlex.quote(spec.run_dir)}",
    ]


def isolation(spec: JobSpec) -> list[str]:
    """Python's option for a job that runs from a copy: a module of the working directory, which may be the repository
    itself, must not come before that of the copy. Pure."""
    return ["-P"] if spec.code_root is not None else []


def agent_words(spec: JobSpec) -> list[str]:
    """What starts the agent of a node where submitit does not. Pure."""
    return [spec.python, "-u", *isolation(spec), "-m", "launch.agent", spec.run_dir]


def _task_words(spec: JobSpec) -> list[str]:
    """What each task of srun runs: the agent, through submitit; in a container, which need not have that, directly."""
    if spec.container is None and spec.sweep is not None:
        return agent_words(spec)  # submitit's files are named after one job each, and not after an array's tasks
    if spec.container is None:
        return [spec.python, "-u", *isolation(spec), "-m", "submitit.core._submit", f"{spec.run_dir}/submitit"]
    return [*outside_words(spec), *agent_words(spec)]


def remote_words(spec: JobSpec) -> list[str]:
    """What ssh runs on a host, whatever is to be started there. Its place of modules alone is among them: `-P`, as the
    folder where a login begins may hold modules of any name. Pure."""
    path = _code_path(spec)
    variables = ["env", f"PYTHONPATH={path}"] if path is not None else []
    return ["exec", *variables, spec.python, "-u", "-P", "-m", "launch.remote_start"]


def ssh_log(spec: JobSpec, attempt: int | str, node: int) -> str:
    """Where ssh's own messages about a host go. Pure."""
    return f"{spec.run_dir}/logs/{attempt}/ssh-{node}.log"


def outside_words(spec: JobSpec) -> list[str]:
    """The words in front of a command that let it run in the job's container; none without one. Pure."""
    if spec.container is None:
        return []
    files = filter(None, (spec.script, spec.config, spec.env_file, spec.found_env_file))
    needed = [str(ROOT), spec.working_dir, spec.run_dir, *(str(Path(file).parent) for file in files)]
    has_gpus = bool(spec.resources.gpus_per_node or "gpu" in (spec.resources.gres or ""))
    return site.container_words(spec.container, needed, spec.working_dir, has_gpus=has_gpus)


def array_text(spec: JobSpec, folder: Path) -> str:
    """array.sh of a sweep: what sbatch is given with --array.

    Args:
        spec: of any run of the sweep: all ask for the same.
        folder: of the sweep, with a folder for each run.
    """
    own = {"job-name": folder.name, "output": f"{folder}/%a/logs/slurm.log"}
    lines = [
        "#!/bin/bash",
        f"# Sweep {folder.name}. Written by `python -m launch sweep`.",
        *sbatch_lines({**_sbatch_options(spec), **own}, _requeue_words(spec)),
        "",
        "# Each task is a run of its own, in a directory of its own: what stops or requeues one touches no other.",
        f"exec bash {shlex.quote(str(folder))}/$SLURM_ARRAY_TASK_ID/submit.sh",
    ]
    return "\n".join(lines) + "\n"


def sbatch_lines(options: Mapping[str, object], words: Iterable[str] = ()) -> list[str]:
    """The `#SBATCH` lines of options, without those that are None, and of words that are whole. Pure."""
    given = [f"--{name}={shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    return [f"#SBATCH {option}" for option in (*given, *words)]


def _requeue_words(spec: JobSpec) -> list[str]:
    # Told in either case: what a cluster does with a job that says nothing (JobRequeue) is not known here.
    may_requeue = spec.chain == "requeue" or (spec.preflight and spec.chain != "singleton")
    return ["--requeue" if may_requeue else "--no-requeue"]


def resource_options(spec: JobSpec) -> dict[str, object]:
    """What the job asks of Slurm for its nodes, as options of sbatch and of salloc; None where it asks for nothing."""
    resources = spec.resources
    return {
        "nodes": resources.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": spec.cpus_per_task,
        "gpus-per-node": (resources.gpus_per_node or None) if resources.gres is None else None,
        "gres": resources.gres,
        "mem": f"{resources.mem_gb}G" if resources.mem_gb else None,
        "time": resources.time_min,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "exclude": resources.exclude,
    }


def _sbatch_options(spec: JobSpec) -> dict[str, object]:
    return {
        "job-name": spec.name,
        **resource_options(spec),
        "mail-user": spec.mail_user,
        "mail-type": spec.mail_type,
        "chdir": spec.working_dir,
        "output": f"{spec.run_dir}/logs/slurm.log",
        "open-mode": "append",
        "signal": f"B:USR1@{spec.signal_lead_s}",
    }


def _local_script(spec: JobSpec) -> str:
    lines = [
        "#!/bin/bash",
        f"# Run {spec.name}: {_size(spec)}, {_where(spec)}. Written by `python -m launch submit`.",
        *_note_of_end(spec),
        *_prologue(spec),
        f"cd {shlex.quote(spec.working_dir)}",
        "",
        "# One agent per node, as on Slurm; the supervisor stops all when one fails.",
        "exec " + shlex.join([spec.python, "-u", *isolation(spec), "-m", "launch.local", spec.run_dir]),
    ]
    return "\n".join(lines) + "\n"


def _note_of_end(spec: JobSpec) -> list[str]:
    path = f"{shlex.quote(spec.run_dir)}/exit/{NOT_BEGUN}"
    return [
        "",
        "# Where the job ends before an attempt has begun, as where a line below fails, nobody else knows its code.",
        "CLEANSFT_ATTEMPT=",
        "note_end() {",
        '  code=$?; [ -z "$CLEANSFT_ATTEMPT" ] || return 0',
        f"""  echo '{{"code": '$code', "claim": '${{CLEANSFT_CLAIM:-0}}'}}' > {path} || true""",
        "}",
        "trap note_end EXIT",
    ]


def _prologue(spec: JobSpec) -> list[str]:
    lines = ["", "set -e -o pipefail", "umask 077"]
    if (path := _code_path(spec)) is not None:
        lines.append(f"export PYTHONPATH={shlex.quote(path)}${{PYTHONPATH:+:$PYTHONPATH}}")
    lines += site.module_lines(spec.modules)
    if spec.setup:
        lines += ["", "# launch.setup", *spec.setup]
    return lines


def prepared_words(spec: JobSpec, argv: Iterable[str]) -> list[str]:
    """A command as it would be in the batch script: behind the job's modules and setup lines. Pure."""
    return ["bash", "-c", "\n".join([*_prologue(spec), 'exec "$@"']), "bash", *argv]


def _code_path(spec: JobSpec) -> str | None:
    """Where the job's Python must look for our packages; None where it does so by itself, as they are installed."""
    is_installed = spec.code_root is None and ROOT.name in ("site-packages", "dist-packages")
    return None if is_installed else spec.code_root or str(ROOT)


def _where(spec: JobSpec) -> str:
    return f"on {', '.join(spec.hosts)} by ssh" if spec.hosts else "all on this machine"


def _size(spec: JobSpec) -> str:
    return f"{counted(spec.resources.nodes, 'node')} × {counted(spec.procs_per_node, 'process')}, {spec.launcher}"


def plan_text(spec: JobSpec, inherited: Iterable[str]) -> str:
    """The whole dry run: the script, then argv and environment of each node, then what each rank runs.

    Args:
        spec: the job.
        inherited: names of the variables that are set where this is submitted and that the job inherits.
    """
    parts = [
        f"# run directory: {spec.run_dir}\n# executor: {spec.executor}\n",
        _headed("submit.sh", script_text(spec)),
    ]
    nodes = range(spec.resources.nodes)
    shown = list(nodes) if len(nodes) <= MAX_NODES_SHOWN else [0, 1, nodes[-1]]
    for node_rank in shown:
        if node_rank - 1 not in shown and node_rank > 0:
            parts.append(_headed(f"nodes 2 to {node_rank - 1}", "# as node 1, with their own numbers\n"))
        start = _start_text(spec, node_rank, inherited) if spec.hosts else ""
        text = _node_text(spec, node_rank, frozenset(inherited))
        parts.append(_headed(_node_title(spec, node_rank), start + text))
    every = "every rank runs, with its output in logs/<attempt>/rank-<rank>.log"
    parts.append(_headed(every, _quoted(command.rank_argv(spec))))
    return "\n".join(parts)


def _headed(title: str, body: str) -> str:
    return f"# ===== {title} =====\n{body}"


def _node_title(spec: JobSpec, node_rank: int) -> str:
    first = node_rank * spec.procs_per_node
    last = first + spec.procs_per_node - 1
    host = f" on {spec.hosts[node_rank]}" if spec.hosts else ""
    return f"node {node_rank}{host}: " + (f"rank {first}" if first == last else f"ranks {first} to {last}")


def _start_text(spec: JobSpec, node_rank: int, inherited: Iterable[str]) -> str:
    """How the agent of a host is started: the very ssh command, and the names of the variables that it takes along."""
    log = ssh_log(spec, _ATTEMPT, node_rank)
    words = hosts.ssh_words(spec.hosts[node_rank], spec.ssh_options, remote_words(spec), log)
    names = ", ".join(sorted(hosts.passed_on(dict.fromkeys(inherited, ""))))
    told = (
        f"Over its standard input, and nowhere else, come the agent's command and the values of SLURM_… and CLEANSFT_… "
        f"of this node and of these variables: {names or 'none'}."
    )
    comment = textwrap.fill(told, 118, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    start = f"# This machine starts the agent by\n{_quoted(words)}{comment}\n"
    return f"{start}# There the agent sets these variables and runs\n"


def _node_text(spec: JobSpec, node_rank: int, inherited: frozenset[str]) -> str:
    alone = spec.resources.nodes == 1 or not spec.is_elsewhere
    address = "127.0.0.1" if alone else "<address of node 0>"
    hosts = tuple(f"<name of node {index}>" for index in range(spec.resources.nodes))
    rendezvous = Rendezvous(f"{_JOB}.{_ATTEMPT}", address, "<free port of node 0>", node_rank, hosts)
    facts = command.NodeFacts(
        inherited=inherited,
        interface="lo" if alone else spec.interface or "<interface towards node 0>",
        accelerator="<cpu if the node has no GPU>",
        visible_devices="<CUDA_VISIBLE_DEVICES of the node>",
    )
    environment = command.node_environment(spec, rendezvous, _ATTEMPT, facts)
    argv = command.launcher_argv(spec, rendezvous, f"{spec.run_dir}/logs/{_ATTEMPT}")
    return _assignments(environment) + _quoted(argv)


def _assignments(environment: Mapping[str, str]) -> str:
    return "".join(f"export {name}={_quote(value)}\n" for name, value in sorted(environment.items()))


def _quoted(argv: Iterable[str]) -> str:
    return " ".join(_quote(word) for word in argv) + "\n"


def _quote(word: str) -> str:
    return shlex.quote(word)
