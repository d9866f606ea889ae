"""Failures that users of other launchers have met, by their numbers in docs/failure-modes.md: those that no other test
in this folder shows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from lab_client import Lab
from lab_launcher import Launcher
from lab_runs import LabRuns, wait_for
from test_going_on_slurm import Runs

HALF_DONE = """\
# Rank 0 does all its steps and leaves; rank 1 stays in its third.
import os, time

from node_board import NodeBoard

board = NodeBoard.attach_from(os.environ, int(os.environ["LOCAL_RANK"]))
for step in range(1, 6):
    board.beat("step", step)
    time.sleep(600 if (step, os.environ["RANK"]) == (3, "1") else 0.2)
board.beat("end", 5)
"""
APPTAINER = """\
#!/bin/bash
# Stands for `apptainer exec`: what it runs finds no command of Slurm, as inside an image.
while [[ $1 == exec || $1 == --* ]]; do shift; done
image=$1; shift
[ -e "$image" ] || exit 255
PATH={path} exec "$@"
"""


@pytest.fixture
def runs(lab: Lab, tmp_path: Path) -> Iterator[Runs]:
    made = Runs(lab, tmp_path)
    yield made
    for path in (tmp_path / "runs").iterdir():
        made("cancel", path.name)


def settings_file(launch: Launcher, **launch_settings: object) -> list[str]:
    """The words that name a file of launch settings."""
    (launch.folder / "run.yaml").write_text(yaml.safe_dump({"launch": launch_settings}))
    return ["--config", "run.yaml"]


def commands_without(folder: Path, *names: str) -> Path:
    """A folder with the commands that are on PATH here, but for these."""
    folder.mkdir()
    for directory in filter(os.path.isdir, os.environ["PATH"].split(os.pathsep)):
        for command in Path(directory).iterdir():
            if command.name not in names and not (folder / command.name).exists():
                (folder / command.name).symlink_to(command)
    assert all(shutil.which(name, path=str(folder)) is None for name in names)
    return folder


def test_mode_2_a_neighbour_that_ends_first(launch: Launcher, tmp_path: Path) -> None:
    """Two jobs on one node: when the first ends, with its rendezvous, the second goes on."""
    for name in ("first", "second"):
        launch.submit(name, "--procs-per-node", "2", "--env", f"WAIT_FOR={tmp_path / name}")
        wait_for(launch.is_up(name, 2))
    assert launch.seen("first", 0)["host"] == launch.seen("second", 0)["host"]
    (tmp_path / "first").touch()
    assert launch("wait", "first").returncode == 0
    assert "second: RUNNING" in launch("status", "second").stdout
    (tmp_path / "second").touch()
    waited = launch("wait", "second")
    assert waited.returncode == 0, waited.stdout + waited.stderr


def test_mode_6_a_node_that_does_not_know_the_name_of_the_first(launch: Launcher, lab: Lab, tmp_path: Path) -> None:
    with names_of(lab, "n2", tmp_path, without="n1"):
        assert lab.exec(["getent", "hosts", "n1"], node="n2").returncode != 0
        launch.submit("x", "--nodes", "2")
        waited = launch("wait", "x")
    assert waited.returncode == 0, waited.stdout + waited.stderr
    assert [launch.seen("x", rank)["env"]["WORLD_SIZE"] for rank in (0, 1)] == ["2", "2"]


@contextmanager
def names_of(lab: Lab, node: str, folder: Path, *, without: str) -> Iterator[None]:
    """On this node one name leads nowhere."""
    lines = lab.exec(["cat", "/etc/hosts"], node=node).stdout.splitlines()
    (folder / "hosts").write_text("".join(f"{line}\n" for line in lines if without not in line.split()))
    assert lab.exec(["mount", "--bind", str(folder / "hosts"), "/etc/hosts"], node=node).returncode == 0
    try:
        yield
    finally:
        assert lab.exec(["umount", "/etc/hosts"], node=node).returncode == 0


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "direct"])
def test_modes_7_36_nodes_without_scontrol_and_ssh(launch: Launcher, tmp_path: Path, launcher: str) -> None:
    commands = commands_without(tmp_path / "bin", "scontrol", "sinfo", "squeue", "ssh", "pdsh")
    launch.submit(
        "x", "--nodes", "2", "--launcher", launcher, *settings_file(launch, setup=[f"export PATH={commands}"])
    )
    waited = launch("wait", "x")
    assert waited.returncode == 0, waited.stdout + waited.stderr
    for rank in (0, 1):
        seen = launch.seen("x", rank)["env"]
        assert shutil.which("ssh", path=seen["PATH"]) is None
        assert seen["WORLD_SIZE"] == "2"


def test_mode_16_a_requeue_where_the_container_has_no_scontrol(runs: Runs, tmp_path: Path) -> None:
    inside = commands_without(tmp_path / "inside", "scontrol", "srun", "sbatch")
    (tmp_path / "outside").mkdir()
    apptainer = tmp_path / "outside" / "apptainer"
    apptainer.write_text(APPTAINER.format(path=inside))
    apptainer.chmod(0o755)
    (tmp_path / "image.sif").touch()
    container = {"kind": "apptainer", "image": str(tmp_path / "image.sif"), "python": sys.executable}
    setup = [f"export PATH={tmp_path / 'outside'}:$PATH"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"launch": {"container": container, "setup": setup}}))
    runs.submit("x", "requeue", "--config", "run.yaml", PACE=0.3)
    runs.wait_for(lambda: len(runs.trace("x")) > 2)
    assert runs.lab.exec(["scancel", "--batch", "--signal=USR1", runs.job_id("x")]).returncode == 0
    runs.ends("x", 0, "COMPLETED")
    assert [step for step, _ in runs.trace("x")] == list(range(1, 21)), runs.log("x")
    assert {attempt for _, attempt in runs.trace("x")} == {0, 1}


def test_mode_17_one_task_of_an_array_is_requeued_and_the_other_is_not(runs: Runs) -> None:
    """Each in turn: the number of one of the tasks is that of the whole array."""
    words = ["--executor", "slurm", "--script", "train.py", "--name", "s", "--parallel", "2", "--chain", "requeue"]
    done = runs("sweep", *words, "--env", "PACE=0.4", "--env", "STEPS=60", "learning_rate=1,2")
    assert done.returncode == 0, done.stdout + done.stderr
    for task in (0, 1):
        other = f"s/{1 - task}"
        runs.wait_for(lambda: all(len(runs.trace(f"s/{number}")) > 2 for number in (0, 1)))
        before = {attempt for _, attempt in runs.trace(other)}
        assert runs.lab.exec(["scancel", "--batch", "--signal=USR1", runs.job_id(f"s/{task}")]).returncode == 0
        runs.wait_for(lambda: 1 in {attempt for _, attempt in runs.trace(f"s/{task}")})  # noqa: B023
        assert {attempt for _, attempt in runs.trace(other)} == before, runs.log(other)
    cancelled = runs("cancel", "s-0")
    assert "s-0: CANCELLED" in cancelled.stdout, cancelled.stdout + cancelled.stderr
    runs.ends("s-1", 0, "COMPLETED")
    assert [step for step, _ in runs.trace("s/1")] == list(range(1, 61)), runs.log("s/1")


@pytest.mark.soak
def test_modes_18_20_three_preemptions_in_a_row(lab: Lab, tmp_path: Path) -> None:
    """Each saves and goes on; one folder of TensorBoard, in which no step is there twice."""
    runs = LabRuns(lab, tmp_path)
    run = runs.submit("x", chain="requeue", settings={"report_to": "tensorboard"}, launch={"cpus_per_task": 4})
    try:
        for count in range(1, 4):
            last = max(run.saved_steps(), default=0)
            run.wait_for_step(last + 10)
            urgent = ["--partition=urgent", "--nodes=2", "--cpus-per-task=8", "--output=/dev/null", "--wrap=sleep 1"]
            assert lab.exec(["sbatch", *urgent]).returncode == 0
            wait_for(lambda: run.json(f"exit/{count}/attempt.json"), 120)  # noqa: B023
        runs.ended(run)
        assert "Restarts=3" in lab.exec(["scontrol", "show", "job", run.job_id]).stdout
    finally:
        runs.close()
    assert len(run.losses) == len(set(range(len(run.losses))))
    (folder,) = {path.parent for path in run.path.rglob("events.out.tfevents.*")}
    assert steps_of(folder, "train/loss") == list(range(1, len(run.losses) + 1))


def steps_of(folder: Path, tag: str) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def test_mode_27_a_rank_that_is_done_while_another_stays(launch: Launcher) -> None:
    (launch.folder / "half.py").write_text(HALF_DONE)
    words = ["submit", "--executor", "slurm", "--nodes", "2", "--script", "half.py", "--name", "x"]
    assert launch(*words).returncode == 0
    waited = launch("wait", "x")
    assert waited.returncode == 12, waited.stdout + waited.stderr
    assert "node 1 (n2), rank 1 ended with code 12" in launch("status", "x").stdout
    assert not launch.left_over("x")


def test_mode_28_a_process_that_stays_behind(launch: Launcher) -> None:
    """Children that ignore every request to end do not keep a job that is done from ending."""
    launch.submit("x", "--nodes", "2", "--env", "STRAY=1")
    waited = launch("wait", "x")
    assert waited.returncode == 0, waited.stdout + waited.stderr
    assert launch.slurm_says("x")["JobState"] == "COMPLETED"
    assert not launch.left_over("x")


def test_mode_29_a_set_up_that_fails(launch: Launcher) -> None:
    launch.submit("x", *settings_file(launch, setup=["source /none/bin/activate"]))
    assert launch("wait", "x").returncode == 1
    assert launch.slurm_says("x")["JobState"] == "FAILED"
    said = launch("status", "x").stdout
    why = "its job ended with code 1 before it began an attempt, which begins when the lines of `setup` are done"
    assert said.startswith(f"x: FAILED ({why}), job ")
    assert "/none/bin/activate: No such file or directory" in said
    assert not (launch.run_dir("x") / "exit" / "0" / "rank-0.json").exists()


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "direct"])
def test_mode_30_devices_reach_the_ranks_as_they_are(launch: Launcher, launcher: str) -> None:
    words = ["--launcher", launcher, "--procs-per-node", "2"]
    launch.submit("given", *words, "--gpus-per-node", "2")
    launch.submit("named", *words, "--env", "CUDA_VISIBLE_DEVICES=GPU-8f3a,MIG-1c2d")
    assert [launch("wait", name).returncode for name in ("given", "named")] == [0, 0]
    for name, devices in (("given", "0,1"), ("named", "GPU-8f3a,MIG-1c2d")):
        seen = [launch.seen(name, rank)["env"].get("CUDA_VISIBLE_DEVICES") for rank in (0, 1)]
        assert seen == [devices, devices], name


def test_mode_32_the_step_has_the_cpus_of_the_job(launch: Launcher, tmp_path: Path) -> None:
    """As Slurm counts them: the lab binds no process to CPUs."""
    launch.submit("x", "--nodes", "2", "--cpus-per-task", "3", "--env", f"WAIT_FOR={tmp_path / 'seen'}")
    wait_for(launch.is_up("x", 2))
    step = launch.lab.exec(["scontrol", "show", "step", f"{launch.job_id('x')}.0"]).stdout
    (tmp_path / "seen").touch()
    assert " CPUs=6 " in step.replace("\n", " "), step
    assert launch("wait", "x").returncode == 0
    seen = launch.seen("x", 1)["env"]
    assert (seen["SLURM_CPUS_PER_TASK"], seen["OMP_NUM_THREADS"]) == ("3", "3")


def test_mode_40_a_node_to_avoid_that_is_not_of_this_cluster(launch: Launcher) -> None:
    """From another cluster's settings, for instance: refused with its name before anything is submitted."""
    refused = launch("submit", "--executor", "slurm", "--script", "probe.py", "--name", "x", "--exclude", "zz[8-9],n2")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "exclude is 'zz[8-9],n2'" in refused.stderr
    assert not launch.run_dir("x").exists()


def test_mode_41_locks_that_killed_jobs_have_left(launch: Launcher, tmp_path: Path) -> None:
    """A shared cache of compiled code with stale locks: nothing is compiled on the way, so nothing waits for them."""
    stale = tmp_path / "extensions" / "deepspeed_shm_comm" / "lock"
    stale.parent.mkdir(parents=True)
    stale.touch()
    runs = LabRuns(launch.lab, launch.folder)
    words = ["--launcher", "deepspeed", "--env", f"TORCH_EXTENSIONS_DIR={tmp_path / 'extensions'}"]
    run = runs.submit("x", *words, "--zero", "2", settings={"max_steps": 2, "save_steps": 0})
    runs.ended(run)
    assert len(run.losses) == 2
    assert sorted(path.name for path in (tmp_path / "extensions").rglob("*")) == ["deepspeed_shm_comm", "lock"]


def test_mode_42_a_command_that_is_killed_after_it_has_submitted(launch: Launcher) -> None:
    words = ["submit", "--executor", "slurm", "--nodes", "2", "--script", "probe.py", "--name", "x", "--wait"]
    command = [sys.executable, "-m", "launch", *words, "--env", "SLEEP=3"]
    with launch.lab.popen(
        command, cwd=launch.folder, env=launch.environment, stdout=subprocess.DEVNULL, start_new_session=True
    ) as submitter:
        wait_for((launch.run_dir("x") / "submission.json").exists)
        os.killpg(submitter.pid, signal.SIGKILL)
    waited = launch("wait", "x", cwd=Path("/"))
    assert waited.returncode == 0, waited.stdout + waited.stderr


def test_modes_44_45_what_slurm_says_of_an_ended_run_is_not_asked(launch: Launcher, tmp_path: Path) -> None:
    """Its own records tell, where accounting is missing or tells something else, and Slurm has forgotten the job."""
    launch.submit("x", "--nodes", "2", "--env", "FAIL=exit 42")
    assert launch("wait", "x").returncode == 42
    called = tmp_path / "called"
    (tmp_path / "wrong").mkdir()
    for name in ("sacct", "squeue", "scontrol"):
        stand_in = tmp_path / "wrong" / name
        stand_in.write_text(f"#!/bin/sh\necho {name} >> {called}\necho COMPLETED 0:0\n")
        stand_in.chmod(0o755)
    launch.environment["PATH"] = f"{tmp_path / 'wrong'}:{os.environ['PATH']}"
    facts = json.loads(launch("status", "x", "--json").stdout)
    assert (facts["state"], facts["code"]) == ("FAILED", 42), facts
    (row,) = json.loads(launch("list", "--json").stdout)["runs"]
    assert row["state"] == "FAILED"
    assert not called.exists()
