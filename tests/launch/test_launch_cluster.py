"""What is asked of Slurm, against what it says it has; and what of an outer job must not leak."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from launch import cluster
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
    kept = ["SLURM_CONF", "PATH", "RANKING", "HF_TOKEN"]
    environ = dict.fromkeys([*leaks, *kept], "1")
    assert list(cluster.without_outer_job(environ)) == kept
    assert cluster.leaking(environ) == sorted(leaks)
