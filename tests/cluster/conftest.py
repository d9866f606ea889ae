"""A real Slurm cluster for the tests in this folder: one that runs already, or one started for the session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_client import Lab, run_lab
from lab_launcher import Launcher

FOLDER = Path(__file__).parent


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The lab that runs, or a new one, which is taken down afterwards."""
    check = run_lab("check")
    if check.returncode != 0:
        pytest.skip(f"no Slurm lab here: {check.stdout.strip() or check.stderr.strip()}")
    directory = Path(os.environ.get("CLEANSFT_LAB_DIR") or "/run/cleansft-lab")
    was_there = (directory / "state.json").exists()
    started = run_lab("up", "--dir", str(directory))
    if started.returncode != 0:
        pytest.fail(f"the Slurm lab doesn't start:\n{started.stdout}{started.stderr}")
    started_here = not was_there and "already up" not in started.stdout
    yield Lab(directory)
    if started_here:
        ended = run_lab("down", "--dir", str(directory))
        assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.fixture
def launch(lab: Lab, tmp_path: Path) -> Iterator[Launcher]:
    """The launcher without torch, in a folder of its own; what it leaves running is cancelled."""
    launcher = Launcher(lab, tmp_path)
    yield launcher
    launcher.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.cluster)
