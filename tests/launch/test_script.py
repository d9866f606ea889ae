"""Argv, environment and scripts, as whole texts."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable

import pytest
from conftest_golden import check_golden

from launch import command, script
from launch.command import NodeFacts
from launch.rendezvous import Rendezvous
from launch.spec import ROOT, JobSpec

MakeSpec = Callable[..., JobSpec]
MEETING = Rendezvous("17.0", "10.0.0.5", "23456", 1, ("n1", "n2"))


def _portable(text: str) -> str:
    return text.replace(str(ROOT), "/ROOT")


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed", "direct"])
@pytest.mark.parametrize("executor", ["slurm", "local"])
def test_plan(make_spec: MakeSpec, launcher: str, executor: str) -> None:
    plan = script.plan_text(make_spec(launcher=launcher, executor=executor), ())
    check_golden(f"plan-{executor}-{launcher}.txt", _portable(plan))


def test_script_with_everything(make_spec: MakeSpec) -> None:
    spec = make_spec(
        nodes=4, procs_per_node=8, gpus_per_node=8, cpus_per_task=96, mem_gb=500, time_min=90, partition="h100",
        run_dir="/shared/my runs/it's", setup=("module load cuda/12",),
    )  # fmt: skip
    check_golden("submit-everything.sh", _portable(script.script_text(spec)))


def test_plan_of_many_nodes_shows_first_second_and_last(make_spec: MakeSpec) -> None:
    plan = script.plan_text(make_spec(nodes=64), ())
    titles = [line for line in plan.splitlines() if line.startswith("# =====")]
    shown = [title.split(":")[0].strip("# =") for title in titles[1:5]]
    assert shown == ["node 0", "node 1", "nodes 2 to 62", "node 63"]


def test_plan_holds_the_script(make_spec: MakeSpec) -> None:
    spec = make_spec()
    assert script.script_text(spec) in script.plan_text(spec, ())


@pytest.mark.parametrize("executor", ["slurm", "local"])
def test_scripts_are_valid_bash(make_spec: MakeSpec, executor: str) -> None:
    text = script.script_text(make_spec(executor=executor, run_dir="/a b/'q'/$(id)"))
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_no_argument_of_the_script_passes_through_a_launcher(make_spec: MakeSpec) -> None:
    for launcher in ("torchrun", "deepspeed", "direct"):
        argv = command.launcher_argv(make_spec(launcher=launcher), MEETING, "/logs/0")
        assert argv[-1] == str(command.RANK_WRAPPER)


def test_what_is_set_stays(make_spec: MakeSpec) -> None:
    facts = NodeFacts({"OMP_NUM_THREADS", "NCCL_SOCKET_IFNAME"}, "eth0", None)
    environment = command.node_environment(make_spec(env={}), MEETING, "0", facts)
    assert environment == {
        "GLOO_SOCKET_IFNAME": "eth0",
        "CLEANSFT_RUN_DIR": "/shared/runs/demo",
        "CLEANSFT_ATTEMPT": "0",
        "CLEANSFT_NODE_RANK": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "190",
    }


def test_the_users_variables_win(make_spec: MakeSpec) -> None:
    spec = make_spec(env={"OMP_NUM_THREADS": "7", "DS_ACCELERATOR": "xpu"})
    environment = command.node_environment(spec, MEETING, "0", NodeFacts((), "eth0", "cpu"))
    assert (environment["OMP_NUM_THREADS"], environment["DS_ACCELERATOR"]) == ("7", "xpu")


def test_threads_are_shared_by_ranks(make_spec: MakeSpec) -> None:
    for cpus, procs, threads in ((8, 2, "4"), (1, 4, "1"), (7, 2, "3")):
        spec = make_spec(cpus_per_task=cpus, procs_per_node=procs, env={})
        assert command.node_environment(spec, MEETING, "0", NodeFacts((), None, None))["OMP_NUM_THREADS"] == threads


def test_plan_can_be_pasted_into_a_shell(make_spec: MakeSpec) -> None:
    spec = make_spec(script_args=("a b", "$(id)", "'", "é", ""))
    last = script.plan_text(spec, ()).splitlines()[-1]
    assert shlex.split(last) == command.rank_argv(spec)


def test_deepspeed_hostfile(make_spec: MakeSpec) -> None:
    assert command.hostfile_text(make_spec(), MEETING) == "n1 slots=2\nn2 slots=2\n"
