"""Nothing that happens inside a save or a resume loses what was saved before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faults.recording import Shows

ROOT = Path(__file__).resolve().parents[2]


def swept(folder: Path, every: int) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("crash_points.py")), str(folder), str(every)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_kill_at_a_sample_of_system_calls_loses_nothing(tmp_path: Path) -> None:
    found = swept(tmp_path, 17)
    assert found["wrong"] == []
    assert found["killed"] >= 15


@pytest.mark.soak
def test_a_kill_at_any_system_call_loses_nothing(tmp_path: Path, shows: Shows) -> None:
    found = swept(tmp_path, 1)
    print(found["calls"])
    assert found["wrong"] == []
    assert found["killed"] == sum(found["calls"].values()) >= 200
    shows(27, note=f"{found['killed']} points, nothing lost")
