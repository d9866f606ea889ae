"""The lab's processes: started once each, recorded, waited for, and ended by the recorded identity only."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lab_config import (
    CONTROLLER,
    LabError,
    LabPaths,
    render_gres_conf,
    render_hosts,
    render_slurm_conf,
    render_slurmdbd_conf,
)
from lab_network import anchor_command, anchor_obstacle, inside
from lab_state import LabState, ProcessId, identify, save_state

POLL_S = 0.05
START_TIMEOUT_S = 60.0
TERM_TIMEOUT_S = 5.0
SECONDS_PER_NODE = 1.0  # what a slow machine may take longer for each node
NUM_LOG_LINES = 15


def write_files(state: LabState, paths: LabPaths) -> None:
    """Write the configuration and make the directories, each owned by the user whose daemon writes there."""
    for directory in (paths.slurm_conf.parent, paths.logs, paths.spool, paths.munge, paths.database, paths.gpus):
        directory.mkdir(mode=0o755, exist_ok=True)
    paths.hosts.write_text(render_hosts(state.options), encoding="utf-8")
    paths.slurm_conf.write_text(render_slurm_conf(state.options, paths), encoding="utf-8")
    paths.gres_conf.write_text(render_gres_conf(state.options, paths), encoding="utf-8")
    _make_gpu_devices(state, paths)
    paths.slurmdbd_conf.touch(mode=0o600)  # slurmdbd refuses a file that others may read
    paths.slurmdbd_conf.write_text(render_slurmdbd_conf(paths), encoding="utf-8")
    key = paths.munge / "munge.key"
    if not key.exists():
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
    for path in (paths.munge, key):
        shutil.chown(path, "munge", "munge")
    if state.options.accounting:
        shutil.chown(paths.database, "mysql", "mysql")


def _make_gpu_devices(state: LabState, paths: LabPaths) -> None:
    """Slurm wants a device for each GPU; these are further names of /dev/null."""
    for index in range(state.options.gpus_per_node):
        device = paths.gpus / f"nvidia{index}"
        if not device.exists():
            os.mknod(device, 0o666 | stat.S_IFCHR, Path("/dev/null").stat().st_rdev)


def client_environment(paths: LabPaths) -> dict[str, str]:
    """A small environment of its own: what the caller happened to export must not change how the lab behaves."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "SLURM_CONF": str(paths.slurm_conf),
        "MYSQL_UNIX_PORT": str(paths.database_socket),  # slurmdbd has no setting for the socket's path
    }


def start(state: LabState, paths: LabPaths, name: str, command: Sequence[str], user: str | None = None) -> None:
    """Start a process that outlives this one, unless it runs already, and record it."""
    if state.is_process_alive(name):
        return
    with paths.log(name).open("ab") as log:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=client_environment(paths),
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )
    identity = identify(process.pid)
    if identity is None:
        raise LabError(f"{name} ended at once.\n{last_log_lines(paths, name)}")
    state.processes[name] = identity
    save_state(state, paths)


def start_anchors(state: LabState, paths: LabPaths) -> None:
    names = state.options.namespace_names
    for name in names:
        start(state, paths, f"anchor:{name}", anchor_command(name, paths))
    for name in names:
        anchor = state.processes[f"anchor:{name}"]
        wait_for(state, paths, f"anchor:{name}", lambda pid=anchor.pid: anchor_obstacle(pid))  # type: ignore[misc]


def start_munge(state: LabState, paths: LabPaths) -> None:
    """A munged with its own key and socket, beside the distribution's if that runs."""
    folder = paths.munge
    files = {"key-file": "munge.key", "pid-file": "munged.pid", "log-file": "munged.log", "seed-file": "munged.seed"}
    options = [f"--{option}={folder / file}" for option, file in files.items()]
    start(state, paths, "munged", ["munged", "--foreground", f"--socket={paths.munge_socket}", *options], user="munge")


def start_database(state: LabState, paths: LabPaths) -> None:
    """A MariaDB of its own without network; its only client is slurmdbd."""
    if not (paths.database / "data" / "mysql").exists():
        install = ["mariadb-install-db", "--no-defaults", "--user=mysql", "--skip-test-db", "--skip-name-resolve"]
        _run_logged(paths, "mariadbd", [*install, f"--datadir={paths.database / 'data'}"])
    options = [
        "--user=mysql",
        f"--datadir={paths.database / 'data'}",
        f"--socket={paths.database_socket}",
        f"--pid-file={paths.database / 'mariadbd.pid'}",
        "--skip-networking",
        "--innodb-buffer-pool-size=64M",
        "--innodb-lock-wait-timeout=900",
        "--innodb-flush-log-at-trx-commit=0",  # a lab's records need not survive a power cut
        "--performance-schema=OFF",
    ]
    start(state, paths, "mariadbd", ["mariadbd", "--no-defaults", *options])


def start_accounting(state: LabState, paths: LabPaths) -> None:
    wait_for(state, paths, "mariadbd", lambda: _socket_obstacle(paths.database_socket))
    wait_for(state, paths, "munged", lambda: _socket_obstacle(paths.munge_socket))
    start(state, paths, "slurmdbd", [*inside(state, CONTROLLER), "slurmdbd", "-D"])
    show = ["sacctmgr", "--noheader", "--parsable2", "show", "cluster", "format=cluster"]
    wait_for(state, paths, "slurmdbd", lambda: client_obstacle(state, paths, show))
    if "lab" not in client(state, paths, show).stdout.split():
        added = client(state, paths, ["sacctmgr", "--immediate", "add", "cluster", "lab"])
        if added.returncode != 0:
            raise LabError(f"sacctmgr can't add the cluster: {added.stdout}{added.stderr}")


def start_slurm(state: LabState, paths: LabPaths) -> None:
    wait_for(state, paths, "munged", lambda: _socket_obstacle(paths.munge_socket))
    start(state, paths, "slurmctld", [*inside(state, CONTROLLER), "slurmctld", "-D"])
    for name in state.options.node_names:
        start(state, paths, f"slurmd:{name}", [*inside(state, name), "slurmd", "-D"])


def client(
    state: LabState, paths: LabPaths, command: Sequence[str], timeout_s: float = 15.0
) -> subprocess.CompletedProcess[str]:
    """Run a Slurm command in the controller's namespace. A time-out counts as exit code 124, as with timeout(1)."""
    argv = [*inside(state, CONTROLLER), *command]
    environment = client_environment(paths)
    try:
        return subprocess.run(
            argv, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False, cwd="/"
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(argv, 124, "", f"no answer within {timeout_s:g} s")


def client_obstacle(state: LabState, paths: LabPaths, command: Sequence[str]) -> str:
    """Why a Slurm command fails; nothing if it succeeds."""
    done = client(state, paths, command)
    return "" if done.returncode == 0 else f"{command[0]}: exit code {done.returncode}: {done.stdout}{done.stderr}"


def _socket_obstacle(socket: Path) -> str:
    return "" if socket.exists() else f"{socket} is missing"


def wait_for(state: LabState, paths: LabPaths, name: str, obstacle: Callable[[], str]) -> None:
    """Wait until a process has no obstacle left; say what it logged last if it ends or takes too long."""
    deadline_s = time.monotonic() + START_TIMEOUT_S + SECONDS_PER_NODE * state.options.num_nodes
    while why := obstacle():
        if not state.is_process_alive(name):
            raise LabError(f"{name} ended while starting.\n{last_log_lines(paths, name)}")
        if time.monotonic() > deadline_s:
            raise LabError(f"{name} isn't ready in time: {why.strip()}\n{last_log_lines(paths, name)}")
        time.sleep(POLL_S)


def last_log_lines(paths: LabPaths, name: str) -> str:
    path = paths.log(name)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return "\n".join([f"The end of {path}:", *(f"  {line}" for line in lines[-NUM_LOG_LINES:] or ["(empty)"])])


def end(processes: Sequence[ProcessId]) -> None:
    """End these processes: asked first, after some seconds forced."""
    for process in processes:
        process.send(signal.SIGTERM)
    if not wait_until_gone(processes):
        for process in processes:
            process.send(signal.SIGKILL)
        wait_until_gone(processes)


def wait_until_gone(processes: Sequence[ProcessId]) -> bool:
    deadline_s = time.monotonic() + TERM_TIMEOUT_S
    while any(process.is_alive() for process in processes):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(POLL_S)
    return True


def _run_logged(paths: LabPaths, name: str, command: list[str]) -> None:
    with paths.log(name).open("ab") as log:
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    if code != 0:
        raise LabError(f"{command[0]} ended with exit code {code}.\n{last_log_lines(paths, name)}")
