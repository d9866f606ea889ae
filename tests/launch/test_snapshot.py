"""A job that runs from a copy of the code: what is edited after the submission changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_identity import git

from launch import script, snapshot
from launch.errors import LaunchError
from launch.spec import ROOT, JobSpec

TRAIN = """\
import os, time
while not os.path.exists(os.environ["GO"]):
    time.sleep(0.05)
import sibling
print("value", sibling.VALUE, os.environ["PYTHONPATH"], flush=True)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    (folder / "train.py").write_text(TRAIN)
    (folder / "sibling.py").write_text("VALUE = 'committed'\n")
    (folder / "gone.py").write_text("")
    (folder / ".gitignore").write_text("data/\nsecret.txt\n")
    (folder / "secret.txt").write_text("x")
    (folder / "data" / "train.jsonl").write_text("{}\n")
    (folder / "run.yaml").write_text("train_file: data/train.jsonl\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    (folder / "sibling.py").write_text("VALUE = 'as submitted'\n")
    (folder / "new.py").write_text("")
    (folder / "gone.py").unlink()
    return folder


@pytest.fixture
def spec(make_spec: Callable[..., JobSpec], project: Path) -> JobSpec:
    config = str(project / "run.yaml")
    words = ("--config", config, "--seed", "1")
    run_dir = str(project.parent / "runs" / "x")
    return make_spec(script=str(project / "train.py"), config=config, script_args=words, run_dir=run_dir)


def test_the_copy_has_what_git_would_keep(spec: JobSpec, project: Path) -> None:
    taken = snapshot.take(spec)
    copy = Path(taken.script).parent
    assert copy.is_relative_to(spec.run_dir)
    assert (copy / "sibling.py").read_text() == "VALUE = 'as submitted'\n"
    assert (copy / "new.py").is_file()
    assert not (copy / "gone.py").exists()
    assert taken.script_args == ("--config", str(copy / "run.yaml"), "--seed", "1")
    assert taken.config == str(copy / "run.yaml")
    assert not (copy / "run.yaml").is_symlink()
    # What git ignores is data, and is found beside the settings file.
    assert (copy / "data").readlink() == project / "data"
    assert taken.code_root is not None
    assert (Path(taken.code_root) / "launch" / "rank.py").is_file()
    text = script.script_text(taken)
    assert f"export PYTHONPATH={taken.code_root}" in text
    assert text.count(" -P ") == 3  # begin, the agents, end
    assert " -P " not in script.script_text(spec)


def test_large_files_and_settings_elsewhere(
    spec: JobSpec, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(snapshot, "MAX_COPIED_BYTES", 1_000_000)
    (project / "large.bin").write_bytes(b"x" * 1_000_001)
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "run.yaml").write_text("train_file: rows.jsonl\n")
    (other / "rows.jsonl").write_text("")
    config = str(other / "run.yaml")
    taken = snapshot.take(replace(spec, config=config, script_args=("--config", config)))
    assert (Path(taken.script).parent / "large.bin").readlink() == project / "large.bin"
    assert taken.config is not None
    assert taken.script_args == ("--config", taken.config)
    assert Path(taken.config).is_relative_to(spec.run_dir)
    assert (Path(taken.config).parent / "rows.jsonl").readlink() == other / "rows.jsonl"


def test_a_script_without_a_repository_is_refused(spec: JobSpec, tmp_path: Path) -> None:
    lone = tmp_path / "lone.py"
    lone.write_text("")
    with pytest.raises(LaunchError, match="with --snapshot it must be in a git repository"):
        snapshot.take(replace(spec, script=str(lone)))


@pytest.mark.ranks
def test_later_edits_do_not_change_a_job(project: Path) -> None:
    go = project.parent / "go"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = ["submit", "--executor", "local", "--script", "train.py", "--name", "x", "--snapshot", "--env", f"GO={go}"]
    launch = [sys.executable, "-m", "launch"]
    done = subprocess.run([*launch, *words], cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    run_dir = project / "runs" / "x"
    (project / "sibling.py").write_text("VALUE = 'edited later'\n")
    (project / "train.py").write_text("raise SystemExit(9)\n")
    time.sleep(0.2)
    go.write_text("")
    ended = subprocess.run(
        [*launch, "wait", "x"], cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    log = (run_dir / "logs" / "0" / "rank-0.log").read_text()
    assert ended.returncode == 0, ended.stdout + log
    assert "value as submitted" in log
    node = (run_dir / "logs" / "0" / "node-0.log").read_text()
    code_root = json.loads((run_dir / "job.json").read_text())["code_root"]
    assert f"{code_root}/launch/rank.py" in node  # the agent, too, is that of the copy
    assert f" {code_root}" in log
