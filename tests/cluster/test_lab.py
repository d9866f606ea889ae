"""The lab itself: jobs run, records are kept, exit codes and faults come through, and nothing is left behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab_client import LAB_PROGRAM, Lab, run_lab


def wait_until(is_done: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_done():
        assert time.monotonic() < deadline_s, f"not done after {timeout_s:g} s"
        time.sleep(0.2)


def submit(lab: Lab, *arguments: str) -> str:
    done = lab.exec(["sbatch", "--parsable", "--output=/dev/null", *arguments])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def job_field(lab: Lab, job: str, field: str) -> str:
    shown = lab.exec(["scontrol", "show", "job", job]).stdout
    match = re.search(rf"\b{field}=(\S+)", shown)
    assert match is not None, shown
    return match[1]


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A folder that the lab's daemons may enter, whoever they run as; pytest's own is private."""
    folder = Path(tempfile.mkdtemp(prefix="cleansft-lab-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_every_node_answers(lab: Lab) -> None:
    done = lab.exec(["srun", f"--nodes={len(lab.nodes)}", "--ntasks-per-node=1", "hostname"])
    assert sorted(done.stdout.split()) == sorted(lab.nodes), done.stderr


def test_exit_code_of_a_job_is_seen(lab: Lab) -> None:
    job = submit(lab, "--wrap=exit 42")
    wait_until(lambda: job_field(lab, job, "JobState") == "FAILED")
    assert job_field(lab, job, "ExitCode") == "42:0"


def test_accounting_knows_a_finished_job(lab: Lab) -> None:
    if "slurmdbd" not in lab.state["processes"]:
        pytest.skip("this lab runs without accounting")
    job = submit(lab, "--wrap=exit 3")
    command = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=State,ExitCode"]
    wait_until(lambda: lab.exec(command).stdout.strip() == "FAILED|3:0")


def test_a_job_is_given_the_gpus_that_it_asks_for(lab: Lab) -> None:
    if not lab.state["options"]["gpus_per_node"]:
        pytest.skip("this lab runs without GPUs")
    done = lab.exec(["srun", "--gpus-per-node=2", "printenv", "CUDA_VISIBLE_DEVICES"])
    assert re.fullmatch(r"\d,\d", done.stdout.strip()), done.stderr


def test_exec_passes_everything_through(lab: Lab, tmp_path: Path) -> None:
    script = "cat; pwd; echo $MARK $SLURM_CONF; hostname; echo oops >&2; exit 7"
    done = lab.exec(
        ["sh", "-c", script], node=lab.nodes[0], input="stdin\n", cwd=tmp_path, env={**os.environ, "MARK": "a b"}
    )
    assert done.stdout.splitlines() == ["stdin", str(tmp_path), f"a b {lab.slurm_conf}", lab.nodes[0]]
    assert (done.stderr, done.returncode) == ("oops\n", 7)


def test_exec_tells_what_it_can_not_do(lab: Lab) -> None:
    unknown_node = lab.exec(["true"], node="n999")
    assert (unknown_node.returncode, "n999" in unknown_node.stderr) == (125, True)
    assert lab.exec(["no-such-program"]).returncode == 127


def test_popen_has_the_pid_of_the_command(lab: Lab) -> None:
    with lab.popen(["sleep", "1000"], node=lab.nodes[0]) as process:
        try:
            wait_until(lambda: any(found.pid == process.pid for found in lab.node_processes("^sleep 1000")))
        finally:
            process.terminate()
    assert process.returncode == -15


def test_names_resolve_and_nothing_leads_outside(lab: Lab) -> None:
    for name in ["ctl", *lab.nodes]:
        resolved = lab.exec(["getent", "hosts", name], node=lab.nodes[-1])
        assert resolved.stdout.startswith("10.77.0."), name
        assert lab.exec(["ip", "route", "show", "default"], node=name).stdout == ""


def test_processes_of_a_job_are_seen_and_gone_after_cancel(lab: Lab) -> None:
    job = submit(lab, f"--nodes={len(lab.nodes)}", "--wrap=srun sleep 4321")
    wait_until(lambda: {found.node for found in lab.node_processes("^/?.*sleep 4321$")} == set(lab.nodes))
    lab.exec(["scancel", job])
    wait_until(lambda: not lab.node_processes("sleep 4321"))


def test_urgent_job_tells_a_job_then_takes_its_nodes_and_requeues_it(lab: Lab, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    script.write_text(
        f"#!/bin/sh\necho run $SLURM_RESTART_COUNT >> {tmp_path}/log\n"
        f"trap 'echo told >> {tmp_path}/log' USR2\n"
        '[ -n "$SLURM_RESTART_COUNT" ] || while true; do sleep 1 & wait; done\n',
        encoding="utf-8",
    )
    everything = [f"--nodes={len(lab.nodes)}", "--exclusive"]
    job = submit(lab, *everything, "--requeue", "--signal=B:USR2@60", "--time=5", str(script))
    wait_until(lambda: job_field(lab, job, "JobState") == "RUNNING")
    time.sleep(1)  # the script has set its trap
    urgent = submit(lab, *everything, "--partition=urgent", "--wrap=true")
    wait_until(lambda: job_field(lab, urgent, "JobState") == "COMPLETED")
    wait_until(lambda: (tmp_path / "log").read_text(encoding="utf-8").startswith("run\ntold\nrun 1\n"))


def test_a_killed_node_is_repaired(lab: Lab) -> None:
    node = lab.nodes[-1]
    subprocess.run(["kill", "-9", str(lab.pid(f"slurmd:{node}"))], check=True)
    subprocess.run(["ip", "-netns", node, "link", "set", "eth0", "down"], check=True)
    status = run_lab("status", "--dir", str(lab.directory))
    assert status.returncode == 1
    assert f"slurmd:{node} isn't running" in status.stdout
    lab.up()
    assert run_lab("status", "--dir", str(lab.directory)).returncode == 0


def test_up_refuses_foreign_namespaces(lab: Lab, open_dir: Path) -> None:
    done = run_lab("up", "--dir", str(open_dir / "other"))
    assert done.returncode == 1
    assert "ctl, n1" in done.stderr
    assert not (open_dir / "other").exists()


def test_down_leaves_nothing(lab: Lab, open_dir: Path, tmp_path: Path) -> None:
    """A second lab, beside the first: where the names of namespaces are kept is a mount, and this one has its own."""
    lab_dir = open_dir / "second"
    record = tmp_path / "state.json"
    script = """
        mount -t tmpfs none /run/netns && cd / || exit 90
        "$0" "$1" up --nodes 3 --no-accounting --dir "$2" &&
        "$0" "$1" exec --dir "$2" -- sbatch --nodes=3 --output=/dev/null --wrap 'srun sleep 8765' && sleep 2 &&
        "$0" "$1" exec --dir "$2" --node n3 -- pgrep -f '^[^ ]*sleep 8765$'
        ran=$?
        cp "$2/state.json" "$3"
        "$0" "$1" down --dir "$2" && "$0" "$1" down --dir "$2" && ls /run/netns && exit $ran
    """
    own_mounts = ["unshare", "--mount", "--propagation", "private"]
    done = subprocess.run(
        [*own_mounts, "sh", "-c", script, sys.executable, str(LAB_PROGRAM), str(lab_dir), str(record)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"already down: {lab_dir} doesn't exist"  # and no name after it
    assert not lab_dir.exists()
    second = Lab(tmp_path)  # the record outlives the lab
    assert second.nodes == ["n1", "n2", "n3"]
    assert second.node_processes() == []
    for name in second.state["processes"]:
        command_line = Path(f"/proc/{second.pid(name)}/cmdline")
        assert not command_line.exists() or command_line.read_bytes() == b"", name
