"""The lab's network: one namespace per node, a bridge in the controller's, nothing routed to the outside."""

from __future__ import annotations

import contextlib
import os
import subprocess

from lab_config import CONTROLLER, CONTROLLER_ADDRESS, LabError, LabPaths, node_address
from lab_state import NETNS_DIR, LabState, namespace_inode, save_state


def refuse_foreign_namespaces(state: LabState) -> None:
    taken = [
        name
        for name in state.options.namespace_names
        if namespace_inode(name) is not None and not state.owns_namespace(name)
    ]
    if taken:
        raise LabError(
            f"network namespaces {', '.join(taken)} exist and are not this lab's. If another lab runs, take it down "
            "with its own --dir; if nobody needs them, remove them with `ip netns delete NAME`."
        )


def ensure_network(state: LabState, paths: LabPaths) -> None:
    """Make the namespaces that are missing, and bring every link up (again)."""
    if not state.namespaces:
        state.made_netns_dir = not NETNS_DIR.exists()
    missing = [name for name in state.options.namespace_names if not state.owns_namespace(name)]
    for name in missing:
        run_ip(None, [f"netns add {name}"])
        inode = namespace_inode(name)
        assert inode is not None, f"`ip netns add {name}` succeeded, yet {NETNS_DIR / name} is missing"
        state.namespaces[name] = inode
    save_state(state, paths)
    if CONTROLLER in missing:
        run_ip(
            CONTROLLER,
            ["link set lo up", "link add br0 type bridge", f"address add {CONTROLLER_ADDRESS}/24 dev br0"],
        )
    nodes = list(enumerate(state.options.node_names, start=1))
    for index, name in nodes:
        if name in missing:
            run_ip(CONTROLLER, [f"link add v-{name} type veth peer name eth0 netns {name}"])
            run_ip(name, ["link set lo up", f"address add {node_address(index)}/24 dev eth0"])
        run_ip(name, ["link set eth0 up"])
    run_ip(CONTROLLER, ["link set br0 up", *(f"link set v-{name} master br0 up" for _, name in nodes)])


def remove_network(state: LabState) -> None:
    """Remove the namespaces that this lab made, and the directory of their names if it made that."""
    for name in state.namespaces:
        if state.owns_namespace(name):
            run_ip(None, [f"netns delete {name}"])
    if state.made_netns_dir and NETNS_DIR.is_dir() and not any(NETNS_DIR.iterdir()):
        subprocess.run(["umount", str(NETNS_DIR)], check=False, capture_output=True)
        with contextlib.suppress(OSError):
            NETNS_DIR.rmdir()


def run_ip(namespace: str | None, commands: list[str]) -> None:
    """Run several `ip` commands, one process for all of them."""
    inside = [] if namespace is None else ["-netns", namespace]
    done = subprocess.run(
        ["ip", *inside, "-batch", "-"], input="\n".join(commands) + "\n", text=True, capture_output=True, check=False
    )
    if done.returncode != 0:
        raise LabError(f"ip {' '.join(inside)}: {'; '.join(commands)}: {done.stderr.strip()}")


def anchor_command(name: str, paths: LabPaths) -> list[str]:
    """A process that sleeps in the namespaces of one node and thereby keeps them.

    Not `ip netns exec`: that remounts /sys, and slurmd 22.05 then stops with "No filesystem mounted on /sys/fs/cgroup".
    Mounts made on the host later appear in the node too (slave), those made in the node stay there.
    """
    script = 'hostname "$1" && mount --bind "$2" /etc/hosts && exec sleep infinity'
    enter = ["nsenter", f"--net={NETNS_DIR / name}", "unshare", "--uts", "--mount", "--propagation", "slave"]
    return [*enter, "sh", "-c", script, "sh", name, str(paths.hosts)]


def anchor_obstacle(pid: int) -> str:
    """What the anchor still does; nothing once it sleeps, since it has its hostname and hosts file by then."""
    try:
        program = os.readlink(f"/proc/{pid}/exe")
    except OSError:
        program = "nothing"
    return "" if program.endswith(("/sleep", "/coreutils", "/busybox")) else f"it runs {program}"


def inside(state: LabState, name: str) -> list[str]:
    """The words that run what follows them in a node. Every step replaces itself, so that the pid stays the same."""
    return ["nsenter", "--target", str(state.processes[f"anchor:{name}"].pid), "--net", "--uts", "--mount", "--"]
