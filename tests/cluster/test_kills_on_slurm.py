"""Faults 1 and 9 to 11 on a real Slurm: signals to ranks and agents, with their times (bar: dead rank seen within 2 s,
nodes free within 5 s, a new step within 30 s)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
from faults.recording import Shows
from lab_client import Lab
from lab_runs import LabRun, LabRuns


@pytest.fixture(scope="module")
def runs(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabRuns]:
    runs = LabRuns(lab, tmp_path_factory.mktemp("kills"))
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def straight(runs: LabRuns) -> LabRun:
    """The same run, undisturbed."""
    return runs.ended(runs.submit("straight"))


@pytest.mark.soak
def test_mode_26_a_killed_rank(runs: LabRuns, straight: LabRun, shows: Shows) -> None:
    run = runs.submit("kill", chain="singleton")
    run.wait_for_step(20)
    before = [process for process in run.processes() if "launch.batch" not in process.command_line]
    victim = run.script(1)
    os.kill(victim, signal.SIGKILL)
    killed_at = time.time()
    free_s = run.gone_after(before, killed_at)
    runs.ended(run)
    record = run.record(1)
    assert run.record(0)["code"] == 11
    assert run.is_as(straight)
    shows(
        1,
        "Slurm",
        code=record["code"],
        says=record["error"],
        found_s=record["ended_at"] - killed_at,
        free_s=free_s,
        next_step_s=run.saved_at(int(run.word("step")) - 1, killed_at) - killed_at,
        steps_lost=run.steps_lost(),
        note="losses and weights of the undisturbed run",
    )


@pytest.mark.soak
def test_a_signal_to_the_agent_of_one_node_saves(runs: LabRuns, shows: Shows) -> None:
    run = runs.submit("term")
    run.wait_for_step(20)
    before = run.processes()
    os.kill(run.agent("n2"), signal.SIGTERM)
    told_at = time.time()
    free_s = run.gone_after(before, told_at)
    runs.ended(run, 10)
    assert run.word("step") == run.word("resume_from")
    shows(9, code=10, says=run.record(1)["error"], free_s=free_s, steps_lost=run.steps_lost())


@pytest.mark.soak
def test_mode_12_a_user_signal_to_all_processes_saves(runs: LabRuns, lab: Lab, shows: Shows) -> None:
    run = runs.submit("usr2")
    run.wait_for_step(20)
    before = run.processes()
    assert lab.exec(["scancel", "-s", "USR2", run.job_id]).returncode == 0
    told_at = time.time()
    free_s = run.gone_after(before, told_at)
    runs.ended(run, 10)
    shows(11, "Slurm", code=10, says=run.record(1)["error"], free_s=free_s, steps_lost=run.steps_lost())


@pytest.mark.soak
def test_a_killed_agent(runs: LabRuns, shows: Shows) -> None:
    run = runs.submit("agent")
    run.wait_for_step(20)
    before = run.processes()
    os.kill(run.agent("n2"), signal.SIGKILL)
    killed_at = time.time()
    free_s = run.gone_after(before, killed_at)
    runs.ended(run, 11)
    assert run.word("reason", -1) in ("agent_died", "rank_died")  # its ranks died with it, a moment earlier
    lost = run.record(0)["step"] - 1 - int(run.end()["step"])
    shows(10, code=11, says=run.json("exit/0/node-1.json")["error"], free_s=free_s, steps_lost=lost)
