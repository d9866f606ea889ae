"""A job that runs from a copy of the code: what is edited after the submission changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import end_run, made_run, write
from test_identity import git

from launch import manifest, runs, script, snapshot
from launch import submit as effects
from launch.__main__ import main
from launch.errors import LaunchError
from launch.runs import View
from launch.spec import COMMANDS_SCRIPT, DEFAULT_SCRIPT, ROOT, JobSpec
from launch.verbs import clean

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


def test_what_is_planned_is_what_is_copied(spec: JobSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MAX_COPIED_BYTES", 10)  # the script is linked
    words = (
        *spec.script_args,
        f"--train_file={spec.working_dir}",
        str(Path(spec.script).parent / "data" / "train.jsonl"),
    )
    spec = replace(spec, script_args=(*words, str(Path(spec.script).parent / "nothing")))
    planned, copy = snapshot.planned(spec)
    assert not Path(spec.run_dir).exists()
    assert snapshot.take(spec) == planned
    there = {path for path in Path(spec.run_dir).rglob("*") if path.is_symlink() or path.is_file()}
    assert there == {*copy.files, *copy.links}
    assert planned.script_args[-1] == spec.script_args[-1]
    assert Path(planned.script_args[-2]).read_text() == "{}\n"


def test_the_way_back(spec: JobSpec, tmp_path: Path) -> None:
    """For a run that is submitted once more: its code is where it was, not in the copy of the first run."""
    words = (*spec.script_args, "--train_file", str(Path(spec.script).parent / "data" / "train.jsonl"))
    elsewhere = tmp_path / "elsewhere" / "run.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text("seed: 1\n")
    for before in (
        replace(spec, script_args=words),
        replace(spec, config=str(elsewhere), script_args=(str(elsewhere),)),
    ):
        facts, _ = manifest.gather(before, "")
        taken = snapshot.take(before)
        assert taken != before
        assert snapshot.original(taken, facts) == before
        assert snapshot.original(before, {}) == before
        with pytest.raises(LaunchError, match=r"manifest\.json is missing; it must say where the code was"):
            snapshot.original(taken, {})
        shutil.rmtree(spec.run_dir)


def test_the_copy_of_our_trainer_is_ours(spec: JobSpec) -> None:
    """Or its settings and data would not be looked at when it is resumed."""
    ours = replace(spec, script=str(DEFAULT_SCRIPT))
    taken = snapshot.take(ours)
    assert Path(taken.script).is_relative_to(spec.run_dir)
    assert (ours.is_our_trainer, taken.is_our_trainer, taken.checks_itself) == (True, True, True)
    evaluation = replace(taken, script=str(taken.own(COMMANDS_SCRIPT)), script_args=("evaluate",))
    assert (evaluation.is_our_trainer, evaluation.checks_itself) == (False, True)
    assert not snapshot.take(spec).is_our_trainer
    assert not replace(taken, code_root=None).is_our_trainer
    (Path(taken.script)).write_text("import sys; sys.exit('refused by the copy')")
    with pytest.raises(effects.ScriptRefusedError, match="refused by the copy"):
        effects.check_script(replace(taken, python=sys.executable, working_dir=str(Path.cwd())), os.environ)


def test_a_run_with_a_copy_is_removed(spec: JobSpec, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.parent)
    run = made_run(project.parent / "other", lambda **_: replace(spec, run_dir=str(project.parent / "other")))
    end_run(run)
    taken = snapshot.take(JobSpec.from_json(run.job))
    write(run.path / "job.json", taken.to_json())
    status = runs.status_of(run, lambda: View("ended"))
    assert clean.why_not(run, status) is None
    write(run.path / "job.json", replace(taken, code_root=None).to_json())  # then nobody has copied it
    assert "which is not of the run" in str(clean.why_not(run, status))
    write(run.path / "job.json", replace(taken, config=str(run.path / "run.yaml")).to_json())
    assert "run.yaml, which is not of the run" in str(clean.why_not(run, status))


def test_the_dry_run_shows_the_paths_of_the_copy(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    words = ["--executor", "local", "--script", "train.py", "--name", "x", "--snapshot"]
    for verb in (["print"], ["submit", "--dry-run"]):
        assert main([*verb, *words]) == 0
        assert capsys.readouterr().out.endswith(f" -u {project}/runs/x/code/script/train.py\n")
    assert not (project / "runs").exists()


def test_a_run_from_a_copy_is_submitted_once_more_from_another(
    spec: JobSpec, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setattr("launch.verbs.submit.request_problems", lambda _: [])
    spec = replace(spec, executor="local", python=sys.executable, working_dir=str(project))
    facts, _ = manifest.gather(spec, "")
    run = made_run(Path(spec.run_dir), lambda **_: snapshot.take(spec))
    write(run.path / "manifest.json", facts)
    assert main(["resubmit", str(run.path), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"{spec.run_dir}/" not in shown
    assert f"{spec.run_dir}-2/code/script/train.py" in shown


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
