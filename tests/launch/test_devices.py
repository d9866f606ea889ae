"""The GPUs of this machine, from what its kernel shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.devices import has_gpu, num_gpus
from launch.local import request_problems
from launch.spec import JobSpec


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
    ("wanted", "there", "is_refused"), [(0, 0, False), (1, 0, True), (2, 2, False), (3, None, False)]
)
def test_a_local_run_asks_for_no_more_gpus_than_there_are(
    make_spec: Callable[..., JobSpec], wanted: int, there: int | None, is_refused: bool
) -> None:
    problems = list(request_problems(make_spec(executor="local", gpus_per_node=wanted), there))
    assert bool(problems) == is_refused
    if problems:
        assert str(problems[0]).startswith(
            "gpus_per_node is 1; it must be at most 0, the GPUs that this machine shows."
        )
