"""What is asked of Slurm, against what it says it has; and what of an outer job must not leak."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import stand_in

from launch import cluster
from launch.__main__ import main
from launch.spec import JobSpec

SINFO = """\
cpu|cpu*|10|(null)|64|2-00:00:00
gpu|gpu|4|gpu:h100:8(S:0-1),nvme:1|96+|infinite
gpu|gpu|2|gpu:4|48|infinite
"""


def test_partitions() -> None:
    partitions = cluster.parse_partitions(SINFO)
    assert partitions["cpu"] == cluster.Partition("cpu", True, 10, 0, 64, 2880)
    assert partitions["gpu"] == cluster.Partition("gpu", False, 6, 8, 96, None)


MIXED = """\
mixed|mixed*|3|gpu:4|32|infinite
mixed|mixed*|1|gpu:4|96|infinite
small|small|2|(null)|8|1:00:00
"""
"""Nodes of two kinds as `sinfo -e` tells them. Without it, they are one line: `4|gpu:4|32+`."""


def test_partitions_of_unlike_nodes_are_asked_for_node_by_kind(
    make_spec: Callable[..., JobSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grouped = "echo 'mixed|mixed*|4|gpu:4|32+|infinite'"
    stand_in(tmp_path / "bin", "sinfo", f"case \" $* \" in *' -e '*) echo '{MIXED.strip()}';; *) {grouped};; esac")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    partitions = cluster.read_partitions()
    assert (partitions["mixed"].num_nodes, partitions["mixed"].num_cpus) == (4, 96)
    assert not list(cluster.request_problems(make_spec(cpus_per_task=96), partitions))


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        ({"partition": "small,mixed"}, []),
        ({"partition": "small,mixed", "nodes": 4, "cpus_per_task": 96}, []),  # one that can is enough
        ({"partition": "small,mixed", "nodes": 5}, ["nodes", "nodes"]),
        ({"partition": "small,mixd,big"}, ["partition", "partition"]),
    ],
)
def test_each_of_several_partitions(
    make_spec: Callable[..., JobSpec], request_: dict[str, object], fields: list[str]
) -> None:
    problems = list(cluster.request_problems(make_spec(**request_), cluster.parse_partitions(MIXED)))
    assert [problem.field for problem in problems] == fields
    if fields[:1] == ["partition"]:
        assert "Did you mean 'mixed'?" in str(problems[0])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, None),
        ({"partition": "gpu", "gpus_per_node": 8, "time_min": 10**6}, None),
        ({"partition": "gpus"}, "a partition of this cluster. Known: cpu, gpu. Did you mean 'gpu'?"),
        ({"partition": "xyz"}, "partition is 'xyz'; it must be a partition of this cluster. Known: cpu, gpu."),
        ({"gpus_per_node": 1}, "be at most 0, the GPUs of a node in partition 'cpu'. These have: gpu."),
        ({"partition": "gpu", "gpus_per_node": 9}, "No partition has as many."),
        ({"nodes": 11}, "nodes is 11; it must be at most 10"),
        ({"cpus_per_task": 65}, "cpus_per_task is 65; it must be at most 64"),
        ({"time_min": 2881}, "time_min is 2881; it must be at most 2880, the limit of partition 'cpu'."),
    ],
)  # fmt: skip
def test_requests(make_spec: Callable[..., JobSpec], request_: dict[str, object], message: str | None) -> None:
    problems = list(cluster.request_problems(make_spec(**request_), cluster.parse_partitions(SINFO)))
    assert (message is None) == (not problems)
    if message is not None:
        assert message in str(problems[0])


@pytest.mark.parametrize(
    ("exclude", "unknown"),
    [("zz[8-9],n2", "Unknown: zz8, zz9."), ("n[2-3]", None), ("/shared/avoid.txt", None), (None, None)],
)
def test_nodes_to_avoid_must_be_of_this_cluster(
    make_spec: Callable[..., JobSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    exclude: str | None,
    unknown: str | None,
) -> None:
    says = "echo 'Node zz8 not found'; echo 'Node zz9 not found'; echo 'NodeName=n2 Arch=x86_64'; exit 1"
    stand_in(tmp_path / "bin", "scontrol", f"case \"$*\" in *zz*) {says};; *n*) echo 'NodeName=n2'; exit 0;; esac")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    spec = make_spec()
    problems = list(cluster.exclude_problems(replace(spec, resources=replace(spec.resources, exclude=exclude))))
    assert [problem.remedy for problem in problems] == ([unknown] if unknown else [])
    if problems:
        assert str(problems[0]).startswith(f"exclude is {exclude!r}; it must name nodes of this cluster.")


def test_nodes_to_avoid_are_looked_at_before_anything_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in {
        "sinfo": "echo 'cpu|cpu*|2|(null)|8|infinite'", "sbatch": "exit 1", "squeue": "exit 1",
        "scontrol": "echo 'Node zz1 not found'; exit 1",
    }.items():  # fmt: skip
        stand_in(tmp_path / "bin", name, text)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "probe.py").write_text("")
    assert main(["submit", "--executor", "slurm", "--script", "probe.py", "--exclude", "zz1"]) == 2
    assert "--exclude: exclude is 'zz1'; it must name nodes of this cluster. Unknown: zz1." in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_cpus_that_follow_from_gpus_are_not_told_as_well(make_spec: Callable[..., JobSpec]) -> None:
    spec = make_spec(gpus_per_node=99, procs_per_node=99, cpus_per_task=99)
    problems = cluster.request_problems(spec, cluster.parse_partitions(SINFO))
    assert [problem.field for problem in problems] == ["gpus_per_node"]
    spec = make_spec(gpus_per_node=99, procs_per_node=99, cpus_per_task=100)
    problems = cluster.request_problems(spec, cluster.parse_partitions(SINFO))
    assert [problem.field for problem in problems] == ["gpus_per_node", "cpus_per_task"]


def test_nothing_is_said_of_a_cluster_that_is_not_known(make_spec: Callable[..., JobSpec]) -> None:
    assert not list(cluster.request_problems(make_spec(nodes=1000), {}))


def test_outer_job_does_not_leak() -> None:
    leaks = ["SLURM_NTASKS", "SBATCH_PARTITION", "SRUN_DEBUG", "RANK", "MASTER_PORT", "PMIX_RANK", "SUBMITIT_EXECUTOR"]
    leaks += ["CLEANSFT_RUN_DIR", "TORCHELASTIC_RUN_ID"]
    kept = ["SLURM_CONF", "PATH", "RANKING", "HF_TOKEN", "SBATCH_RESERVATION", "SBATCH_WCKEY"]
    environ = dict.fromkeys([*leaks, *kept], "1")
    assert list(cluster.without_outer_job(environ)) == kept
    assert cluster.leaking(environ) == sorted(leaks)
