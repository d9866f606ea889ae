"""The GPUs of this machine, from what its kernel shows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from made_runs import made_run, stand_in

from launch.devices import has_gpu, node_devices, num_gpus, request_problems
from launch.spec import ROOT, JobSpec


@pytest.mark.parametrize(
    ("files", "visible", "expected"),
    [
        ((), None, 0),
        (("dev/nvidiactl", "dev/nvidia-uvm"), None, 0),
        (("dev/nvidia0", "dev/nvidia1", "dev/nvidiactl", "dev/nvidia-uvm"), None, 2),
        (("dev/nvidia0", "dev/nvidia1"), "1", 1),
        (("dev/nvidia0", "dev/nvidia1"), "", 0),
        (("proc/driver/nvidia/gpus/0000:01:00.0/information",), None, 1),
        (("dev/kfd",), None, None),
        (("dev/dxg",), None, None),
    ],
)
def test_gpus_are_counted(tmp_path: Path, files: tuple[str, ...], visible: str | None, expected: int | None) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert num_gpus(environ, tmp_path) == expected
    assert has_gpu(environ, tmp_path) == (expected != 0)


def test_amd_gpus_are_counted_without_the_cpus_of_the_topology(tmp_path: Path) -> None:
    for node, number in enumerate((0, 4660, 22136)):
        folder = tmp_path / "sys/class/kfd/kfd/topology/nodes" / str(node)
        folder.mkdir(parents=True)
        (folder / "gpu_id").write_text(f"{number}\n")
    assert num_gpus({}, tmp_path) == 2


@pytest.mark.parametrize(
    ("nodes", "wanted", "there", "refusal"),
    [
        (1, 0, 0, None),
        (1, 1, 0, "gpus_per_node is 1; it must be at most 0, the GPUs that this machine shows."),
        (1, 2, 2, None),
        (2, 1, 2, None),
        (2, 2, 2, "gpus_per_node is 2; it must be at most 1, as 2 nodes share the 2 of this machine."),
        (2, 2, 4, None),
        (1, 3, None, None),
    ],
)
def test_a_local_run_asks_for_no_more_gpus_than_there_are(
    make_spec: Callable[..., JobSpec], nodes: int, wanted: int, there: int | None, refusal: str | None
) -> None:
    problems = list(request_problems(make_spec(executor="local", nodes=nodes, gpus_per_node=wanted), there))
    assert bool(problems) == (refusal is not None)
    if refusal is not None:
        assert str(problems[0]).startswith(refusal)


@pytest.mark.parametrize(
    ("nodes", "gpus", "visible", "expected"),
    [
        (2, 2, None, ["0,1", "2,3"]),
        (2, 2, "4,5,6,7", ["4,5", "6,7"]),
        (2, 1, "GPU-6a1,MIG-77b,3", ["GPU-6a1", "MIG-77b"]),
        (1, 2, "4,5,6,7", [None]),  # as it is
        (2, 0, "4,5", [None, None]),
    ],
)
def test_nodes_on_one_machine_have_gpus_of_their_own(
    make_spec: Callable[..., JobSpec], nodes: int, gpus: int, visible: str | None, expected: list[str | None]
) -> None:
    spec = make_spec(executor="local", nodes=nodes, gpus_per_node=gpus)
    assert [node_devices(spec, node, visible).get("CUDA_VISIBLE_DEVICES") for node in range(nodes)] == expected


def test_the_same_gpus_for_all_nodes_are_refused(make_spec: Callable[..., JobSpec]) -> None:
    spec = make_spec(executor="local", gpus_per_node=1, env={"CUDA_VISIBLE_DEVICES": "0,1"})
    (problem,) = request_problems(spec, 2)
    assert str(problem).startswith("env.CUDA_VISIBLE_DEVICES is '0,1'; it must not be given where 2 nodes share")
    assert not list(request_problems(make_spec(executor="local", nodes=1, gpus_per_node=1, env=spec.env), 2))


def test_each_agent_is_started_with_its_own_gpus(tmp_path: Path, make_spec: Callable[..., JobSpec]) -> None:
    agent = stand_in(tmp_path / "bin", "python", f'echo "$SLURM_NODEID $CUDA_VISIBLE_DEVICES" >> {tmp_path}/seen')
    run = made_run(tmp_path / "x", make_spec, executor="local", gpus_per_node=2, python=str(agent))
    subprocess.run(
        [sys.executable, "-m", "launch.local", str(run.path)], cwd=ROOT, timeout=120, check=False,
        env=os.environ | {"CLEANSFT_JOB_ID": "local-1", "CUDA_VISIBLE_DEVICES": "3,GPU-1,5,GPU-2"},
    )  # fmt: skip
    assert sorted((tmp_path / "seen").read_text().splitlines()) == ["0 3,GPU-1", "1 5,GPU-2"]
