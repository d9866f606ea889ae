"""`launcher: direct`: the ranks of a node without torchrun, as real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.direct import rank_variables
from launch.spec import ROOT

SCRIPT = """\
import json, os, signal, sys, time
from pathlib import Path

folder, rank = Path(os.environ["FOLDER"]), os.environ["RANK"]
if "torch" in sys.modules:
    sys.exit(99)
signal.signal(signal.SIGTERM, lambda *_: (folder.joinpath(f"told-{rank}").touch(), sys.exit(143)))
folder.joinpath(f"seen-{rank}.tmp").write_text(json.dumps(dict(os.environ)))
folder.joinpath(f"seen-{rank}.tmp").rename(folder / f"seen-{rank}")
mode = os.environ.get("MODE", "")
if mode and rank == "1" and mode != "hang":
    while len(list(folder.glob("seen-?"))) < 2:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL) if mode == "kill" else sys.exit(int(mode))
if mode:
    time.sleep(60)
"""


def words(folder: Path) -> list[str]:
    (folder / "script.py").write_text(SCRIPT)
    numbers = ["--nnodes=2", "--node-rank=0", "--nproc-per-node=2", "--master-addr=10.0.0.1", "--master-port=1234"]
    return [sys.executable, str(ROOT / "launch" / "direct.py"), *numbers, str(folder / "script.py")]


def environment(folder: Path, mode: str = "") -> dict[str, str]:
    return os.environ | {"FOLDER": str(folder), "MODE": mode}


def test_each_rank_knows_its_place(tmp_path: Path) -> None:
    assert subprocess.run(words(tmp_path), env=environment(tmp_path), timeout=60, check=False).returncode == 0
    for rank in (0, 1):
        seen = json.loads((tmp_path / f"seen-{rank}").read_text())
        expected = rank_variables(0, rank, nodes=2, procs_per_node=2, address="10.0.0.1", port="1234")
        assert expected.items() <= seen.items()
        assert (seen["RANK"], seen["WORLD_SIZE"]) == (str(rank), "4")


def test_ranks_are_counted_over_nodes() -> None:
    found = [
        rank_variables(node, local, nodes=3, procs_per_node=2, address="a", port="1")["RANK"]
        for node in range(3)
        for local in range(2)
    ]
    assert found == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize(("mode", "code"), [("42", 42), ("kill", 137)])
def test_one_failure_ends_the_others_and_is_the_code(tmp_path: Path, mode: str, code: int) -> None:
    done = subprocess.run(words(tmp_path), env=environment(tmp_path, mode), timeout=50, check=False)
    assert done.returncode == code
    assert (tmp_path / "told-0").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_rank_outlives_it(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(words(tmp_path), env=environment(tmp_path, "hang")) as launcher:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("seen-?"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        assert len(children) == 2
        launcher.send_signal(number)
        assert launcher.wait(timeout=60) == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    while any(_lives(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_lives(child) for child in children)
    assert len(list(tmp_path.glob("told-*"))) == (2 if number == signal.SIGTERM else 0)


def _lives(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
