"""Helpers of the launcher's tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.spec import JobSpec, Resources


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's list of runs, nor inherits another job's variables."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in os.environ:
        if name.startswith(("SLURM_", "SBATCH_")) or name in ("OMP_NUM_THREADS", "RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)


MakeSpec = Callable[..., JobSpec]


@pytest.fixture
def make_spec() -> MakeSpec:
    """JobSpec with defaults; resources by their own names."""

    def make(**changes: object) -> JobSpec:
        names = {"nodes", "procs_per_node", "gpus_per_node", "cpus_per_task", "mem_gb", "time_min", "partition"}
        resources = {"nodes": 2, "procs_per_node": 2, "cpus_per_task": 8} | {
            name: changes.pop(name) for name in list(changes) if name in names
        }
        fields = {
            "name": "demo",
            "run_dir": "/shared/runs/demo",
            "executor": "slurm",
            "launcher": "torchrun",
            "script": "/code/train.py",
            "script_args": ("--config", "/code/run.yaml", "it's $(id)\n", ""),
            "working_dir": "/home/me/my project",
            "python": "/venv/bin/python",
            "env": {"TOKEN": "a,b c"},
        } | changes
        return JobSpec(resources=Resources(**resources), **fields)  # type: ignore[arg-type]

    return make
