"""64 nodes on one machine, with a script that needs no torch: what a submission, `status` and `logs` cost there."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_client import Lab, run_lab
from lab_launcher import Launcher
from lab_runs import wait_for

pytestmark = pytest.mark.soak
NUM_NODES = 64
COUNTER = """\
#!/bin/sh
echo "$0 $*" >> {calls}
exec {command} "$@"
"""


@pytest.fixture(scope="module")
def large_lab(lab: Lab) -> Iterator[Lab]:
    """The lab with 64 nodes; as it was afterwards."""
    size, options = len(lab.nodes), ["--dir", str(lab.directory)]
    assert run_lab("down", *options).returncode == 0
    started = run_lab("up", *options, "--nodes", str(NUM_NODES), "--no-accounting")
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        yield lab
    finally:
        assert run_lab("down", *options).returncode == 0
        assert run_lab("up", *options, "--nodes", str(size)).returncode == 0


@pytest.fixture
def launch(large_lab: Lab, tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(large_lab, tmp_path)
    yield launcher
    launcher.close()


def count_calls(launch: Launcher, folder: Path) -> Path:
    """Puts counters before Slurm's commands; the file with a line for each call."""
    calls = folder / "calls"
    (folder / "counters").mkdir()
    for name in ("sbatch", "squeue", "scontrol", "sinfo", "sacct", "scancel"):
        path = folder / "counters" / name
        found = launch.lab.exec(["which", name]).stdout.strip()
        path.write_text(COUNTER.format(calls=calls, command=found))
        path.chmod(0o755)
    launch.environment["PATH"] = f"{folder / 'counters'}:{os.environ['PATH']}"
    return calls


def num_calls(calls: Path) -> int:
    found = len(calls.read_text().splitlines()) if calls.exists() else 0
    calls.unlink(missing_ok=True)
    return found


def test_a_script_on_64_nodes(launch: Launcher, tmp_path: Path) -> None:
    calls = count_calls(launch, tmp_path)
    counts = {}
    for nodes in (1, NUM_NODES):
        name = f"on-{nodes}"
        began = time.monotonic()
        launch.submit(name, "--nodes", str(nodes), "--launcher", "direct")
        counts[nodes] = [num_calls(calls)]
        waited = launch("wait", name)
        took_s = time.monotonic() - began
        assert waited.returncode == 0, waited.stdout + waited.stderr
        num_calls(calls)
        for words in (["status", name], ["logs", name]):
            began = time.monotonic()
            said = launch(*words)
            print(f"{nodes} nodes: {words[0]} took {time.monotonic() - began:.2f} s")
            assert said.returncode == 0, said.stderr
            counts[nodes].append(num_calls(calls))
        print(f"{nodes} nodes: {took_s:.1f} s from the submission to the end")
    hosts = {launch.seen("on-64", rank)["host"] for rank in range(NUM_NODES)}
    assert hosts == set(launch.lab.nodes)
    assert f"rank {NUM_NODES - 1} of {NUM_NODES}" in said.stdout
    # Neither for the submission, nor for status or logs.
    assert counts[1] == counts[NUM_NODES]


def test_one_node_of_64_that_does_not_start_is_named(launch: Launcher) -> None:
    launch.submit("x", "--nodes", str(NUM_NODES), "--launcher", "direct")
    pattern = f"submitit.core._submit {launch.run_dir('x')}"
    wait_for(lambda: bool(launch.lab.node_processes(pattern, node="n40")))
    victim = launch.lab.node_processes(pattern, node="n40")[0].pid
    os.kill(victim, signal.SIGSTOP)
    assert not (launch.run_dir("x") / "exit/0/here-39.json").exists(), "it was stopped too late; nothing was shown"
    waited = launch("wait", "x")
    assert waited.returncode == 17, waited.stdout + waited.stderr
    facts = json.loads(launch("status", "x", "--json").stdout)
    assert "63 of 64 nodes after 60 s: missing n40" in json.dumps(facts)
