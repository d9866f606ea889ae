"""Faults 19 to 21, 43 and 45 to 47 on a real Slurm: links, names, ports, clocks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults.recording import Shows
from lab_client import Lab
from lab_runs import LabRun, LabRuns, wait_for

from launch.network import ephemeral_ports
from launch.rendezvous import candidate_ports

pytestmark = pytest.mark.soak
PROBE = "import os, socket; print('rank', os.environ['RANK'], 'on', socket.gethostname())\n"
SKEWED = """
import os, time
if os.uname().nodename == "n2":
    own, own_ns = time.time, time.time_ns
    time.time = lambda: own() + 3600
    time.time_ns = lambda: own_ns() + 3600 * 10**9
"""


@pytest.fixture(scope="module")
def runs(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabRuns]:
    runs = LabRuns(lab, tmp_path_factory.mktemp("networks"))
    (runs.folder / "probe.py").write_text(PROBE)
    yield runs
    runs.close()
    lab.up()


@pytest.fixture(scope="module")
def straight(runs: LabRuns) -> LabRun:
    """The run, undisturbed."""
    return runs.ended(runs.submit("straight"))


@pytest.fixture
def link(lab: Lab) -> Iterator[Callable[[str], None]]:
    """Sets the link of n2 up or down; up in the end."""

    def set_link(state: str) -> None:
        subprocess.run(["ip", "-netns", "n2", "link", "set", "eth0", state], check=True)

    yield set_link
    set_link("up")
    lab.up()


def test_a_cut_network(runs: LabRuns, link: Callable[[str], None], lab: Lab, shows: Shows, straight: LabRun) -> None:
    run = runs.submit("cut", chain="requeue")
    run.wait_for_step(20)
    link("down")
    cut_at = time.time()
    wait_for(lambda: run.record(0).get("code") and run.record(1).get("code"), 60)
    link("up")
    lab.up()
    runs.ended(run)
    assert run.is_as(straight)
    found = run.record(int(run.word("rank")))
    assert run.word("reason") == "host_silent"
    shows(19, code=found["code"], says=found["error"], found_s=found["ended_at"] - cut_at)


def test_a_network_that_comes_back(runs: LabRuns, link: Callable[[str], None], straight: LabRun, shows: Shows) -> None:
    run = runs.submit("flap")
    run.wait_for_step(20)
    link("down")
    time.sleep(5)
    link("up")
    runs.ended(run)
    assert run.is_as(straight)
    warned = re.findall(r"warning: rank .* has not moved for .*", run.log("0/node-0.log") + run.log("0/node-1.log"))
    shows(20, code=0, says=warned[0] if warned else "", steps_lost=0, note=f"{len(warned)} warnings, one per node")


def test_a_slow_network(runs: LabRuns, lab: Lab, straight: LabRun, shows: Shows) -> None:
    limit = ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "1mbit", "burst", "32kbit", "latency", "400ms"]
    assert lab.exec(limit, node="n2").returncode == 0
    try:
        run = runs.ended(runs.submit("slow", settings={"max_steps": 8}))
    finally:
        lab.exec(["tc", "qdisc", "del", "dev", "eth0", "root"], node="n2")
    assert run.losses == straight.losses[:8]
    found = run.json("exit/0/node-0.json")
    shows(21, code=0, steps_lost=0, note=f"8 steps in {found['ended_at'] - found['started_at']:.0f} s, start included")


def test_modes_3_4_a_taken_port(runs: LabRuns, lab: Lab, shows: Shows) -> None:
    shown = lab.exec(["scontrol", "show", "config"]).stdout
    job = re.search(r"NEXT_JOB_ID\s*=\s*(\d+)", shown)
    assert job is not None, shown
    job_id = str(int(job[1]) + 1)  # the next one is spent on asking when the job would start (`sbatch --test-only`)
    ports = candidate_ports(f"{job_id}.0", ephemeral_ports())
    listen = f"import socket; s = socket.create_server(('', {ports[0]})); print('listens', flush=True); s.accept()"
    with lab.popen([sys.executable, "-c", listen], node="n1", stdout=subprocess.PIPE) as listener:
        try:
            assert listener.stdout is not None
            assert listener.stdout.readline() == "listens\n"
            run = probe(runs, "port")
        finally:
            listener.kill()
    assert run.job_id == job_id
    taken = run.json("exit/0/rendezvous.json")["port"]
    assert taken == ports[1]
    shows(43, code=0, note="the second port of the job's list")


def probe(runs: LabRuns, name: str) -> LabRun:
    done = runs("submit", "--executor", "slurm", "--nodes", "2", "--script", "probe.py", "--name", name)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs.ended(LabRun(runs.lab, runs.folder / "runs" / name))


def test_mode_5_a_name_that_leads_to_the_loopback(runs: LabRuns, lab: Lab, tmp_path: Path, shows: Shows) -> None:
    """Not one that leads nowhere: with it Slurm itself starts nothing."""
    hosts = lab.exec(["cat", "/etc/hosts"], node="n1").stdout
    others = [line for line in hosts.splitlines() if "n1" not in line.split()]
    (tmp_path / "hosts").write_text("\n".join([*others, "127.0.1.1 n1", ""]))
    assert lab.exec(["mount", "--bind", str(tmp_path / "hosts"), "/etc/hosts"], node="n1").returncode == 0
    try:
        assert "127.0.1.1" in lab.exec(["getent", "ahostsv4", "n1"], node="n1").stdout
        run = probe(runs, "name")
    finally:
        assert lab.exec(["umount", "/etc/hosts"], node="n1").returncode == 0
    address = run.json("exit/0/rendezvous.json")["address"]
    assert not address.startswith("127.")
    shows(45, code=0, note=f"node 0 offered {address}")


def test_a_node_that_never_starts(runs: LabRuns, lab: Lab, shows: Shows) -> None:
    words = ["submit", "--executor", "slurm", "--nodes", "2", "--script", "probe.py", "--name", "missing"]
    assert runs(*words).returncode == 0
    run = LabRun(lab, runs.folder / "runs" / "missing")
    wait_for(lambda: lab.node_processes(f"submitit.core._submit {run.path}", node="n2"))
    os.kill(run.agent("n2"), signal.SIGSTOP)
    assert not (run.path / "exit/0/here-1.json").exists(), "it was stopped too late; nothing was shown"
    runs.ended(run, 17)
    shows(46, code=17, says=run.json("exit/0/node-0.json")["error"])
    wait_for(lambda: not run.processes(), 30)


def test_a_clock_that_is_an_hour_ahead(runs: LabRuns, straight: LabRun, tmp_path: Path, shows: Shows) -> None:
    (tmp_path / "sitecustomize.py").write_text(SKEWED)
    before = runs.environment["PYTHONPATH"]
    runs.environment["PYTHONPATH"] = f"{before}{os.pathsep}{tmp_path}"
    try:
        run = runs.ended(runs.submit("clock", chain="singleton", fault="kill@1:23,term@0:41"))
    finally:
        runs.environment["PYTHONPATH"] = before
    times = [run.json(f"exit/0/node-{node}.json")["started_at"] for node in (0, 1)]
    assert times[1] - times[0] > 3500, "the clock of n2 was as that of n1; nothing was shown"
    assert [run.end(attempt)["own_code"] for attempt in (0, 1, 2)] == [11, 10, 0]
    assert run.is_as(straight)
    shows(
        47,
        code=run.record(1)["code"],
        says=run.last_words[0] + " " + run.record(1)["error"],
        note=f"{times[1] - times[0]:.0f} s apart",
    )
