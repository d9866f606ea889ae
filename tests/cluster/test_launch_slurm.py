"""The launcher on a real Slurm: two nodes, real sbatch, srun, torchrun and DeepSpeed's launcher.

Jobs take 5 to 10 s each, mostly torch's import; those that don't depend on each other run at the same time.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from lab_client import Lab
from lab_launcher import Launcher
from lab_runs import wait_for
from launch_probe import HOSTILE

from launch.spec import ROOT

LAUNCHERS = ("torchrun", "deepspeed", "direct")
MAX_FAILURE_S = 15.0


def test_modes_8_9_10_33_34_35_37_38_47_hostile_words_and_the_plan(launch: Launcher) -> None:
    """Bar 5: dry run = plan.txt, its script = what Slurm has; words arrive unchanged on both nodes."""
    env = [word for index, value in enumerate(HOSTILE) for word in ("--env", f"X_{index}={value}")]
    for launcher in LAUNCHERS:
        words = ["--nodes", "2", "--launcher", launcher, *env]
        arguments = ["--executor", "slurm", "--script", "probe.py", "--name", launcher, *words]
        dry = launch("submit", *arguments, "--dry-run", "--", *HOSTILE)
        assert dry.returncode == 0, dry.stderr
        assert not launch.run_dir(launcher).exists()
        launch.submit(launcher, *words, "--", *HOSTILE)
        with (launch.run_dir(launcher) / "plan.txt").open(newline="") as plan:
            assert plan.read().replace("\r", "\n") == dry.stdout  # text mode has made \r a newline in stdout
        script = (launch.run_dir(launcher) / "submit.sh").read_text()
        assert script in dry.stdout
        assert launch.lab.exec(["scontrol", "write", "batch_script", launch.job_id(launcher), "-"]).stdout == script
    for launcher in LAUNCHERS:
        result = launch("wait", launcher)
        assert result.returncode == 0, result.stdout + result.stderr
        for rank in (0, 1):
            seen = launch.seen(launcher, rank)
            assert seen["argv"] == list(HOSTILE)
            assert [seen["env"][f"X_{index}"] for index in range(len(HOSTILE))] == list(HOSTILE)
            assert (seen["host"], seen["env"]["WORLD_SIZE"], seen["env"]["RANK"]) == (f"n{rank + 1}", "2", str(rank))
            assert seen["env"]["MASTER_ADDR"] == address_of(launch.lab, "n1")
            assert (seen["env"]["GLOO_SOCKET_IFNAME"], seen["env"]["OMP_NUM_THREADS"]) == ("eth0", "1")
            assert f"rank {rank} of 2" in (launch.run_dir(launcher) / f"logs/0/rank-{rank}.log").read_text()
        for variable in ("MASTER_PORT", "CLEANSFT_NONCE"):
            assert launch.seen(launcher, 0)["env"][variable] == launch.seen(launcher, 1)["env"][variable]


def address_of(lab: Lab, node: str) -> str:
    """What the lab's names file says of a node."""
    lines = lab.exec(["cat", "/etc/hosts"]).stdout.splitlines()
    return next(line.split()[0] for line in lines if node in line.split()[1:])


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize(("mode", "code"), [("exit 42", 42), ("raise", 1), ("kill", 11)])
def test_modes_22_23_39_48_failure_of_one_rank(
    launch: Launcher, tmp_path: Path, launcher: str, mode: str, code: int
) -> None:
    """Bar 6: FAILED on both nodes within 15 s, the script's code everywhere, its first error, nothing left."""
    # A failure that another attempt would meet again is not tried again; a killed rank would be.
    chain = "none" if mode == "kill" else "requeue"
    launch.submit("x", "--nodes", "2", "--launcher", launcher, "--env", f"FAIL={mode}", "--chain", chain)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    waited = launch("wait", "x", cwd=elsewhere)
    assert waited.returncode == code, waited.stdout + waited.stderr
    status = launch("status", launch.job_id("x"), cwd=elsewhere).stdout
    assert "x: FAILED" in status
    assert f"node 1 (n2), rank 1 ended with code {code}" in status
    expected = {"exit 42": "rank 1 of 2", "raise": "ValueError: the answer is not 42", "kill": "SIGKILL"}[mode]
    assert expected in status
    assert f"{launch.run_dir('x')}/logs/0/rank-1.log" in status
    ended = [json.loads((launch.run_dir("x") / f"exit/0/node-{node}.json").read_text()) for node in (0, 1)]
    failed = json.loads((launch.run_dir("x") / "exit/0/rank-1.json").read_text())
    assert max(node["ended_at"] for node in ended) - failed["ended_at"] < MAX_FAILURE_S
    assert [node["code"] for node in ended] == [code, code]
    job = launch.slurm_says("x")
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", f"{code}:0", "0")
    assert not (launch.run_dir("x") / "exit" / "1").exists()
    assert not launch.left_over("x")


def test_modes_11_25_cancel_leaves_nothing(launch: Launcher) -> None:
    launch.submit("x", "--nodes", "2", "--procs-per-node", "2", "--env", "FAIL=hang")
    wait_for(launch.is_up("x", 4))
    assert len(launch.left_over("x")) > 8
    agents = launch.lab.node_processes(f"python.* submitit.core._submit {launch.run_dir('x')}")
    assert sorted(agent.node for agent in agents if "srun" not in agent.command_line) == ["n1", "n2"]
    assert "x: RUNNING" in launch("status").stdout
    cancelled = launch("cancel")
    assert "x: CANCELLED" in cancelled.stdout, cancelled.stdout + cancelled.stderr
    assert not launch.left_over("x")
    assert launch("wait", "x").returncode == 143
    assert launch.slurm_says("x")["JobState"] == "CANCELLED"


def test_cancelled_before_it_began(launch: Launcher) -> None:
    launch.submit("first", "--nodes", "2", "--cpus-per-task", "8", "--env", "FAIL=hang")
    launch.submit("second", "--nodes", "2", "--cpus-per-task", "8")
    assert "second: PENDING" in launch("status").stdout
    assert "second: CANCELLED" in launch("cancel", "second").stdout
    assert "first: CANCELLED" in launch("cancel", "first").stdout


def test_modes_1_31_two_jobs_on_one_node_and_no_leak_from_a_step(launch: Launcher) -> None:
    """Two one-node jobs at once, submitted from inside a step of two tasks; each sees its own world of 2."""
    inside = (
        'import os, subprocess, sys; name = "job" + os.environ["SLURM_PROCID"]; '
        'sys.exit(subprocess.call([sys.executable, "-m", "launch", "submit", "--executor", "slurm", '
        '"--script", "probe.py", "--procs-per-node", "2", "--cpus-per-task", "2", "--name", name]))'
    )
    srun = ["srun", "--nodes=2", "--ntasks=2", "--cpus-per-task=1", sys.executable, "-c", inside]
    result = launch.lab.exec(srun, cwd=launch.folder, env=launch.environment, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    for name in ("job0", "job1"):
        waited = launch("wait", name)
        assert waited.returncode == 0, waited.stdout + waited.stderr
        for rank in (0, 1):
            env = launch.seen(name, rank)["env"]
            assert (env["WORLD_SIZE"], env["LOCAL_RANK"], env["SLURM_NTASKS"]) == ("2", str(rank), "1")
    hosts = {launch.seen(name, 0)["host"] for name in ("job0", "job1")}
    ports = {launch.seen(name, 0)["env"]["MASTER_PORT"] for name in ("job0", "job1")}
    times = [json.loads((launch.run_dir(name) / "exit/0/rank-0.json").read_text()) for name in ("job0", "job1")]
    assert len(hosts) == 1
    assert len(ports) == 2
    assert max(record["started_at"] for record in times) - min(record["started_at"] for record in times) < 10


def test_mode_21_a_requeued_job_keeps_its_first_logs(launch: Launcher) -> None:
    launch.submit("x", "--chain", "requeue", "--env", "FAIL=hang")
    wait_for(launch.is_up("x", 1))
    (launch.run_dir("x") / "seen-0.json").unlink()
    assert launch.lab.exec(["scontrol", "requeue", launch.job_id("x")]).returncode == 0
    wait_for(launch.is_up("x", 1))
    assert "x: RUNNING" in launch("status").stdout
    assert ", attempt 1" in launch("status").stdout
    assert all((launch.run_dir("x") / f"logs/{attempt}/rank-0.log").read_text() for attempt in (0, 1))
    assert launch.seen("x", 0)["env"]["CLEANSFT_ATTEMPT"] == "1"
    launch("cancel")


def test_mode_43_follow_from_another_directory(launch: Launcher) -> None:
    """`logs -f` ends when the job ends; a node that vanishes makes no run that lasts for ever."""
    launch.submit("x", "--nodes", "2", "--env", "FAIL=exit 3")
    followed = launch("logs", "-f", "x", cwd=Path("/"))
    assert followed.returncode == 0
    assert "[n1 rank 0] rank 0 of 2\n" in followed.stdout
    assert "[n2 rank 1] rank 1 of 2\n" in followed.stdout


def test_mode_24_killed_agent(launch: Launcher) -> None:
    """SIGKILL of one node's agent: nothing that it started outlives it, and the other node ends too."""
    launch.submit("x", "--nodes", "2", "--env", "FAIL=hang")
    wait_for(launch.is_up("x", 2))
    (agent,) = launch.lab.node_processes(f"submitit.core._submit {launch.run_dir('x')}", node="n2")[:1]
    begin = time.monotonic()
    os.kill(agent.pid, signal.SIGKILL)
    waited = launch("wait", "x")
    assert waited.returncode == 11, waited.stdout
    assert time.monotonic() - begin < MAX_FAILURE_S
    assert launch.slurm_says("x")["JobState"] == "FAILED"
    assert not launch.left_over("x")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--partition", "debgu"], "Known: debug, urgent. Did you mean 'debug'?"),
        (["--gpus-per-node", "99"], "gpus_per_node is 99; it must be at most"),
        (["--nodes", "3"], "nodes is 3; it must be at most 2"),
        (["--time-min", "61"], "time_min is 61; it must be at most 60"),
        (["--nodes", "010"], "nodes is '010'"),
    ],
)
def test_mode_46_refused_before_anything_is_submitted(launch: Launcher, words: list[str], message: str) -> None:
    result = launch("submit", "--executor", "slurm", "--script", "probe.py", *words)
    assert (result.returncode, message in result.stderr) == (2, True), result.stderr
    assert str(launch.folder) not in launch.lab.exec(["squeue", "-h", "-t", "all", "-o", "%Z"]).stdout
    assert not (launch.folder / "runs").exists()


def test_scripts_for_those_without_the_launcher(lab: Lab, tmp_path: Path) -> None:
    """`sbatch slurm/torchrun.sbatch run.yaml` and the other: two nodes, one world, a model; further words arrive."""
    environment = os.environ | {"PYTHON": sys.executable, "ZERO": "1"}
    job_ids = {}
    for name in ("torchrun", "deepspeed"):
        words = [f"slurm/{name}.sbatch", "sft/quickstart/run.yaml", "--max_steps", "2", "--output_dir", tmp_path / name]
        options = ["--parsable", f"--output={tmp_path}/{name}.log"]
        submitted = lab.exec(["sbatch", *options, *map(str, words)], cwd=ROOT, env=environment)
        assert submitted.returncode == 0, submitted.stderr
        job_ids[name] = submitted.stdout.strip()
    words = ["--wait", "--nodes=1", f"--output={tmp_path}/refused.log", "slurm/torchrun.sbatch", "none.yaml"]
    refused = lab.exec(["sbatch", *words], cwd=ROOT)
    assert refused.returncode == 2
    assert "the settings file is 'none.yaml'" in (tmp_path / "refused.log").read_text()
    for name, job_id in job_ids.items():
        wait_for(lambda job=job_id: not lab.exec(["squeue", "-h", "-j", job]).stdout.strip(), timeout_s=150)
        log = (tmp_path / f"{name}.log").read_text()
        assert "JobState=COMPLETED" in lab.exec(["scontrol", "show", "job", job_id]).stdout, log
        assert "2 process(es)" in log
        assert (tmp_path / name / "model.safetensors").exists()
