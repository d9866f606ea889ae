"""What a run is made of, and whether the same was submitted before."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launch import manifest, runs
from launch.__main__ import main
from launch.errors import LaunchError
from launch.runs import Run
from launch.spec import JobSpec


def git(folder: Path, *words: str) -> None:
    own = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "HOME": str(folder)}
    own |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, env=os.environ | own)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A script, settings and data in a repository, with one commit."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "train.py").write_text("print('one')\n")
    (folder / "data.jsonl").write_text("{}\n")
    (folder / "run.yaml").write_text("train_file: data.jsonl\ndeepspeed: zero.json\n")
    (folder / "zero.json").write_text('{"zero_optimization": {"stage": 2}}')
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    return folder


@pytest.fixture
def spec(make_spec: Callable[..., JobSpec], repository: Path) -> JobSpec:
    config = str(repository / "run.yaml")
    return make_spec(
        script=str(repository / "train.py"),
        working_dir=str(repository),
        config=config,
        script_args=("--config", config),
    )


def test_the_manifest_holds_what_the_code_is_made_of(spec: JobSpec, repository: Path, tmp_path: Path) -> None:
    (repository / "train.py").write_text("print('two')\r\n\n  é\n")
    (repository / "new.py").write_text("x = 1\n")
    facts, patches = manifest.gather(spec, "#!/bin/bash\n")
    code = facts["code"]["script"]
    assert code["is_dirty"]
    assert list(code["untracked"]) == ["new.py"]
    assert len(code["commit"]) == 40
    assert facts["zero"]["text"] == '{"zero_optimization": {"stage": 2}}'
    assert facts["settings"]["text"].startswith("train_file")
    assert facts["packages"]["torch"]
    assert facts["data"]["train_file"]["files"][0][:2] == ["data.jsonl", 3]
    manifest.write(tmp_path, facts, patches)
    assert json.loads((tmp_path / "manifest.json").read_text())["signature"] == facts["signature"]
    git(repository, "checkout", "-q", "train.py")
    git(repository, "apply", str(tmp_path / "code" / "script.patch"))
    assert (repository / "train.py").read_bytes() == "print('two')\r\n\n  é\n".encode()


def edited(path: str, text: str) -> Callable[[JobSpec], JobSpec]:
    def edit(spec: JobSpec) -> JobSpec:
        Path(spec.working_dir, path).write_text(text)
        return spec

    return edit


CHANGES = {
    "code": (edited("train.py", "print('two')\n"), True),
    "a new file": (edited("more.py", ""), True),
    "settings": (edited("run.yaml", "train_file: data.jsonl\ndeepspeed: zero.json\nseed: 1\n"), True),
    "data": (edited("data.jsonl", "{}\n{}\n"), True),
    "an argument": (lambda spec: replace(spec, script_args=(*spec.script_args, "--seed=1")), True),
    "a variable": (lambda spec: replace(spec, env={"X": "1"}), True),
    "ranks": (lambda spec: replace(spec, resources=replace(spec.resources, nodes=3)), True),
    "name": (lambda spec: replace(spec, name="y", run_dir="/shared/runs/y"), False),
    "time": (lambda spec: replace(spec, resources=replace(spec.resources, time_min=7, partition="x")), False),
    "nothing": (lambda spec: spec, False),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_the_signature_is_that_of_settings_code_and_data(spec: JobSpec, kind: str) -> None:
    change, is_another = CHANGES[kind]
    before = manifest.gather(replace(spec, script_args=(*spec.script_args, "--output_dir", spec.run_dir)), "")[0]
    changed = change(spec)
    after = manifest.gather(replace(changed, script_args=(*changed.script_args, "--output_dir", changed.run_dir)), "")[
        0
    ]
    assert (before["signature"] != after["signature"]) == is_another


def test_runs_in_the_repository_are_no_code(spec: JobSpec, repository: Path) -> None:
    """Where they are not ignored; neither its own folder nor those of others count, or are copied."""
    (repository / "helpers").mkdir()
    (repository / "helpers" / "more.py").write_text("")
    spec = replace(spec, run_dir=str(repository / "runs" / "x"), script_args=())
    before = manifest.gather(spec, "")[0]
    assert list(before["code"]["script"]["untracked"]) == ["helpers/more.py"]
    for name in ("runs/notes.txt", "runs/x/claims/0.json", "runs/y/job.json", "out/z/job.json", "out/z/submit.sh",
                 "out/z/logs/0/rank-0.log", "out/s/sweep.json", "out/s/array.sh", "out/s/0/job.json"):  # fmt: skip
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("")
    after = manifest.gather(replace(spec, run_dir=str(repository / "runs" / "y")), "")[0]
    assert after["signature"] == before["signature"]
    files, top = manifest.code_files(repository, Path(spec.run_dir))
    assert files is not None
    assert {str(path.relative_to(top)) for path in files if "helpers" not in path.parts} == {
        "train.py", "data.jsonl", "run.yaml", "zero.json",
    }  # fmt: skip


@pytest.mark.parametrize("run_dir", ["helpers/out", "new/out", "out"])
def test_code_beside_a_run_is_code(spec: JobSpec, repository: Path, run_dir: str) -> None:
    """Where git knows something there, where the script is, and at the top of the repository."""
    for name in ("helpers/known.py", "helpers/more.py", "new/train.py", "top.py", "job.json"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("")
    git(repository, "add", "helpers/known.py")
    spec = replace(spec, script=str(repository / "new" / "train.py"), run_dir=str(repository / run_dir))
    facts = manifest.gather(spec, "")[0]
    assert set(facts["code"]["script"]["untracked"]) == {"helpers/more.py", "new/train.py", "top.py", "job.json"}


@pytest.mark.parametrize("slow", ["diff", "ls-files"])
def test_what_git_does_not_tell_in_time_is_not_taken_for_clean(
    spec: JobSpec, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    clean = manifest.gather(spec, "")[0]
    assert clean["code"]["script"]["is_dirty"] is False
    ask = manifest._git
    monkeypatch.setattr(manifest, "_git", lambda folder, *words: None if words[0] == slow else ask(folder, *words))
    unknown = [manifest.gather(spec, "")[0] for _ in range(2)]
    assert unknown[0]["code"]["script"]["is_dirty"] is None
    assert len({facts["signature"] for facts in (clean, *unknown)}) == 3


def test_nothing_is_copied_of_a_repository_that_does_not_tell_its_files(
    spec: JobSpec, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = manifest._git
    monkeypatch.setattr(
        manifest, "_git", lambda folder, *words: None if words[0] == "ls-files" else ask(folder, *words)
    )
    with pytest.raises(LaunchError, match=f"git does not list the files of {repository} within 20 s; it must"):
        manifest.code_files(repository, Path(spec.run_dir))


@pytest.mark.parametrize(
    ("path", "text", "told"),
    [
        ("train.py", "print('two')\n", "code of script (files that were edited)"),
        ("more.py", "", "code of script (files that were edited)"),
        ("run.yaml", "train_file: data.jsonl\ndeepspeed: zero.json\nseed: 1\n", "the settings file"),
        ("zero.json", "{}", "DeepSpeed's settings"),
        ("data.jsonl", "{}\n{}\n", "data (train_file)"),
    ],
)
def test_what_differs_is_told(spec: JobSpec, repository: Path, path: str, text: str, told: str) -> None:
    before = manifest.gather(spec, "")[0]
    assert manifest.differences(before, json.loads(json.dumps(before))) == []
    (repository / path).write_text(text)
    assert told in manifest.differences(before, manifest.gather(spec, "")[0])
    git(repository, "add", ".")
    git(repository, "commit", "-qm", "two")
    now = manifest.gather(spec, "")[0]
    (said,) = [words for words in manifest.differences(before, now) if "commit" in words]
    old, new = (facts["code"]["script"]["commit"][:9] for facts in (before, now))
    assert said == f"code of script (commit {old} → {new})"


def test_packages_that_differ_are_told(spec: JobSpec) -> None:
    before = manifest.gather(spec, "")[0]
    now = before | {"packages": {**before["packages"], "torch": "9.0", "zzz": "1"}}
    assert manifest.differences(before, now) == [f"torch {before['packages']['torch']} → 9.0", "zzz none → 1"]
    many = before | {"packages": {**before["packages"], **{f"zz{number}": "1" for number in range(7)}}}
    assert manifest.differences(before, many)[-1] == "2 more packages"


def test_resubmit_says_what_has_changed(cluster: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert submit("--name", "a") == 0
    capfd.readouterr()
    assert main(["resubmit", "a"]) == 0
    assert "changes" in (said := capfd.readouterr().err)
    assert "none: code, settings, data and packages are those of a" in said
    (cluster / "project" / "train.py").write_text("print('two')\n")
    assert main(["resubmit", "a", "--json"]) == 0
    (row,) = [check for check in json.loads(capfd.readouterr().out)["checks"] if check["name"] == "changes"]
    assert (row["verdict"], row["value"]) == ("warning", "since a: code of script (files that were edited)")


SBATCH = """case " $* " in *" --test-only "*) echo 'sbatch: Job 70 to start at 2026-11-21T15:50:00' >&2; exit 0;; esac
id=$(( 70 + $(wc -l < jobs) )); echo $id >> jobs; echo Submitted batch job $id"""


@pytest.fixture
def cluster(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm whose jobs all wait; its jobs are the lines of a file."""
    programs = repository.parent / "bin"
    programs.mkdir()
    texts = {"sinfo": "echo 'cpu|cpu*|2|(null)|8|infinite'", "srun": "exit 0", "sbatch": SBATCH}
    for name, text in (texts | {"squeue": "echo 'PENDING|Priority|N/A'"}).items():
        (programs / name).write_text(f"#!/bin/bash\ncd {repository.parent}\n{text}\n")
        (programs / name).chmod(0o755)
    (repository.parent / "jobs").write_text("")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.chdir(repository.parent)
    return repository.parent


def submit(*words: str) -> int:
    return main(["submit", "--script", "project/train.py", "--executor", "slurm", *words])


def num_jobs(cluster: Path) -> int:
    return len((cluster / "jobs").read_text().splitlines())


def test_the_same_is_not_submitted_twice(cluster: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert submit() == 0
    (first,) = runs.all_runs(runs.registry_path(os.environ), None)
    assert submit() == 2
    error = capfd.readouterr().err
    assert f"settings, code and data are those of {first.name}, which is PENDING" in error
    assert "1 check failed: identity. Nothing was submitted." in error
    assert os.listdir(cluster / "runs") == [first.name]
    assert submit("--attach", "--json") == 0
    told = capfd.readouterr()
    assert json.loads(told.out)["run"] == first.name
    assert "nothing is submitted now" in told.err
    assert num_jobs(cluster) == 1


def test_a_name_of_its_own_and_other_settings_are_submitted(cluster: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert submit("--name", "a") == 0
    assert submit("--name", "b") == 0
    assert "are those of a, which is PENDING" in capfd.readouterr().err
    assert submit("--name", "b", "--attach") == 0
    assert submit("--name", "b", "--attach", "--nodes", "2") == 2  # the directory is taken by another
    assert submit("--nodes", "2") == 0
    assert num_jobs(cluster) == 3
    assert Run(cluster / "runs" / "a").job_id == "70"
