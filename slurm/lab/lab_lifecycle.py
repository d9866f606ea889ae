"""Up, down and status: the order in which the lab's parts come and go."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import lab_daemons as daemons
from lab_config import CONTROLLER, LabError, LabOptions, LabPaths
from lab_network import ensure_network, refuse_foreign_namespaces, remove_network
from lab_state import (
    LabState,
    boot_id,
    load_state,
    locked,
    processes_in,
    refuse_foreign_dir,
    refuse_private_dir,
    remove_dir,
    save_state,
)

FIRST_JOB_TIMEOUT_S = 60.0
GOOD_NODE_STATES = {"idle", "allocated", "mixed", "completing"}


def up(paths: LabPaths, wanted: LabOptions | None, has_accounting: bool) -> None:
    """Bring the lab up, or repair it: what runs stays, what is missing is started."""
    start_s = time.monotonic()
    with locked(paths):
        state = load_state(paths) or LabState(wanted or LabOptions(accounting=has_accounting), boot_id())
        _refuse_what_is_not_ours(state, paths)
        if wanted is not None and wanted != state.options:
            raise LabError(f"the lab in {paths.root} has {_describe(state.options)}; run `lab.py down` to change that.")
        if not problems(state, paths):
            print(f"already up: {_describe(state.options)}, in {paths.root}")
            return
        if state.boot_id != boot_id():
            state = LabState(state.options, boot_id())
        _bring_up(state, paths, start_s)
    print(f"up after {time.monotonic() - start_s:.1f} s: {_describe(state.options)}, in {paths.root}")


def _refuse_what_is_not_ours(state: LabState, paths: LabPaths) -> None:
    try:
        refuse_foreign_dir(paths)
        refuse_private_dir(paths)
        refuse_foreign_namespaces(state)
    except LabError:
        _remove_if_empty(paths)  # made for the lock
        raise


def _bring_up(state: LabState, paths: LabPaths, start_s: float) -> None:
    def step(what: str, action: Callable[[LabState, LabPaths], None]) -> None:
        print(f"[{time.monotonic() - start_s:5.1f} s] {what}", flush=True)
        action(state, paths)

    save_state(state, paths)
    step("files", daemons.write_files)
    step(f"network: {' '.join(state.options.namespace_names)}", ensure_network)
    step("namespaces of the nodes", daemons.start_anchors)
    step("munged", daemons.start_munge)
    if state.options.accounting:
        step("mariadbd", daemons.start_database)
        step("slurmdbd", daemons.start_accounting)
    step("slurmctld, slurmd", daemons.start_slurm)
    step("first job: hostname on every node", run_first_job)


def run_first_job(state: LabState, paths: LabPaths) -> None:
    """Every node must have answered before anyone is told that the lab is up."""
    names = state.options.node_names
    daemons.wait_for(state, paths, "slurmctld", lambda: daemons.client_obstacle(state, paths, ["scontrol", "ping"]))
    deadline_s = time.monotonic() + FIRST_JOB_TIMEOUT_S + daemons.SECONDS_PER_NODE * len(names)
    while bad := _bad_nodes(state, paths):
        if time.monotonic() > deadline_s:
            raise LabError(f"nodes don't answer: {', '.join(bad)}.\n{_logs_of_failures(state, paths)}")
        _resume_drained(state, paths, bad)
        time.sleep(4 * daemons.POLL_S)
    if any(state_name != "idle" for state_name in _node_states(state, paths).values()):
        return  # a repaired lab with jobs on it, which ours would wait for
    timeout_s = FIRST_JOB_TIMEOUT_S + daemons.SECONDS_PER_NODE * len(names)
    command = ["srun", f"--nodes={len(names)}", "--ntasks-per-node=1", "hostname"]
    done = daemons.client(state, paths, command, timeout_s)
    if done.returncode != 0 or sorted(done.stdout.split()) != sorted(names):
        answer = f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
        raise LabError(f"{' '.join(command)} failed: {answer.strip()}\n{_logs_of_failures(state, paths)}")


def down(paths: LabPaths) -> None:
    """End the lab's processes, remove its namespaces and its directory, and nothing else."""
    if not paths.root.exists():
        print(f"already down: {paths.root} doesn't exist")
        return
    with locked(paths):
        state = load_state(paths)
        if state is None:
            _remove_if_empty(paths)
            print(f"already down: no lab in {paths.root}")
            return
        # Daemons first, so that none starts anything new; the anchors last, since they keep the namespaces.
        anchors = [process for name, process in state.processes.items() if name.startswith("anchor:")]
        others = [process for name, process in state.processes.items() if not name.startswith("anchor:")]
        daemons.end(others)
        _power_off_nodes(state)
        for anchor in anchors:
            anchor.send(signal.SIGKILL)
        daemons.wait_until_gone(anchors)
        remove_network(state)
        _tell_of_clients(state)
        remove_dir(paths)
    print(f"down: {_describe(state.options)}, in {paths.root}")


def _power_off_nodes(state: LabState) -> None:
    """End what is left of the jobs, as when machines are switched off; again and again, since a process may fork."""
    inodes = {inode for name, inode in state.namespaces.items() if name != CONTROLLER}
    anchors = {process.pid for process in state.processes.values()}
    deadline_s = time.monotonic() + 2 * daemons.TERM_TIMEOUT_S
    while left := [process for process in processes_in(inodes) if process.pid not in anchors]:
        if time.monotonic() > deadline_s:
            raise LabError(f"processes {[process.pid for process in left]} in the nodes don't end")
        for process in left:
            process.send(signal.SIGKILL)
        time.sleep(daemons.POLL_S)


def _tell_of_clients(state: LabState) -> None:
    """Commands that someone runs with `exec` in the controller's namespace are theirs to end."""
    inode = state.namespaces.get(CONTROLLER)
    left = [] if inode is None else processes_in({inode})
    if left:
        print(f"note: still running in {CONTROLLER}: {', '.join(str(process.pid) for process in left)}")


def _remove_if_empty(paths: LabPaths) -> None:
    if not any(paths.root.iterdir()):
        paths.root.rmdir()


def problems(state: LabState | None, paths: LabPaths) -> list[str]:
    """Why the lab isn't healthy; empty if it is."""
    if state is None:
        return [f"no lab in {paths.root}"]
    found = [f"namespace {name} is missing" for name in state.options.namespace_names if not state.owns_namespace(name)]
    found += [f"{name} isn't running" for name in process_names(state.options) if not state.is_process_alive(name)]
    if not found:
        found = [f"node {node}" for node in _bad_nodes(state, paths)]
    return found


def process_names(options: LabOptions) -> list[str]:
    accounting = ["mariadbd", "slurmdbd"] if options.accounting else []
    anchors = [f"anchor:{name}" for name in options.namespace_names]
    return [*anchors, "munged", *accounting, "slurmctld", *(f"slurmd:{name}" for name in options.node_names)]


def print_status(paths: LabPaths) -> bool:
    """Print the lab's state; true if it is healthy."""
    state = load_state(paths)
    found = problems(state, paths)
    if state is not None:
        print(f"{_describe(state.options)}, in {paths.root}")
        for name, process in state.processes.items():
            print(f"  {name:14} pid {process.pid:<8} {'runs' if process.is_alive() else 'ENDED'}")
    for problem in found:
        print(f"problem: {problem}")
    print("unhealthy" if found else "healthy")
    return not found


def _bad_nodes(state: LabState, paths: LabPaths) -> list[str]:
    """`n2 (down*)` for each node that can't run a job."""
    return [f"{name} ({why})" for name, why in _node_states(state, paths).items() if why not in GOOD_NODE_STATES]


def _node_states(state: LabState, paths: LabPaths) -> dict[str, str]:
    """Node → `idle`, `allocated`, `down*`, …; the asterisk means that it doesn't answer."""
    done = daemons.client(state, paths, ["sinfo", "--noheader", "--Node", "--partition=debug", "--format=%N %T"])
    if done.returncode != 0:
        return dict.fromkeys(state.options.node_names, "unknown: slurmctld doesn't answer")
    states = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip())
    return {name: states.get(name, "missing").strip() for name in state.options.node_names}


def _resume_drained(state: LabState, paths: LabPaths, bad: list[str]) -> None:
    """After some faults (a job that couldn't be killed) Slurm uses a node no more until it is told to."""
    for node in bad:
        name, _, why = node.partition(" ")
        if "drain" in why and "*" not in why:
            daemons.client(state, paths, ["scontrol", "update", f"nodename={name}", "state=resume"])


def _logs_of_failures(state: LabState, paths: LabPaths) -> str:
    ended = [name for name in process_names(state.options) if not state.is_process_alive(name)]
    return "\n".join(daemons.last_log_lines(paths, name) for name in (ended or ["slurmctld", "slurmd:n1"])[:3])


def _describe(options: LabOptions) -> str:
    accounting = "accounting" if options.accounting else "no accounting"
    return ", ".join(
        [
            f"nodes {options.node_range}",
            f"{options.cpus_per_node} CPUs and {options.gpus_per_node} pretended GPUs each",
            accounting,
        ]
    )
