"""`launch drill` on a real Slurm: all rows pass; with a setting that is broken on purpose it fails, and says which."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from faults.recording import Shows
from lab_client import Lab

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.soak


def drill(lab: Lab, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch", "drill", "--executor", "slurm", "--nodes", "2", "--name", "d", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state")}
    return lab.exec(command, cwd=folder, env=environment, timeout=900)


@pytest.mark.timeout(1000)
def test_a_drill_passes(lab: Lab, tmp_path: Path, shows: Shows) -> None:
    """Of the quick start's settings, with the chain that starts soonest."""
    done = drill(lab, tmp_path, "--chain", "singleton")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" passed in ") == 6
    pauses = [float(found) for found in re.findall(r"went on after ([\d.]+) s", done.stdout)]
    shows(
        101,
        code=done.returncode,
        says=done.stdout.splitlines()[-1],
        note=f"from the end of an attempt to the next at most {max(pauses):.1f} s",
    )


@pytest.mark.timeout(1000)
def test_a_broken_setting_fails_the_drill(lab: Lab, tmp_path: Path, shows: Shows) -> None:
    done = drill(lab, tmp_path, "--chain", "none")
    assert done.returncode == 1, done.stdout + done.stderr
    failed = re.findall(r"^(\w+) .*FAILED", done.stdout, re.MULTILINE)
    assert failed == ["stop", "kill", "hang", "save"], done.stdout
    said = next(line for line in done.stdout.splitlines() if "its attempts ended with" in line)
    shows(102, code=done.returncode, says=said, note=f"failed: {', '.join(failed)}")
