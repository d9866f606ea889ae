"""A secret in the environment and in an env file is found nowhere afterwards; nothing made is open to others."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.recording import Shows
from lab_client import Lab

from launch.spec import ROOT

IN_ENVIRONMENT = "hf_LAUNCHCANARYaaaaaaaaaaaaaaaaaaaaaaaaaa"
IN_FILE = "0f0e0d0c0b0a09080706050403020100deadbeef"
SCRIPT = """
import os, runpy, sys
assert os.environ["HF_TOKEN"].startswith("hf_LAUNCHCANARY") and os.environ["WANDB_API_KEY"].startswith("0f0e")
sys.path.insert(0, os.environ["TRAINER_ROOT"])
sys.argv[0] = os.path.join(os.environ["TRAINER_ROOT"], "sft", "train.py")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _holds(path: Path) -> list[str]:
    data = path.read_bytes()
    return [secret for secret in (IN_ENVIRONMENT, IN_FILE) if secret.encode() in data]


def _command_lines() -> Iterator[bytes]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield (entry / "cmdline").read_bytes()
            except OSError:
                continue


@pytest.mark.soak
def test_no_secret_is_written_anywhere(lab: Lab, tmp_path: Path, shows: Shows) -> None:
    """Our trainer on two nodes, with TensorBoard, under umask 022; `launch submit`'s children too are looked at."""
    (tmp_path / "train.py").write_text(SCRIPT)
    env_file = tmp_path / ".env"
    env_file.write_text(f"WANDB_API_KEY={IN_FILE}\n")
    env_file.chmod(0o600)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "HF_TOKEN": IN_ENVIRONMENT,
    }
    words = ["submit", "--nodes", "2", "--name", "x", "--script", "train.py", "--env-file", ".env", "--wait"]
    words += ["--chain", "requeue", "--env", f"TRAINER_ROOT={ROOT}", "--"]
    words += ["--config", str(ROOT / "sft/quickstart/run.yaml"), "--output_dir", str(tmp_path / "runs/x")]
    words += ["--max_steps", "2", "--save_steps", "1"]
    command = [sys.executable, "-m", "launch", *words]
    process = lab.popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, umask=0o022
    )
    seen: set[bytes] = set()
    while process.poll() is None:
        seen |= set(_command_lines())
    output = process.communicate()[0]
    assert process.returncode == 0, output
    run_dir = tmp_path / "runs" / "x"
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert any("tfevents" in path.name for path in files)
    assert any(path.suffix == ".pkl" for path in files)
    assert {path.name: _holds(path) for path in files if _holds(path)} == {}
    job_id = next(line.split()[1] for line in output.splitlines() if line.startswith("job "))
    shown = output + lab.exec(["scontrol", "--detail", "show", "job", job_id]).stdout
    shown += lab.exec(["scontrol", "write", "batch_script", job_id, "-"]).stdout
    shown += lab.exec(["sacct", "-j", job_id, "-P", "-o", "ALL"]).stdout
    for secret in (IN_ENVIRONMENT, IN_FILE):
        assert secret not in shown
        assert not [line for line in seen if secret.encode() in line]
    made = [run_dir, *(path for path in run_dir.rglob("*") if not path.is_symlink())]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in made}
    assert {path: oct(mode) for path, mode in modes.items() if mode & (0o077 if path.is_dir() else 0o177)} == {}
    shows(103, code=process.returncode, note=f"{len(files)} files and {len(seen)} command lines looked at")
