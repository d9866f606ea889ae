"""`python -m launch`: refusals, dry run, imports, and with how little they start. No job is started."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.errors import EXIT_CODES, KILLED, STORAGE
from launch.options import VERBS
from launch.spec import ROOT

HEAVY = ("torch", "deepspeed", "transformers", "sft", "numpy")


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "launch", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "probe.py"
    path.write_text("")
    return path


def test_help_names_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(meaning.split(":")[0][:30] in text for meaning in EXIT_CODES.values())


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["submit", "--executor", "local", "--nodes", "2", "--script", "probe.py", "--dry-run"],
    ],
)
def test_no_heavy_import(probe: Path, words: list[str]) -> None:
    code = (
        "import sys\nfrom launch.__main__ import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "light = [name for name in ('yaml', 'submitit') if sys.argv[1] == '--help' and name in sys.modules]\n"
        "sys.exit(f'imported: {heavy + light}' if heavy + light else 0)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=probe.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


COUNTING = """
import os, sys
before, children = set(sys.modules), []
sys.addaudithook(lambda event, _: children.append(event) if event == "subprocess.Popen" else None)
from launch.__main__ import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(len(set(sys.modules) - before), len(children), file=sys.stderr)
"""
"""Runs a command; the last line on standard error is how many modules it loaded and how many processes it started."""


@pytest.mark.parametrize(
    ("words", "modules", "processes"),
    [
        (["--help"], 55, 0),
        (["list"], 145, 0),
        (["submit", "--executor", "local", "--nodes", "2", "--script", "probe.py", "--dry-run"], 225, 0),
        (["submit", "--executor", "local", "--nodes", "2", "--dry-run"], 225, 1),  # sft/train.py checks itself
    ],
)
def test_a_command_starts_with_little(probe: Path, words: list[str], modules: int, processes: int) -> None:
    """What a command's start costs, told in what can be counted; benchmarks/command_line.py has the times."""
    result = subprocess.run(
        [sys.executable, "-c", COUNTING, *words],
        cwd=probe.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded, started = map(int, result.stderr.splitlines()[-1].split())
    assert loaded <= modules
    assert started <= processes


def test_arrows() -> None:
    """No heavy import stands anywhere in launch, and submitit only in cluster.py."""
    imported: dict[str, set[str]] = {}
    for path in (ROOT / "launch").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                imported.setdefault(name.split(".")[0], set()).add(path.name)
    assert not imported.keys() & set(HEAVY)
    assert imported["submitit"] == {"cluster.py"}


def test_dry_run_leaves_nothing(probe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--executor", "local", "--nodes", "2", "--script", "probe.py", "--dry-run", "--", "--x", "a b"]
    for verb in ("submit", "run"):
        assert main([verb, *words]) == 0
        assert capsys.readouterr().out.endswith("probe.py --x 'a b'\n")
    assert os.listdir(probe.parent) == ["probe.py"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["submit", "--script", "probe.py", "--nodes", "010"], "--nodes: nodes is '010'"),
        (["submit", "--script", "none.py", "--executor", "local"], "script is"),
        (["status", "nothing"], "RUN is 'nothing'"),
        (["wait"], "there is no run yet"),
        (
            ["status", "--", "x"],
            "only `submit`, `run`, `print`, `resubmit`, `attach`, `sweep`, `drill` and `completion` pass words on",
        ),
        (["submit", "--config", "none.yaml"], "none.yaml"),
        (["submit", "--script", "probe.py", "--executor", "local", "--gpus-per-node", "99"], "gpus_per_node is 99; it"),
    ],
)
def test_refusals(probe: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert [line for line in error.splitlines() if line.lower().startswith("error")] == [error.splitlines()[0]]
    assert error.startswith("error: ")
    assert os.listdir(probe.parent) == ["probe.py"]


@pytest.mark.parametrize(
    "words", [[], ["submti"], ["submit", "--node", "2"], ["submit", "stray"], ["status", "a", "b"]]
)
def test_unknown_words(words: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(words)
    assert error.value.code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["submit", "--nodse", "2"],
            "the option --nodse is unknown; it must be a known option. Did you mean '--nodes'? Those of the training",
        ),
        (["submit", "--nodse=2"], "the option --nodse is unknown; it must be a known option. Did you mean '--nodes'?"),
        (
            ["submit", "--learning_rate", "1"],
            "the option --learning_rate is unknown; it must be a known option. Those of",
        ),
        (["submit", "stray"], "the word is 'stray'; it must belong to an option."),
        (["doctor", "--snapshot"], "the option --snapshot is unknown; it must be a known option."),
        (["doctor", "--skip-audit"], "the option --skip-audit is unknown; it must be a known option."),
        (["status", "--nodes", "2"], "the option --nodes is unknown; it must be a known option.\n"),
        (
            ["stauts"],
            "COMMAND is 'stauts'; it must be one of submit, run, print, list, status, logs, top, cancel, wait, resume, "
            "resubmit, attach, tensorboard, clean, sweep, stages, profiles, drill, doctor, completion. "
            "Did you mean 'status'?",
        ),
    ],
)
def test_unknown_words_are_told_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert len(error.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--json"], "unrecognized arguments: --json"),
        (["submti", "--json"], "COMMAND is 'submti'; it must be one of"),
        (["submit", "--json", "--nodse", "2"], "the option --nodse is unknown; it must be a known option."),
        (["status", "a", "b", "--json"], "the word is 'b'; it must belong to an option."),
        (["top", "--interval-s", "soon", "--json"], "argument --interval-s: invalid float value: 'soon'"),
    ],
)
def test_with_json_a_refusal_of_words_is_json_too(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main(words)
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert (error.value.code, told["code"], told["version"]) == (2, 2, 1)
    assert told["error"].startswith(message)
    assert said.err.startswith(f"error: {message}")


def test_every_code_of_the_launcher_is_documented() -> None:
    """In the help and in docs/exit-codes.md, as a code of the launcher."""
    rows = [line.split("|")[1:3] for line in (ROOT / "docs" / "exit-codes.md").read_text().splitlines() if "|" in line]
    documented = {int(code) for code, who in rows if code.strip().isdigit() and who.strip() in ("launcher", "both")}
    assert {STORAGE, *EXIT_CODES} <= documented
    assert documented - {3, KILLED} <= EXIT_CODES.keys()  # the audit's refusal, and death by SIGKILL: 128 + 9


def test_every_command_is_in_the_table_of_json() -> None:
    table = (ROOT / "docs" / "launcher.md").read_text().partition("## JSON")[2]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {word.strip("` ").split()[0] for row in rows for word in row.split(",")}
    assert named >= set(VERBS)


def test_slurm_that_does_not_answer(
    probe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(probe.parent))
    assert main(["submit", "--script", "probe.py", "--executor", "slurm"]) == 2
    assert "sbatch is not on PATH" in capsys.readouterr().err
    assert main(["submit", "--script", "probe.py", "--dry-run"]) == 0
    assert "No Slurm here (sbatch is not on PATH)" in capsys.readouterr().err


def test_the_trainers_own_check_is_passed_on(probe: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("learning_rat: 1e-5\n")
    result = run("submit", "--executor", "local", "--config", "run.yaml", "--name", "x", cwd=tmp_path)
    assert result.returncode == 2
    assert "learning_rat" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_failed_submission_leaves_no_directory(
    probe: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bin_dir = probe.parent / "bin"
    bin_dir.mkdir()
    for name, text in {
        "sinfo": "echo 'cpu|cpu*|2|(null)|8|infinite'",
        "srun": "exit 0",
        "sbatch": "case $* in *--test-only*) echo 'sbatch: Job 7 to start at 2026-11-21T15:50:00' >&2; exit 0;; esac\n"
        "echo 'sbatch: error: Batch job submission failed: Invalid qos' >&2; exit 1",
    }.items():
        (bin_dir / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_dir / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_dir}:/usr/bin:/bin")
    assert main(["submit", "--script", "probe.py", "--executor", "slurm", "--name", "x"]) == 2
    assert capfd.readouterr().err.count("Invalid qos") == 1
    assert os.listdir(probe.parent / "runs") == []


def test_a_check_that_does_not_end_is_a_refusal(
    probe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("launch.submit.CHECK_TIMEOUT_S", 0.001)
    assert main(["submit", "--executor", "local"]) == 2
    error = capsys.readouterr().err
    assert "--check did not end within 0.001 s; it must." in error
    assert "Traceback" not in error
    assert not (probe.parent / "runs").exists()


def test_a_python_that_does_not_start_is_a_refusal(probe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--script", "probe.py"]):
        assert main(["submit", "--executor", "local", "--python", "/none/python", *words]) == 2
        assert "python is '/none/python'; it must be a program that starts" in capsys.readouterr().err
    assert not (probe.parent / "runs").exists()


def test_job_json_is_plain_and_private(probe: Path) -> None:
    """Through a stand-in for sbatch: the script it is given is submit.sh, and job.json holds every default."""
    bin_dir = probe.parent / "bin"
    bin_dir.mkdir()
    for name, text in {
        "sinfo": "echo 'cpu|cpu*|2|(null)|8|infinite'",
        "srun": "exit 0",
        "scontrol": "exit 1",  # a real one would look for its controller for 15 s
        "sbatch": 'for script; do :; done; cp "$script" given.sh; env > given.env; echo Submitted batch job 77',
    }.items():
        (bin_dir / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_dir / name).chmod(0o755)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{bin_dir}:/usr/bin:/bin",
        "SLURM_NTASKS": "9",
        "RANK": "3",
        "SLURM_CONF": "/c",
    }
    words = ["submit", "--script", "probe.py", "--name", "x", "--nodes", "2", "--env", "TOKEN=a b"]
    for dry in (True, False):
        command = [sys.executable, "-m", "launch", *words, *(["--dry-run"] if dry else [])]
        result = subprocess.run(command, cwd=probe.parent, env=environment, capture_output=True, text=True, check=True)
        if dry:
            plan = result.stdout
    folder = probe.parent / "runs" / "x"
    assert (folder / "plan.txt").read_text() == plan
    assert (probe.parent / "given.sh").read_text() == (folder / "submit.sh").read_text()
    assert (folder / "submit.sh").read_text() in plan
    given = dict(line.split("=", 1) for line in (probe.parent / "given.env").read_text().splitlines() if "=" in line)
    assert given["SLURM_CONF"] == "/c"
    assert "SLURM_NTASKS" not in given
    assert "RANK" not in given
    job = json.loads((folder / "job.json").read_text())
    assert (job["env"], job["resources"]["cpus_per_task"]) == ({"TOKEN": "a b"}, 1)
    assert oct(folder.stat().st_mode)[-3:] == "700"
    assert oct((folder / "job.json").stat().st_mode)[-3:] == "600"
    assert "job      77" in result.stdout
