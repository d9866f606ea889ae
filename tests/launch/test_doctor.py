"""What is wrong with which node, from answers as nodes give them; and nodes on this machine that give real ones."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_runs import stand_in

from launch import doctor, node_facts, node_report, script
from launch.diagnosis import Finding, diagnose, wrong_nodes
from launch.examination import MAX_ROUNDS, Answers, rounds_of_pairs
from launch.node_group import NodeGroup
from launch.node_probe import MARK, MAX_LINE, frames
from launch.spec import ROOT, JobSpec

FACTS = {
    "kernel": "6.1", "python": "3.11.7", "packages": {"torch": "2.13.0"}, "mtu": 1500, "nonce": "same", "taken": {},
    "candidates": [20001, 20002], "spare": [30001], "gpus": [], "cpus": 8, "load": 0.5, "free_memory_gib": 10.0,
    "locked_memory_limited": False,
}  # fmt: skip
GPU = {
    "name": "H200",
    "driver": "550",
    "memory_mib": "143771",
    "used_mib": "4",
    "ecc_errors": "0",
    "slowdown": "Not Active",
}


def answers_of(num_nodes: int) -> Answers:
    """Nodes n1, n2, … of which nothing is wrong."""
    hosts = [f"n{node + 1}" for node in range(num_nodes)]
    addresses = {host: f"10.0.0.{node + 1}" for node, host in enumerate(hosts)}
    answers = Answers(hosts, nonce="same", wanted_ports=(29500,))
    for node, host in enumerate(hosts):
        own = addresses[host]
        facts = {
            "host": host,
            "address": own,
            "interfaces": {"lo": "127.0.0.1", "eth0": own},
            "resolved": dict(addresses),
        }
        answers.began[node] = host
        answers.skew_s[node] = (0.001 * node, 0.001)
        answers.facts[node] = copy.deepcopy(FACTS) | facts
        answers.torch[node] = {"torch": "2.13.0", "cuda": False}
        answers.rates[node] = {"device": "cpu", "flops_per_s": [1e11 * (1 + node % 2 / 20)]}
    pairs = [pair for pairs in rounds_of_pairs(range(num_nodes)) for pair in pairs]
    answers.pairs = {pair: {"seconds": 0.01} for pair in pairs}
    answers.together = {"gloo": {node: {"seconds": 0.05} for node in range(num_nodes)}}
    return answers


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 8])
def test_nothing_is_said_of_nodes_that_are_well(num_nodes: int) -> None:
    answers = answers_of(num_nodes)
    assert diagnose(answers) == []
    assert "nothing is wrong" in node_report.report_text(answers, [])


def silent(answers: Answers) -> None:
    for known in (answers.began, answers.skew_s, answers.facts, answers.torch, answers.rates):
        del known[1]
    answers.said.append("srun: error: Task launch for StepId=1.0 failed on node n2: Communication connection failure")


def clock(answers: Answers) -> None:
    answers.skew_s[1] = (-42.0, 0.01)


def no_shared_disk(answers: Answers) -> None:
    answers.facts[1]["nonce"] = ""


def wrong_hosts(answers: Answers) -> None:
    answers.facts[1]["resolved"]["n3"] = "10.0.0.99"


def loopback_hosts(answers: Answers) -> None:
    answers.facts[1]["resolved"]["n1"] = "127.0.1.1"


def taken_port(answers: Answers) -> None:
    answers.facts[1]["taken"]["29500"] = "pid 7 (python)"


def all_ports(answers: Answers) -> None:
    answers.facts[1]["taken"] = {"20001": "x", "20002": "y"}


def other_torch(answers: Answers) -> None:
    answers.facts[1]["packages"]["torch"] = "2.12.0"


def slow_cpu(answers: Answers) -> None:
    answers.rates[1]["flops_per_s"] = [0.5e11]


def throttled(answers: Answers) -> None:
    answers.rates[1] |= {"flops_per_s": [0.2e11], "throttled_share": 0.8}


def torch_fails(answers: Answers) -> None:
    answers.torch[1] = {"error": "sft/node_check.py ended with code 1: no module named torch"}


def cut_off(answers: Answers) -> None:
    for pair in answers.pairs:
        if 1 in pair:
            answers.pairs[pair] = {"error": "timed out"}
    answers.together = {}


def memory_errors(answers: Answers) -> None:
    for node, facts in answers.facts.items():
        facts["gpus"] = [dict(GPU), dict(GPU, ecc_errors="3" if node == 1 else "0")]
        answers.torch[node]["cuda"] = True


def nvidia_smi_fails(answers: Answers) -> None:
    for node, facts in answers.facts.items():
        facts["gpus"] = (
            [{"error": "nvidia-smi says: Unable to determine the device handle"}] if node == 1 else [dict(GPU)]
        )
        answers.torch[node]["cuda"] = True


def fewer_gpus(answers: Answers) -> None:
    for node, facts in answers.facts.items():
        facts["gpus"] = [dict(GPU)] * (7 if node == 1 else 8)
        answers.torch[node]["cuda"] = True


@pytest.mark.parametrize(
    ("fault", "what", "remedy"),
    [
        (silent, "does not answer", "failed on node n2"),
        (clock, "its clock is 42.0 s behind", "chrony"),
        (no_shared_disk, "does not see a file", "launch.runs_dir"),
        (wrong_hosts, "takes n3 for 10.0.0.99", "n3 is 10.0.0.3"),
        (loopback_hosts, "takes n1 for 127.0.1.1", "n1 is 10.0.0.1"),
        (taken_port, "port 29500 is taken by pid 7 (python)", "another port"),
        (all_ports, "all ports that the launcher tries are taken", ""),
        (other_torch, "has torch 2.12.0; n1, n3 has 2.13.0", "the same"),
        (slow_cpu, "its CPU is slow: 0.05 TFLOP/s", "CPU quota"),
        (throttled, "its CPU is slow: a quota held it up for 80% of the time", "cgroup"),
        (torch_fails, "torch does not start", "environment"),
        (cut_off, "reaches none of the 2 nodes", "firewall"),
        (memory_errors, "GPU 1 had 3 uncorrectable memory errors", "Drain"),
        (nvidia_smi_fails, "Unable to determine the device handle", "Drain"),
        (fewer_gpus, "has GPUs: 7; n1, n3 has 8", ""),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_fault_is_named_with_its_node(fault: Any, what: str, remedy: str) -> None:
    answers = answers_of(3)
    fault(answers)
    errors = [finding for finding in diagnose(answers) if finding.verdict == "error"]
    assert [finding.nodes for finding in errors] == [(1,)], errors
    assert what in errors[0].what
    assert remedy in errors[0].remedy
    text = node_report.report_text(answers, errors)
    assert f"error    n2 {errors[0].what}" in text
    assert node_report.report_facts(answers, errors)["wrong_nodes"] == ["n2"]


def test_a_cut_link_is_told_by_its_two_ends() -> None:
    answers = answers_of(4)
    answers.pairs[0, 2] = {"error": "timed out"}
    (finding,) = [finding for finding in diagnose(answers) if finding.verdict == "error"]
    assert finding.nodes == (0, 2)
    assert "n1 and n3 do not reach each other (timed out)" in node_report.report_text(answers, [finding])
    two = answers_of(2)
    two.pairs[0, 1] = {"error": "timed out"}
    assert [finding.nodes for finding in diagnose(two)] == [(0, 1)]


def test_a_slow_link_and_a_busy_port_are_warnings() -> None:
    answers = answers_of(4)
    for pair in answers.pairs:
        if 3 in pair:
            answers.pairs[pair] = {"seconds": 0.05}
    answers.facts[0]["taken"] = {"20001": "pid 7 (python)"}
    found = diagnose(answers)
    assert {(finding.nodes, finding.verdict) for finding in found} == {((0,), "warning"), ((3,), "warning")}
    assert wrong_nodes(found) == []


def test_what_all_fail_at_together_is_laid_on_none() -> None:
    answers = answers_of(3)
    answers.together = {"gloo": {node: {"error": "timed out"} for node in range(3)}}
    (finding,) = diagnose(answers)
    assert (finding.nodes, finding.verdict) == ((), "error")
    assert wrong_nodes([finding]) == []
    assert "error    all nodes together: the all-reduce by gloo failed (timed out)" in node_report.report_text(
        answers, [finding]
    )


def test_one_clock_that_is_off_is_told_whoever_asks() -> None:
    answers = answers_of(3)
    answers.skew_s = dict.fromkeys(range(3), (30.0, 0.01))  # that of the machine that asks is wrong
    assert diagnose(answers) == []


def test_of_broken_links_the_fewest_nodes_are_given_up() -> None:
    links = [Finding(pair, "", "error", "") for pair in ((0, 2), (1, 2), (2, 3))]
    assert wrong_nodes(links) == [2]
    assert wrong_nodes([Finding((0, 1), "", "error", "")]) == [1]
    assert wrong_nodes([Finding((0, 1), "", "error", ""), Finding((0,), "", "error", "")]) == [0]


@pytest.mark.parametrize("num_nodes", [2, 3, 4, 7, 8, 9, 20])
def test_every_node_meets_others_once_per_round(num_nodes: int) -> None:
    rounds = list(rounds_of_pairs(range(num_nodes)))
    for pairs in rounds:
        met = [node for pair in pairs for node in pair]
        assert len(met) == len(set(met)) >= num_nodes - 1
    pairs = [pair for pairs in rounds for pair in pairs]
    assert len(pairs) == len(set(pairs))
    assert len(rounds) <= MAX_ROUNDS
    if num_nodes <= 8:
        assert len(pairs) == num_nodes * (num_nodes - 1) // 2


def test_long_answers_are_cut_and_joined(tmp_path: Path) -> None:
    message = {"hello": "x" * 5000, "y": ["é"] * 100}
    lines = frames(0, message)
    assert all(len(line) < MAX_LINE + 40 for line in lines)
    (tmp_path / "text").write_text(
        "\n".join(["srun: note", *lines[:3], f"{MARK} 1 end {json.dumps({'hello': 'b'})}", *lines[3:]])
    )
    group = NodeGroup([(["cat", str(tmp_path / "text")], os.environ)], 2)
    assert group.hello(10.0) == {0: message["hello"], 1: "b"}
    group.close()
    assert group.said == ["srun: note"]


def test_a_node_that_does_not_answer_is_told_apart() -> None:
    group = NodeGroup([(["sleep", "60"], os.environ)], 1)
    assert group.hello(0.1) == {}
    assert "no answer" in group.ask("clock", {0: {}}, 0.1)[0]["error"]
    group.close(0.1)


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_who_holds_a_port(busy_port: int) -> None:
    found = node_facts.taken([busy_port])
    assert found[str(busy_port)].startswith(f"pid {os.getpid()} (")
    facts = node_facts.facts([], 0, "/no/file", "7.0", [busy_port])
    assert facts["taken"].keys() >= {str(busy_port)}
    assert facts["nonce"] == ""
    assert not set(facts["spare"]) & set(map(int, facts["taken"]))
    assert facts["packages"]["torch"]


def test_gpus_as_nvidia_smi_tells_them() -> None:
    lines = ("H200, 550.1, 143771, 4, 0, Not Active, No, 33", "T4, 550.1, 15360, 4, [N/A], Not Active, [N/A], 40")
    first, second = node_facts.parse_gpus("\n".join(lines))
    assert (first["name"], first["ecc_errors"], first["remap_failed"]) == ("H200", "0", "No")
    assert "ecc_errors" not in second


def test_the_allocation_asks_for_what_the_job_would(make_spec: Any) -> None:
    spec: JobSpec = make_spec(nodes=4, gpus_per_node=8, cpus_per_task=64, time_min=600, partition="gpu")
    words = doctor.salloc_words(spec, ["python", "-m", "launch.doctor"])
    assert words[0] == "salloc"
    assert {"--nodes=4", "--gpus-per-node=8", "--cpus-per-task=64", "--time=15", "--partition=gpu"} <= set(words)
    assert words[-3:] == ["python", "-m", "launch.doctor"]
    with_gres = replace(spec, resources=replace(spec.resources, gres="gpu:h100:8", time_min=5))
    words = doctor.salloc_words(with_gres, [])
    assert {"--gres=gpu:h100:8", "--time=5"} <= set(words)
    assert not any(word.startswith("--gpus-per-node") for word in words)
    asked = {line.removeprefix("#SBATCH ") for line in script.script_text(with_gres).splitlines() if "SBATCH" in line}
    assert {word for word in words if word.startswith("--")} - asked == {"--job-name=doctor"}


def test_what_runs_in_the_allocation_has_the_job_s_modules_and_setup(make_spec: Any, tmp_path: Path) -> None:
    spec: JobSpec = make_spec(modules=("cuda/12.6",), setup=("export LIMIT=7", "module() { echo loaded again; }"))
    words = doctor.salloc_words(spec, ["bash", "-c", 'echo "$LIMIT $0 $1" $MODULES', "a b", "c"])
    inner = words[words.index("bash") :]
    (tmp_path / "bashrc").write_text('module() { export MODULES="$*"; }\n')
    environment = {"PATH": "/usr/bin:/bin", "BASH_ENV": str(tmp_path / "bashrc")}
    done = subprocess.run(inner, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "7 a b c load cuda/12.6\n"


@pytest.mark.parametrize(
    ("inherited", "env", "interface", "seen"),
    [
        ({}, {"NCCL_IB_HCA": "mlx5"}, "ib0", ("ib0", "ib0", "mlx5")),
        ({}, {"NCCL_SOCKET_IFNAME": "eth7"}, "ib0", ("ib0", "eth7", None)),
        ({"GLOO_SOCKET_IFNAME": "eth1"}, {}, "ib0", ("eth1", "ib0", None)),
        ({}, {}, None, ("lo", "lo", None)),
    ],
)
def test_a_probe_measures_with_the_job_s_variables(
    make_spec: Any, tmp_path: Path, inherited: dict[str, str], env: dict[str, str], interface: str | None, seen: Any
) -> None:
    """As the agent does: what is inherited wins over the interface, `env` over both."""
    child = stand_in(tmp_path / "bin", "python", f"env > {tmp_path}/env")
    run = "runpy.run_module('launch.node_probe', run_name='__main__')"
    program = f"import runpy, sys; sys.executable = {str(child)!r}; {run}"
    asked = {"hosts": [], "nonce": "/no/file", "rendezvous_id": "7.0", "ports": []}
    requests = [{"id": 1, "do": "facts", "nodes": {"0": asked}}, {"id": 2, "do": "ready", "nodes": {"0": {}}}]
    lines = "".join(json.dumps(request) + "\n" for request in (*requests, {"do": "end", "nodes": {}}))
    spec = make_spec(env=env, interface=interface)
    environment = {**os.environ, **inherited, **doctor.probe_variables(spec), "SLURM_NODEID": "0"}
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT, env=environment, input=lines, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    told = dict(line.partition("=")[::2] for line in (tmp_path / "env").read_text().splitlines())
    assert tuple(map(told.get, ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "NCCL_IB_HCA"))) == seen


def test_a_job_of_one_node_has_no_interface_towards_others(make_spec: Any) -> None:
    (variable,) = doctor.probe_variables(make_spec(nodes=1, interface="ib0")).values()
    assert json.loads(variable)["interface"] is None


@pytest.mark.ranks
def test_two_nodes_on_this_machine(tmp_path: Path, busy_port: int) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [
        "doctor",
        "--executor",
        "local",
        "--nodes",
        "2",
        "--cpus-per-task",
        "1",
        "--port",
        str(busy_port),
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "launch", *words],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert done.returncode == 1, done.stderr
    told = [(finding["nodes"], finding["what"]) for finding in found["findings"] if finding["verdict"] == "error"]
    ports = [what for _, what in told if f"port {busy_port} is taken by pid {os.getpid()}" in what]
    assert len(ports) == 2  # both nodes are this machine
    assert all(node["flops_per_s"][0] > 1e8 for node in found["nodes"])
    assert found["pairs"][0]["seconds"] < 5
    assert found["together"]["gloo"] > 0
    assert not list((tmp_path / "runs").iterdir())  # nothing is left


@pytest.mark.ranks
def test_a_cpu_quota_is_seen_by_the_kernel_s_own_count() -> None:
    folder = Path(f"/sys/fs/cgroup/cpu/cleansft-test-{os.getpid()}")
    try:
        folder.mkdir()
        (folder / "cpu.cfs_quota_us").write_text("5000")
    except OSError as error:
        pytest.skip(f"no CPU quota can be set here: {error}")
    program = "\n".join(
        [
            "import json, os, sys",
            "from sft.node_check import measured_rates",  # before the quota: torch is loaded at full speed
            "request = {'seconds': 0.2, 'windows': 2}",
            "free = measured_rates(request)",
            f"open('{folder}/cgroup.procs', 'w').write(str(os.getpid()))",
            "print(json.dumps([free, measured_rates(request)]))",
        ]
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    finally:
        folder.rmdir()
    assert done.returncode == 0, done.stderr
    free, held_up = json.loads(done.stdout)
    assert free["throttled_share"] < 0.1
    assert held_up["throttled_share"] > 0.4
