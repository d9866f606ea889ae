"""Faults 14 to 18 on a real Slurm: slow saves, lost nodes, killed daemons."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator

import pytest
from faults.recording import Shows
from lab_client import Lab
from lab_runs import SAVE_STEPS, LabRun, LabRuns, alive, wait_for
from test_going_on_slurm import Runs

pytestmark = pytest.mark.soak
SLOW_STEPS = 240
"""Of a run on one node whose steps take 0.3 s each, so that it lasts until Slurm gives up its node."""


@pytest.fixture(scope="module")
def runs(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabRuns]:
    runs = LabRuns(lab, tmp_path_factory.mktemp("slurm"))
    yield runs
    runs.close()
    lab.up()


@pytest.fixture(scope="module")
def straight(runs: LabRuns) -> LabRun:
    """The run on one node, undisturbed."""
    return runs.ended(runs.submit("straight", nodes=1, settings={"max_steps": SLOW_STEPS}))


def test_mode_13_a_slow_save_is_not_cut_off_where_there_is_time(
    lab: Lab, tmp_path_factory: pytest.TempPathFactory, shows: Shows
) -> None:
    runs = Runs(lab, tmp_path_factory.mktemp("save"))
    runs.submit("save", "requeue", "--nodes", "2", PACE=0.3, SAVE=45, STEPS=12)
    runs.wait_for(lambda: len(runs.trace("save")) > 2)
    assert lab.exec(["scancel", "--batch", "--signal=USR1", runs.job_id("save")]).returncode == 0
    told_at = time.time()
    runs.wait_for((runs.folder / "runs/save/exit/0/end.json").exists, 120)
    end = json.loads((runs.folder / "runs/save/exit/0/end.json").read_text())
    runs.ends("save", 0, "COMPLETED")
    assert end["ended_at"] - told_at >= 45
    steps = [step for step, _ in runs.trace("save")]
    assert steps == list(range(1, 13))
    found = re.search("attempt 0 ended with code 10: .*", runs.log("save"))
    shows(
        14,
        "save of 45 s",
        code=0,
        says=found[0] if found else "",
        steps_lost=len(steps) - 12,
        note=f"the attempt ended {end['ended_at'] - told_at:.0f} s after the signal",
    )


def test_a_save_that_is_cut_off_loses_its_own_steps_alone(
    runs: LabRuns, straight: LabRun, lab: Lab, shows: Shows
) -> None:
    step = 20 * SAVE_STEPS
    run = runs.submit(
        "cut", nodes=1, chain="requeue", fault=f"slow30@0:{step}:save_part", settings={"max_steps": SLOW_STEPS}
    )
    wait_for((run.path / f"faults/slow30-0-{step}-save_part").exists)
    assert lab.exec(["scontrol", "requeue", run.job_id]).returncode == 0
    wait_for(run.end)
    begun = run.saved_steps()
    assert max(begun) == step - SAVE_STEPS
    runs.ended(run)
    assert run.is_as(straight)
    resumed = next(line for line in run.log("1/rank-0.log").splitlines() if line.startswith("resuming from"))
    shows(15, code=0, says=resumed, note=f"a save of 30 s was cut off after KillWait, 5 s; of step {step}")


def test_mode_19_a_lost_node_that_lives_on_is_fenced(runs: LabRuns, straight: LabRun, lab: Lab, shows: Shows) -> None:
    hold = ["sbatch", "--parsable", "--nodelist=n1", "--cpus-per-task=8", "--output=/dev/null", "--wrap=sleep 300"]
    filler = lab.exec(hold).stdout.strip()
    wait_for(lambda: lab.exec(["squeue", "-h", "-j", filler, "-o", "%T"]).stdout.strip() == "RUNNING")
    slow = ",".join(f"slow@0:{step}" for step in range(1, SLOW_STEPS + 1))
    run = runs.submit("lost", nodes=1, chain="requeue", fault=slow, settings={"max_steps": SLOW_STEPS})
    run.wait_for_step(10)
    lab.exec(["scancel", filler])
    writer = run.script(0)
    assert {process.node for process in run.processes()} == {"n2"}
    os.kill(lab.pid("slurmd:n2"), signal.SIGKILL)
    lost_at = time.time()
    try:
        wait_for(lambda: run.json("exit/1/attempt.json"), 120)
        noticed_s = time.time() - lost_at
        lives = alive(writer)
        wait_for(lambda: run.record(0).get("code"), 60)
        runs.ended(run)
    finally:
        lab.up()
    assert lives, "the lost node's rank had ended before the next attempt began; nothing was shown"
    assert run.record(0)["host"] == "n2"
    assert run.record(0, 1)["host"] == "n1"
    assert run.is_as(straight)
    shows(
        16,
        code=run.record(0)["code"],
        says=run.record(0)["error"],
        note=f"the next attempt began {noticed_s:.0f} s after the loss; undisturbed losses and weights",
    )


def test_a_killed_slurmstepd(runs: LabRuns, lab: Lab, shows: Shows) -> None:
    run = runs.submit("stepd", chain="requeue")
    run.wait_for_step(20)
    before = run.processes()
    (step,) = lab.node_processes(rf"slurmstepd: \[{run.job_id}\.0\]", node="n2")
    os.kill(step.pid, signal.SIGKILL)
    wait_for(run.end, 180)
    ended_at = max(json.loads(path.read_text())["ended_at"] for path in run.path.glob("exit/0/node-*.json"))
    wait_for(lambda: not lab.exec(["squeue", "-h", "-j", run.job_id]).stdout.strip(), 60)
    free_s = run.gone_after(before, ended_at)
    lab.up()
    runs.ended(run)
    decided = re.search(r"attempt 0 ended with code \d+: .*", run.log())
    shows(
        17,
        code=run.end()["code"],
        says=decided[0] if decided else "",
        free_s=free_s,
        steps_lost=0 if list(run.path.glob("exit/*")) == [run.path / "exit" / "0"] else None,
    )


def test_a_restart_of_the_controller_is_not_noticed(runs: LabRuns, lab: Lab, shows: Shows) -> None:
    run = runs.submit("controller", settings={"max_steps": 2000, "save_steps": 100})
    run.wait_for_step(100)
    os.kill(lab.pid("slurmctld"), signal.SIGKILL)
    try:
        said = runs("status", "controller")
    finally:
        lab.up()
    runs.ended(run)
    assert list(run.path.glob("exit/*")) == [run.path / "exit" / "0"]
    shows(18, code=0, says=said.stdout + said.stderr, steps_lost=0)
