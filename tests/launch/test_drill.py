"""`launch drill`: what it submits, how it judges, and (make soak) a whole one on this machine."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import made_run

from launch import command_line, options
from launch.__main__ import main
from launch.drill import ROWS, Evidence, gather, problems, settings_of, words_of
from launch.records import write_json
from launch.runs import Run
from launch.settings import Request, read, resolve
from launch.spec import ROOT, JobSpec

MakeSpec = Callable[..., JobSpec]
KILL = next(row for row in ROWS if row.name == "kill")
UNDISTURBED = Evidence((0,), (), {1: 2.5, 2: 2.25}, {"model.safetensors": "aa"})
GONE_ON = replace(UNDISTURBED, codes=(11, 0))


def test_a_run_that_went_on_as_if_nothing_had_been_passes() -> None:
    assert list(problems(KILL, GONE_ON, UNDISTURBED)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"codes": (11,), "weights": {}, "said": "launch.chain is none"},
            "ended with 11; they must with 11 then 0 (launch",
        ),
        ({"codes": (0,)}, "its attempts ended with 0; they must with 11 then 0"),
        ({"weights": {}}, "there is no final model"),
        (
            {"losses": {1: 2.5, 2: 2.2500000000000004}},
            "the loss of step 2 is 2.2500000000000004; undisturbed it is 2.25",
        ),
        ({"losses": {1: 2.5}}, "the loss of step 2 is None"),
        ({"weights": {"model.safetensors": "bb"}}, "the final weights are others than undisturbed"),
    ],
)
def test_what_is_other_than_it_must_be_is_told(change: dict[str, object], said: str) -> None:
    found = list(problems(KILL, replace(GONE_ON, **change), UNDISTURBED))  # type: ignore[arg-type]
    assert any(said in problem for problem in found), found


def test_a_row_submits_what_the_user_would_with_a_fault_and_few_steps() -> None:
    given = "drill --nodes 2 --zero 2 --config run.yaml --env A=b --steps 12 -- --learning_rate 1e-3".split()
    words = words_of(command_line.parse(given), KILL, "d-kill", 4)
    assert words[0] == "submit"
    own, dashes = words[1 : words.index("--")], words[words.index("--") + 1 :]
    assert {"--nodes=2", "--zero=2", "--config=run.yaml", "--name=d-kill", "--env=A=b", "--wait"} <= set(own)
    assert "--env=SFT_FAULT=kill@3:9" in own
    assert dashes[:2] == ["--learning_rate", "1e-3"]
    assert {"--max_steps=12", "--save_steps=4", "--logging_steps=1"} <= set(dashes)
    command_line.parse(words)  # the launcher understands it


def test_a_run_is_drilled_with_its_own_settings_and_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "launch: {setup: [module load x], watchdog: {step_s: 30}, gres: gpu:2, modules: [cuda], interface: eth7}\n"
    )
    given = ["submit", "--executor", "local", "--nodes", "3", "--zero", "2", "--config", "run.yaml", "--name", "long"]
    given += ["--env", "A=b", "--env", "SFT_FAULT=kill@0:3", "--max-restarts", "4"]
    job = spec_of(command_line.parse([*given, "--", "--seed", "3"]), tmp_path)
    job = replace(job, resume_args=("--learning_rate", "2e-3", "--resume_override", "[learning_rate]"))
    run_dir = Path(job.run_dir)
    run_dir.mkdir(parents=True)
    write_json(run_dir / "job.json", job.to_json())
    before = {path: path.stat().st_mtime_ns for path in (run_dir, *run_dir.iterdir())}
    with settings_of(command_line.parse(["drill", "long", "--steps", "6", "--nodes", "2"]), Run(run_dir)) as settings:
        words = words_of(settings, KILL, "d-kill", 2)
        again = spec_of(command_line.parse(words), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (run_dir, *run_dir.iterdir())} == before
    assert again.run_dir == str(run_dir.parent / "d-kill")
    assert again.env == {"A": "b", "SFT_FAULT": "kill@1:5"}
    assert (again.modules, again.interface, again.resources.gres) == (("cuda",), "eth7", "gpu:2")
    assert (again.setup, again.watchdog.step_s, again.max_restarts) == (("module load x",), 30.0, 4)
    assert again.resources == replace(job.resources, nodes=2)
    assert again.script_args[4:10] == (*job.script_args[4:6], "--seed", "3", "--learning_rate", "2e-3")
    assert again.script_args.count("--config") == again.script_args.count("--output_dir") == 1
    same = ("script", "python", "launcher", "stop_grace_s", "signal_lead_s", "chain", "config", "working_dir")
    assert {name: getattr(again, name) for name in same} == {name: getattr(job, name) for name in same}


def spec_of(arguments: argparse.Namespace, work: Path) -> JobSpec:
    """What `submit` makes of the words."""
    names = [option.replace("-", "_") for option, _, _ in options.OPTIONS]
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    request = Request(
        config=arguments.config,
        profile=arguments.profile,
        name=arguments.name,
        options=tuple(f"--{name}={value}" for name, value in given.items()),
        env=tuple(arguments.env),
        script_args=tuple(arguments.script_args),
    )
    return resolve(read(request, work, work / "home"), "local", work)


def test_a_run_and_a_settings_file_are_not_both_taken(
    make_spec: MakeSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "job.json", make_spec(config="/gone/run.yaml").to_json())
    assert main(["drill", str(tmp_path), "--config", "other.yaml"]) == 2
    assert "RUN is given with --config or --profile" in capsys.readouterr().err
    assert main(["drill", str(tmp_path)]) == 2
    assert "was submitted with /gone/run.yaml; it must be there" in capsys.readouterr().err


def test_too_few_steps_are_refused() -> None:
    assert main(["drill", "--steps", "2"]) == 2


def test_rows_as_json(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One object on stdout, also where a row fails, or the first, with which the others are compared."""
    good = Evidence((0,), (), {1: 0.5}, {"model.safetensors": "a"})
    broken = {"hang"}

    def submit(_words: object, _timeout_s: float, name: str, folder: Path) -> str:
        made_run(folder / "runs" / name, make_spec)
        return ""

    def evidence(path: Path, _said: str) -> Evidence:
        (row,) = (row for row in ROWS if path.name.endswith(f"-{row.name}"))
        return replace(good, codes=(1,) if row.name in broken else row.codes, pauses_s=(2.0,) * (len(row.codes) - 1))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launch.drill._submit", submit)
    monkeypatch.setattr("launch.drill.gather", evidence)
    assert main(["drill", "--json", "--name", "d"]) == 1
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert [row["row"] for row in told["rows"] if not row["passed"]] == ["hang"]
    assert told["num_failed"] == 1
    hang = next(row for row in told["rows"] if row["row"] == "hang")
    assert (hang["run"], hang["path"], hang["codes"]) == ("d-hang", str(tmp_path / "runs" / "d-hang"), [1])
    assert hang["problems"][0].startswith("its attempts ended with 1; they must with 12 then 0")
    assert "5 of 6 rows passed" in said.err
    broken.add("undisturbed")
    assert main(["drill", "--json", "--name", "e"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert "`python -m launch status e-undisturbed`" in told["error"]
    assert [row["row"] for row in told["rows"]] == ["undisturbed"]


def test_the_evidence_is_read_from_the_run_directory(tmp_path: Path) -> None:
    for number, (code, ended_at) in enumerate([(11, 100.0), (0, 160.0)]):
        folder = tmp_path / "exit" / str(number)
        folder.mkdir(parents=True)
        write_json(folder / "attempt.json", {"began_at": ended_at - 57.5})
        write_json(folder / "end.json", {"own_code": code, "ended_at": ended_at, "reason": f"because {number}"})
    write_json(tmp_path / "training_log.json", [{"type": "train", "step": 1, "loss": 0.1}, {"type": "summary"}])  # type: ignore[arg-type]
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    found = gather(tmp_path)
    assert (found.codes, found.pauses_s, found.losses, found.said) == ((11, 0), (2.5,), {1: 0.1}, "because 1")
    assert list(found.weights) == ["model.safetensors"]


@pytest.mark.soak
@pytest.mark.ranks
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("words", "code", "said"), [([], 0, "6 of 6 rows passed"), (["--chain", "none"], 1, "launch.chain is none")]
)
def test_a_drill_on_this_machine(words: list[str], code: int, said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launch", "drill", "--executor", "local", "--nodes", "2", "--name", "d", *words]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert (result.returncode, said in result.stdout) == (code, True), result.stdout + result.stderr
