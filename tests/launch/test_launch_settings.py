"""Settings: where they come from, which wins, and what is said about mistakes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from launch import settings, spec
from launch.settings import Request
from strict_settings import SettingsError


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a script in it."""
    folder = tmp_path / "my work"
    folder.mkdir()
    (folder / "train.py").write_text("")
    return folder


def resolve(work: Path, request: Request, executor: str = "local") -> spec.JobSpec:
    return settings.resolve(settings.read(request, work, work / "home"), executor, work)  # type: ignore[arg-type]


def refusal(work: Path, request: Request) -> str:
    with pytest.raises(SettingsError) as error:
        resolve(work, request)
    assert error.value.exit_code == 2
    return str(error.value)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_order_default_profile_file_flags(work: Path) -> None:
    write(work / "slurm/profiles/big.yaml", "nodes: 4\nprocs_per_node: 8\npartition: h100\nenv: {A: '1', B: '1'}\n")
    write(work / "run.yaml", "learning_rate: 1e-5\nlaunch:\n  nodes: 3\n  env: {B: '2', C: '2'}\n")
    request = Request(
        config="run.yaml", profile="big", name="x", options=("--script=train.py", "--nodes=2"), env=("C=3", "D=a=b,c\n")
    )
    job = resolve(work, request)
    assert (job.resources.nodes, job.procs_per_node, job.resources.partition) == (2, 8, "h100")
    assert job.env == {"A": "1", "B": "2", "C": "3", "D": "a=b,c\n"}


def test_own_script_is_told_file_and_directory(work: Path) -> None:
    write(work / "run.yaml", "launch: {zero: 2}\n")
    job = resolve(work, Request(config="run.yaml", name="x", script_args=("--seed", "1")))
    zero = str(spec.ROOT / "ds_configs/zero2.json")
    expected = ["--config", str(work / "run.yaml"), "--output_dir", str(work / "runs/x"), "--deepspeed", zero]
    assert job.script_args == (*expected, "--seed", "1")
    assert job.script == str(spec.DEFAULT_SCRIPT)


def test_quick_start_is_the_default(work: Path) -> None:
    job = resolve(work, Request())
    assert job.config == str(spec.QUICKSTART_CONFIG)
    assert job.name.startswith("quickstart-")


def test_other_scripts_get_their_own_words_only(work: Path) -> None:
    job = resolve(work, Request(options=("--script=train.py",), script_args=("a b", "")))
    assert job.script_args == ("a b", "")
    assert job.config is None


def test_gpus_give_the_number_of_ranks(work: Path) -> None:
    job = resolve(work, Request(options=("--script=train.py", "--gpus-per-node=4")), "slurm")
    assert (job.procs_per_node, job.cpus_per_task) == (4, 4)


def test_names(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda _: "20260102-030405")
    assert resolve(work, Request(options=("--script=train.py",))).name == "train-20260102-030405"
    (work / "runs/train-20260102-030405").mkdir(parents=True)
    assert resolve(work, Request(options=("--script=train.py",))).name == "train-20260102-030405-2"
    write(work / "run.yaml", "run_name: lucky\noutput_dir: out/dir\n")
    job = resolve(work, Request(config="run.yaml"))
    assert (job.name, job.run_dir) == ("lucky", str(work / "out/dir"))
    assert resolve(work, Request(config="run.yaml", name="other")).run_dir == str(work / "runs/other")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("launch:\n  nods: 2\n", ["run.yaml:2", "nods", "Did you mean 'nodes'?"]),
        ("launch:\n  nodes: 010\n", ["run.yaml:2", "nodes is '010'", "without leading zero"]),
        ("launch:\n  nodes: 0\n", ["run.yaml:2", "nodes is 0", "at least 1"]),
        ("launch:\n  nodes: 2\n  nodes: 3\n", ["run.yaml:3", "given twice", "run.yaml:2"]),
        ("launch:\n  nodes: two\n", ["run.yaml:2", "whole number"]),
        ("launch: 2\n", ["run.yaml:1", "launch is 2", "be a mapping"]),
        ("launch:\n  launcher: torchrn\n", ["run.yaml:2", "torchrun, deepspeed"]),
        ("launch:\n  zero: 4\n", ["run.yaml:2", "0, 1, 2, 3"]),
        ("launch:\n  env: {OMP_NUM_THREADS: 4}\n", ["run.yaml:2", "env.OMP_NUM_THREADS is 4", "in quotes"]),
        ("launch:\n  env: {RANK: '4'}\n", ["env.RANK", "The launcher sets it"]),
        ("launch:\n  fsdp: true\n  zero: 2\n", ["fsdp", "together with zero"]),
        ("launch:\n  partition: a b\n", ["partition is 'a b'", "one word"]),
        ("run_name: 7\n", ["run.yaml:1", "run_name is 7", "in quotes"]),
        ("run_name: a b\noutput_dir: o\n", ["the run's name", "'a b'"]),
    ],
)
def test_bad_files(work: Path, text: str, parts: list[str]) -> None:
    write(work / "run.yaml", text)
    message = refusal(work, Request(config="run.yaml"))
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("request_", "parts"),
    [
        (Request(config="missing.yaml"), ["missing.yaml", "be a file that can be read"]),
        (Request(options=("--script=missing.py",)), ["script is", "missing.py", "be a file"]),
        (Request(options=("--nodes=010",)), ["--nodes", "'010'"]),
        (Request(options=("--nodes=1.5",)), ["--nodes", "1.5", "whole number"]),
        (Request(options=("--executor=cloud",)), ["--executor", "auto, slurm, local"]),
        (Request(profile="nope"), ["--profile", "'nope'"]),
        (Request(env=("A",)), ["--env", "NAME=VALUE"]),
        (Request(env=("A=1", "A=2")), ["--env A", "be given once"]),
        (Request(name="../x"), ["the run's name", "'../x'"]),
        (Request(name="x", options=("--runs-dir=/proc/runs",)), ["the run directory", "be writable"]),
        (Request(name="x", options=("--runs-dir=train.py",)), ["the run directory", "is a file"]),
        (Request(name="x", options=("--runs-dir=50%j",)), ["the run directory", "Slurm rewrites"]),
    ],
)
def test_bad_requests(work: Path, request_: Request, parts: list[str]) -> None:
    message = refusal(work, request_)
    assert all(part in message for part in parts), message
    assert sorted(os.listdir(work)) == ["train.py"]


def test_all_problems_in_one_message(work: Path) -> None:
    write(work / "run.yaml", "launch:\n  nods: 2\n  zero: 9\n")
    message = refusal(work, Request(config="run.yaml", options=("--cpus-per-task=0",), env=("A",)))
    assert len(message.splitlines()) == 4


def test_profiles_of_the_user_and_suggestion(work: Path) -> None:
    write(work / "home/.config/cleansft/profiles/a100.yaml", "gpus_per_node: 8\n")
    script = ("--script=train.py",)
    assert resolve(work, Request(profile="a100", name="x", options=script)).procs_per_node == 8
    assert "'a100'" in refusal(work, Request(profile="a10", name="x", options=script))


def test_directory_with_a_submission_is_taken(work: Path) -> None:
    write(work / "runs/x/job.json", "{}")
    assert "Choose another --name" in refusal(work, Request(name="x"))


@pytest.mark.parametrize(
    ("launch", "lead_s", "grace_s"),
    [
        ("{}", 120, 180.0),
        ("{time_min: 60}", 120, 180.0),
        ("{time_min: 3}", 60, 120.0),
        ("{signal_lead_s: 300, time_min: 60}", 300, 360.0),
        ("{stop_grace_s: 120, time_min: 60}", 120, 120.0),
        ("{stop_grace_s: 5}", 120, 5.0),  # without a time limit nobody else waits
    ],
)
def test_ranks_have_as_long_to_save_as_the_job_has(work: Path, launch: str, lead_s: int, grace_s: float) -> None:
    write(work / "run.yaml", f"launch: {launch}\n")
    job = resolve(work, Request(config="run.yaml"))
    assert (job.signal_lead_s, job.stop_grace_s) == (lead_s, grace_s)


def test_a_grace_that_ends_ranks_while_the_job_has_time_is_refused(work: Path) -> None:
    write(work / "run.yaml", "launch: {stop_grace_s: 60, time_min: 60}\n")
    told = refusal(work, Request(config="run.yaml"))
    assert "stop_grace_s is 60.0; it must be signal_lead_s (120 s) or more" in told
