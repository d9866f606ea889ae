"""`launch stages`: what the file says, what Slurm is given, and what comes of the others where one fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_runs import calls, end_run, made_run, stand_in, write
from test_identity import git

from launch.__main__ import main
from launch.errors import LaunchError
from launch.following import dependency_of
from launch.outcome import Outcome
from launch.runs import FAILED, RUNNING, Run, Status, View, status_of
from launch.spec import COMMANDS_SCRIPT, JobSpec
from launch.stages import read_stages
from strict_settings import SettingsError

MakeSpec = Callable[..., JobSpec]
NOTHING = Outcome(2, 0, 0, None, 0)
THREE: dict[str, Any] = {
    "train": {"script": "train.py", "launch": {"nodes": 2}},
    "evaluate": {"command": "evaluate", "args": ["{train.output_dir}", "held_out.jsonl", "--max-new-tokens", 8]},
    "export": {"command": "export", "args": ["{train.output_dir}", "--output", "{export.output_dir}/model"]},
}


def written(folder: Path, stages: Any, **more: Any) -> str:
    path = folder / "stages.yaml"
    path.write_text(yaml.safe_dump({"stages": stages, **more}, sort_keys=False))
    return str(path)


def test_what_the_file_says(tmp_path: Path) -> None:
    train, evaluate, export = read_stages(written(tmp_path, THREE, launch={"partition": "cpu"}))
    assert [train.after, evaluate.after, export.after] == [(), ("train",), ("evaluate",)]
    assert (train.script, evaluate.script) == ("train.py", str(COMMANDS_SCRIPT))
    directories = {name: f"/runs/s/{name}" for name in THREE}
    assert evaluate.script_args(directories) == (
        "evaluate", "/runs/s/train", "held_out.jsonl", "--max-new-tokens", "8",
    )  # fmt: skip
    assert export.script_args(directories)[-1] == "/runs/s/export/model"
    assert [train.needs_others, evaluate.needs_others, export.needs_others] == [False, True, True]
    assert [dict(source.values) for source in train.launch] == [{"partition": "cpu"}, {}, {"nodes": 2}]
    assert [dict(source.values) for source in export.launch][1] == {"nodes": 1, "procs_per_node": 1}


def test_a_stage_may_follow_several_or_none(tmp_path: Path) -> None:
    stages: dict[str, Any] = {"a": {}, "b": {"after": []}, "c": {"after": ["a", "b"]}, "d": {"after": ["c"]}}
    stages["d"]["args"] = ["--model_name_or_path", "{a.output_dir}", '{"a.b": 1}', "{x.y}"]
    found = read_stages(written(tmp_path, stages))
    assert [stage.after for stage in found] == [(), (), ("a", "b"), ("c",)]
    assert found[3].script_args({name: name for name in "abcd"})[1:] == ("a", '{"a.b": 1}', "{x.y}")


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({}, "stages is {}; it must name a stage or more."),
        ({"a": {"after": ["b"]}, "b": {}}, "stages.a.after is 'b'; it must name stages that stand above it: none."),
        ({"a": {"after": ["a"]}}, "stages.a.after is 'a'; it must name stages that stand above it: none."),
        ({"a b": {}}, "the run's name is 'a b'"),
        ({"a": {"script": "x.py", "command": "export"}}, "command is 'export'; it must not be given together with scr"),
        ({"a": {"config": "x", "command": "export"}}, "config is 'x'; it must not be given together with command."),
        ({"a": {"command": "train"}}, "command is 'train'; it must be one of evaluate, export, optimize-prompt, rep"),
        ({"a": {"arg": []}}, "the key 'arg' is unknown; it must be a known setting. Did you mean 'args'?"),
        ({"a": {"args": [{"train.output_dir": None}]}}, "args.0 is {'train.output_dir': None}; it must be text."),
        ({"a": {"launch": [1]}}, "stages.yaml:3: launch is [1]; it must be a mapping."),
        (
            {"a": {}, "b": {"after": [], "args": ["{a.output_dir}"]}},
            "stages.b.args is '{a.output_dir}'; it must name a stage that it follows: none. Or itself.",
        ),
        ({"a": {}, "b": {"args": ["{a.run_dir}"]}}, "stages.b.args is '{a.run_dir}'; it must be {a.output_dir}."),
        ({"a": {"args": ["{b.output_dir}"]}}, "stages.a.args is '{b.output_dir}'; it must name a stage that it foll"),
    ],
)
def test_what_a_file_may_not_say(stages: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        read_stages(written(tmp_path, stages))
    assert message in str(refused.value)
    assert "stages.yaml:" in str(refused.value)


def test_what_follows_from_a_mistake_is_not_told_as_another(tmp_path: Path) -> None:
    stages = {"a": {}, "b": {"after": ["c"], "args": ["{a.output_dir}", "{trian.output_dir}"]}, "d": {"lauch": {}}}
    with pytest.raises(SettingsError) as refused:
        read_stages(written(tmp_path, stages))
    said = [str(problem).partition(": ")[2] for problem in refused.value.problems]
    assert [text.partition(" is ")[0] for text in said] == ["stages.b.after", "stages.b.args", "the key 'lauch'"]
    assert "trian" in said[1]
    assert "Did you mean 'launch'?" in said[2]


def test_all_mistakes_are_told_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(folder, {"a": {"launch": {"nodez": 1}}, "b": {"launch": {"nodes": 0}}}, launch={"partition": "none"})
    assert main(["stages", "stages.yaml"]) == 2
    said = capsys.readouterr().err
    assert "stages.yaml:4: the key 'nodez' is unknown" in said
    assert "nodes is 0; it must be at least 1" in said
    written(folder, {"a": {"script": "gone.py"}, "b": {"script": "train.py", "launch": {"nodes": 9}}})
    assert main(["stages", "stages.yaml", "--executor", "slurm"]) == 2
    said = capsys.readouterr().err
    assert "gone.py'; it must be a file" in said
    assert "nodes is 9; it must be at most 2" in said
    assert not (folder / "runs").exists()
    assert calls(folder / "bin", "sbatch") == []


# --- Slurm

SBATCH = """case " $* " in *" --test-only "*) echo 'sbatch: Job 70 to start at 2026-11-21T15:50:00' >&2; exit 0;; esac
n=$(cat {0}/number)
[ "$n" -lt {1} ] || {{ echo 'sbatch: error: Batch job submission failed: Invalid qos' >&2; exit 1; }}
echo $((n + 1)) > {0}/number; echo "Submitted batch job $n"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a script and data, and stand-ins for Slurm's commands; jobs have the numbers 71, 72, …"""
    monkeypatch.chdir(tmp_path)
    bin_dir = tmp_path / "bin"
    stand_in(bin_dir, "sinfo", "echo 'cpu|cpu*|2|(null)|8|infinite'")
    stand_in(bin_dir, "scontrol", "echo 'KillWait = 30 sec'")
    stand_in(bin_dir, "squeue", f"cat {tmp_path}/queue")
    stand_in(bin_dir, "scancel", f"echo gone > {tmp_path}/cancelled")
    stand_in(bin_dir, "sbatch", SBATCH.format(tmp_path, 99))
    stand_in(bin_dir, "srun", "exit 0")
    (tmp_path / "number").write_text("71")
    (tmp_path / "queue").write_text("PENDING|Dependency|N/A\n")
    (tmp_path / "train.py").write_text("")
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "held_out.jsonl").write_text(json.dumps(row))
    monkeypatch.setenv("PATH", f"{bin_dir}:/usr/bin:/bin")
    written(tmp_path, THREE)
    return tmp_path


STAGES = ["stages", "stages.yaml", "--executor", "slurm", "--name", "s"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither scripts nor git are started, and nothing waits for the scheduler: other tests are about these."""
    monkeypatch.setattr("launch.submit.check_script", lambda _spec, _environ: None)
    monkeypatch.setattr("launch.manifest.gather", lambda spec, _text: ({"signature": spec.name}, {}))
    monkeypatch.setattr("launch.verbs.common.SQUEUE_INTERVAL_S", 0.0)


def submissions(folder: Path) -> list[str]:
    return [call for call in calls(folder / "bin", "sbatch") if "--test-only" not in call]


@pytest.mark.usefixtures("quick")
def test_each_is_a_job_after_those_that_it_follows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*STAGES, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(run["stage"], run["job_id"], run["after"]) for run in told["runs"]] == [
        ("train", "71", []), ("evaluate", "72", ["train"]), ("export", "73", ["evaluate"]),
    ]  # fmt: skip
    first, second, third = submissions(folder)
    assert "--dependency" not in first
    assert "--dependency=afterok:71 --kill-on-invalid-dep=yes" in second
    assert "--dependency=afterok:72 --kill-on-invalid-dep=yes" in third
    run = Run(folder / "runs" / "s" / "evaluate")
    assert (run.name, run.num_nodes, Run(folder / "runs" / "s" / "train").num_nodes) == ("s-evaluate", 1, 2)
    assert run.job["script_args"][1] == str(folder / "runs" / "s" / "train")
    assert main(["list", "--runs-dir", "runs/s", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert [row["run"] for row in rows] == ["s-export", "s-evaluate", "s-train"]
    assert main([*STAGES]) == 2
    assert "it must be new. Choose another --name." in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_the_dry_run_has_every_stage_and_leaves_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*STAGES, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "# ########## stage train ##########\n# run directory: " in text
    assert "# ########## stage evaluate, after train ##########" in text
    assert text.count("# ===== submit.sh =====") == 3
    assert f"{COMMANDS_SCRIPT} evaluate {folder}/runs/s/train held_out.jsonl --max-new-tokens 8" in text
    assert not (folder / "runs").exists()
    assert main([*STAGES, "--dry-run", "--json"]) == 0
    assert [job["stage"] for job in json.loads(capsys.readouterr().out)["jobs"]] == list(THREE)
    git(folder, "init", "-q")
    git(folder, "add", "train.py")
    git(folder, "commit", "-qm", "one")
    assert main([*STAGES, "--dry-run", "--json", "--snapshot"]) == 0
    (*_, export) = json.loads(capsys.readouterr().out)["jobs"]
    copy = f"{folder}/runs/s/export/code/cleansft"
    assert (export["job"]["code_root"], export["job"]["script"]) == (copy, f"{copy}/sft/__main__.py")
    assert f"{copy}/sft/__main__.py export {folder}/runs/s/train" in export["plan"]
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_words_of_a_later_stage_are_checked_before_the_first_is_submitted(
    words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(folder, {**THREE, "export": {"command": "export", "args": ["{train.output_dir}", "--merg"]}})
    assert main([*STAGES, *words]) == 2
    said = capsys.readouterr().err
    assert "stage export is refused:" in said
    assert "unrecognized arguments: --merg" in said
    assert submissions(folder) == []
    assert not (folder / "runs").exists()


@pytest.mark.usefixtures("quick")
def test_where_a_later_one_is_refused_the_first_ones_are_cancelled(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(folder / "bin", "sbatch", SBATCH.format(folder, 73))
    assert main([*STAGES]) == 2
    said = capsys.readouterr().err
    assert "train, evaluate had been submitted, and are cancelled" in said
    assert "Invalid qos" in said
    assert calls(folder / "bin", "scancel") == ["72", "71"]
    assert not (folder / "runs" / "s" / "export").exists()


def test_what_can_not_be_a_stage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, launch, said in (
        ("export", {"procs_per_node": 2}, "stages.export.launch is 2; it must be one process on one node, as export"),
        ("train", {"chain": "singleton"}, "chain is 'singleton'; it must not be given for train, which others follow"),
        ("train", {"executor": "local"}, "executor is local and slurm; it must be the same for all stages."),
    ):
        stages = {**THREE, name: {**THREE[name], "launch": launch}}
        written(folder, stages, launch={"executor": "slurm"})
        assert main(["stages", "stages.yaml", "--dry-run"]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_cancel_reaches_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*STAGES]) == 0
    capsys.readouterr()
    (folder / "queue").write_text("".join(f"{job}|{job}|PENDING|Dependency|N/A\n" for job in (71, 72, 73)))
    stand_in(folder / "bin", "scancel", f": > {folder}/queue")
    assert main(["cancel", "s"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"s-{name}: CANCELLED" for name in THREE]
    assert calls(folder / "bin", "scancel") == ["73 72 71"]


@pytest.mark.usefixtures("quick")
def test_stages_behind_one_that_failed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Slurm takes them out of the queue and soon forgets them. The code is that of the one that failed; `resume` goes
    on with all three."""
    assert main([*STAGES]) == 0
    train, evaluate, export = (Run(folder / "runs" / "s" / name) for name in THREE)
    end_run(train, 42)
    (folder / "queue").write_text("")
    assert status_of(evaluate, lambda: View("ended")).state == "CANCELLED"
    assert status_of(export, lambda: View("ended")).reason == "s-evaluate, which it was to follow, is not complete"
    assert main(["wait", "s"]) == 42
    before = len(submissions(folder))
    (folder / "queue").write_text("")
    capsys.readouterr()
    stand_in(folder / "bin", "squeue", f'case "$*" in *"-j 71"*|*"-j 72"*|*"-j 73"*) ;; *) cat {folder}/waits;; esac')
    (folder / "waits").write_text("PENDING|None|N/A\n")
    assert main(["resume", "s-evaluate"]) == 2
    assert "--after is s-train, which is FAILED; it must be complete, waiting or running" in capsys.readouterr().err
    assert main(["resume", "s"]) == 0
    again = submissions(folder)[before:]
    assert ["--dependency=afterok:74 " in again[1], "--dependency=afterok:75 " in again[2]] == [True, True]
    assert "--dependency" not in again[0]
    capsys.readouterr()
    assert main(["resume", "s"]) == 2
    assert "all stages of s wait, run or are complete; there is nothing to resume." in capsys.readouterr().err


def test_the_dependency_of_what_is_submitted_again(tmp_path: Path, make_spec: MakeSpec) -> None:
    done, going, failed = (made_run(tmp_path / name, make_spec, job_id=name[0]) for name in ("7d", "8g", "9f"))
    states = {"7d": Status("COMPLETED", NOTHING), "8g": Status(RUNNING, NOTHING), "9f": Status(FAILED, NOTHING)}
    spec = make_spec(after=(str(done.path), str(going.path)))
    assert dependency_of(spec, lambda run: states[run.name]) == "afterok:8"
    assert dependency_of(make_spec(), lambda run: states[run.name]) is None
    with pytest.raises(LaunchError, match="--after is 9f, which is FAILED"):
        dependency_of(make_spec(after=(str(failed.path),)), lambda run: states[run.name])


def test_job_json_holds_what_it_follows(tmp_path: Path, make_spec: MakeSpec) -> None:
    spec = make_spec(after=("/runs/a", "/runs/b"))
    write(tmp_path / "job.json", spec.to_json())
    assert JobSpec.from_json(json.loads((tmp_path / "job.json").read_text())) == spec
    assert [str(run.path) for run in Run(tmp_path).follows] == ["/runs/a", "/runs/b"]
    assert JobSpec.from_json({**make_spec().to_json(), "after": None}).after == ()
