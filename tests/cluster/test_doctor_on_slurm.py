"""`launch doctor` and `submit --preflight` on nodes with real faults: each is named, with its node.

A slow node has a CPU quota, a wrong hosts entry is mounted over /etc/hosts of one node, a port is held by a process
there, a link is cut by a route: Slurm itself still reaches both ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lab_client import Lab
from test_launch_slurm import Launcher

CPU_CGROUPS = Path("/sys/fs/cgroup/cpu")
QUOTA = 0.2
HOLDER = """
import socket, sys, time
with socket.socket() as listener:
    listener.bind(("0.0.0.0", 0))
    listener.listen()
    print(listener.getsockname()[1], flush=True)
    time.sleep(600)
"""


@pytest.fixture
def launcher(lab: Lab, tmp_path: Path) -> Launcher:
    return Launcher(lab, tmp_path)


@contextmanager
def cpu_quota(lab: Lab, node: str) -> Iterator[None]:
    """What is started on the node from now on shares a part of one CPU (cgroup v1: the kernel counts, not Slurm)."""
    folder = CPU_CGROUPS / f"cleansft-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "cpu.cfs_quota_us").write_text(str(int(100_000 * QUOTA)))
    except OSError as error:
        pytest.skip(f"no CPU quota can be set here: {error}")
    try:
        (folder / "cgroup.procs").write_text(str(lab.pid(f"slurmd:{node}")))
        yield
    finally:
        for pid in (folder / "cgroup.procs").read_text().split():
            try:
                (CPU_CGROUPS / "cgroup.procs").write_text(pid)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                folder.rmdir()
                break
            except OSError:
                time.sleep(0.2)


@contextmanager
def hosts_entry(lab: Lab, node: str, name: str, address: str, folder: Path) -> Iterator[None]:
    """The node takes `name` for `address`."""
    text = lab.exec(["cat", "/etc/hosts"], node=node, check=True).stdout
    lines = [line for line in text.splitlines() if name not in line.split()[1:]]
    wrong = folder / f"hosts-{node}"
    wrong.write_text("\n".join([*lines, f"{address} {name}", ""]))
    wrong.chmod(0o644)
    lab.exec(["mount", "--bind", str(wrong), "/etc/hosts"], node=node, check=True)
    try:
        yield
    finally:
        lab.exec(["umount", "/etc/hosts"], node=node, check=True)


@contextmanager
def held_port(lab: Lab, node: str) -> Iterator[int]:
    holder = lab.popen([sys.executable, "-c", HOLDER], node=node, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        yield int(holder.stdout.readline())
    finally:
        holder.kill()
        holder.communicate()


@contextmanager
def cut_link(lab: Lab, node: str, other: str) -> Iterator[None]:
    """The node sends nothing to the other any more; the login node reaches both."""
    address = lab.exec(["getent", "ahostsv4", other], node=node, check=True).stdout.split()[0]
    lab.exec(["ip", "route", "add", "blackhole", f"{address}/32"], node=node, check=True)
    try:
        yield
    finally:
        lab.exec(["ip", "route", "del", "blackhole", f"{address}/32"], node=node, check=True)


def examined(launcher: Launcher, *words: str) -> tuple[int, dict[str, Any], list[tuple[list[str], str]]]:
    """(exit code, the report, (nodes, what) of each error)."""
    done = launcher("doctor", "--executor", "slurm", "--cpus-per-task", "1", "--json", *words)
    assert done.stdout.strip(), done.stderr
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert "findings" in report, done.stdout + done.stderr
    errors = [(found["nodes"], found["what"]) for found in report["findings"] if found["verdict"] == "error"]
    return done.returncode, report, errors


def test_slow_nodes_wrong_names_and_taken_ports_are_named(lab: Lab, launcher: Launcher, tmp_path: Path) -> None:
    with (
        cpu_quota(lab, "n2"),
        hosts_entry(lab, "n1", "n2", "10.77.0.99", tmp_path),
        held_port(lab, "n2") as port,
    ):
        code, report, errors = examined(launcher, "--nodes", "2", "--port", str(port))
    assert code == 1
    assert len(errors) == 3, errors
    assert any(nodes == ["n1"] and "takes n2 for 10.77.0.99" in what for nodes, what in errors)
    assert any(nodes == ["n2"] and f"port {port} is taken by pid" in what for nodes, what in errors)
    assert any(nodes == ["n2"] and "its CPU is slow" in what for nodes, what in errors)
    assert report["wrong_nodes"] == ["n1", "n2"]
    assert {check["name"] for check in report["checks"]} >= {"partition", "start", "run directory"}
    assert all("/" not in node["host"] and node["began"] for node in report["nodes"])


def test_a_cut_link_is_named_by_its_ends(lab: Lab, launcher: Launcher) -> None:
    with cut_link(lab, "n1", "n2"):
        code, report, errors = examined(launcher, "--nodes", "2")
    assert code == 1
    assert [nodes for nodes, _ in errors] == [["n1", "n2"]], errors
    assert "do not reach each other" in errors[0][1]
    assert report["together"] == {}


def test_a_job_whose_nodes_are_wrong_ends_before_its_ranks_begin(lab: Lab, launcher: Launcher, tmp_path: Path) -> None:
    if len(lab.nodes) > 2:
        pytest.skip("the lab has more than two nodes: the job would go elsewhere")
    with hosts_entry(lab, "n2", "n1", "10.77.0.99", tmp_path):
        launcher.submit("x", "--nodes", "2", "--preflight", "--chain", "requeue")
        done = launcher("wait", "x")
    assert done.returncode == 17, done.stdout + done.stderr
    assert "n2 takes n1 for 10.77.0.99" in done.stdout + done.stderr
    assert "has no 2 nodes without n2" in done.stdout + done.stderr
    assert not list(launcher.run_dir("x").glob("seen-*.json"))


def test_mode_40_a_job_goes_elsewhere_without_the_node_that_is_wrong(
    lab: Lab, launcher: Launcher, tmp_path: Path
) -> None:
    if len(lab.nodes) < 3:
        pytest.skip("the lab has two nodes; `slurm/lab/lab.py up --nodes 3` makes one where a job can go elsewhere")
    with hosts_entry(lab, "n2", "n1", "10.77.0.99", tmp_path):
        launcher.submit("x", "--nodes", "2", "--preflight", "--chain", "requeue")
        done = launcher("wait", "x")
    assert done.returncode == 0, done.stdout + done.stderr
    hosts = {launcher.seen("x", rank)["host"] for rank in range(2)}
    assert hosts == {"n1", "n3"}
    found = json.loads((launcher.run_dir("x") / "exit" / "0" / "preflight.json").read_text())
    assert found["wrong_nodes"] == ["n2"]
    end = json.loads((launcher.run_dir("x") / "exit" / "0" / "end.json").read_text())
    assert (end["again"], end["excluded"]) == (True, ["n2"])
    assert json.loads((launcher.run_dir("x") / "job.json").read_text())["resources"]["exclude"] == "n2"
    assert "--exclude=n2" in (launcher.run_dir("x") / "submit.sh").read_text()
