"""A run's exit code is its own: taking the interpreter down changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

BODY = """
import atexit, os, sys
from sft.process_end import leave
class Aborts:
    def __del__(self):
        os.abort()  # as a thread of a process group may, of which something is left
print("said", end="")
atexit.register(lambda: os.write(2, b"atexit "))
"""


def left(*words: str, stdout: int | IO[str] = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, *words]
    return subprocess.run(command, env=environment, text=True, stdout=stdout, stderr=subprocess.PIPE, check=False)


@pytest.mark.parametrize("code", [0, 10])
def test_what_is_left_of_torch_cannot_change_the_code(code: int) -> None:
    done = left("-c", BODY + f"import torch\nkept = Aborts()\nleave({code})")
    assert (done.returncode, done.stdout, done.stderr) == (code, "said", "atexit ")
    assert (
        left("-c", BODY + f"kept = Aborts()\nleave({code})").returncode == -6
    )  # no torch, no threads of its: the usual end


def test_the_usual_end_is_left_where_somebody_writes_at_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(BODY + "import torch\nleave(3)")
    done = left("-m", "cProfile", "-o", str(tmp_path / "profile"), str(script))
    assert done.stdout == "said", done.stderr
    assert (tmp_path / "profile").stat().st_size > 0


def test_output_that_cannot_be_written_is_told_as_ever() -> None:
    with Path("/dev/full").open("w") as full:
        done = left("-c", BODY + "import torch\nleave(0)", stdout=full)
    assert done.returncode == 120
    assert "No space left on device" in done.stderr
