"""resubmit, clean, attach, tensorboard, completion: on hand-made runs, with stand-ins for what they start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from made_runs import calls, end_run, made_run, stand_in, write

from launch import options, runs
from launch.__main__ import main
from launch.claims import latest_claim, make_claim
from launch.errors import LaunchError, LockedError
from launch.runs import Run
from launch.site import Container
from launch.spec import ROOT, JobSpec
from launch.verbs import clean
from launch.verbs.completion import words_for
from launch.verbs.resubmit import anew, free_name
from launch.verbs.tensorboard import link

MakeSpec = Callable[..., JobSpec]


@pytest.fixture
def run(tmp_path: Path, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of which squeue knows nothing."""
    monkeypatch.chdir(tmp_path)
    stand_in(tmp_path / "bin", "squeue", f"cat {tmp_path}/jobs")
    (tmp_path / "jobs").write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "probe.py").write_text("")
    script = {"script": str(tmp_path / "probe.py"), "working_dir": str(tmp_path), "python": sys.executable}
    return made_run(tmp_path / "runs" / "demo", make_spec, **script)


# --- resubmit


def test_a_new_run_has_the_settings_of_the_old_one(make_spec: MakeSpec) -> None:
    old = make_spec(
        script_args=("--config", "a.yaml", "--output_dir", "/shared/runs/demo", "--seed=1", "--bf16", "true"),
        resume_args=("--learning_rate", "2e-5", "--resume_override", "[learning_rate]", "--accept_data_change", "true"),
    )
    new = anew(old, "demo-2", ["--seed", "4", "--save-steps=9"])
    assert (new.name, new.run_dir, new.resume_args) == ("demo-2", "/shared/runs/demo-2", ())
    assert new.script_args == (
        "--config", "a.yaml", "--output_dir", "/shared/runs/demo-2", "--bf16", "true", "--learning_rate", "2e-5",
        "--seed", "4", "--save-steps=9",
    )  # fmt: skip
    assert new.resources == old.resources


def test_names_of_new_runs(tmp_path: Path) -> None:
    for name in ("demo", "demo-2", "demo-3", "x-20261121-101500"):
        (tmp_path / name).mkdir()
    names = [free_name(tmp_path / name) for name in ("demo", "demo-2", "x-20261121-101500")]
    assert names == ["demo-4", "demo-4", "x-20261121-101500-2"]


def test_a_number_that_is_part_of_the_name_stays(tmp_path: Path) -> None:
    for name in ("seed-1", "seed-2", "seed-3"):
        (tmp_path / name).mkdir()
    assert free_name(tmp_path / "seed-3") == "seed-3-2"
    (tmp_path / "seed-3-2").mkdir()
    assert free_name(tmp_path / "seed-3-2") == "seed-3-3"


def test_resubmit_shows_and_refuses_as_submit_does(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in(run.path.parents[1] / "bin", "sinfo", "echo 'cpu|cpu*|4|(null)|8|infinite'")
    assert main(["resubmit", "demo", "--dry-run", "--nodes", "3", "--", "--x", "1"]) == 0
    plan = capsys.readouterr().out
    assert plan.startswith(f"# run directory: {run.path.parent}/demo-2\n")
    assert "#SBATCH --nodes=3\n" in plan
    assert plan.endswith("--x 1\n")
    assert main(["resubmit", "demo", "--dry-run", "--nodes", "5"]) == 2
    assert "nodes is 5; it must be at most 4, the nodes of partition 'cpu'" in capsys.readouterr().err
    assert main(["resubmit", "demo", "--dry-run", "--name", "demo"]) == 2
    assert "Choose another --name." in capsys.readouterr().err
    assert os.listdir(run.path.parent) == ["demo"]


# --- clean


def checkpoints(run: Run, *names: str) -> None:
    for name in names:
        write(run.path / "checkpoints" / name / "part-0.safetensors", "x" * 2000)


def test_a_run_that_lives_or_may_live_stays(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("PENDING|Priority|N/A", "RUNNING|None|N/A"):
        (run.path.parents[1] / "jobs").write_text(f"7|7|{line}\n")
        assert main(["clean", "demo", "--yes"]) == 16
        assert "it must have ended to be removed" in capsys.readouterr().err
    stand_in(run.path.parents[1] / "bin", "squeue", "echo away >&2; exit 1")
    assert main(["clean", "demo", "--yes"]) == 16
    assert main(["clean", "--older-than", "0", "--yes"]) == 0
    assert (run.path / "job.json").exists()


def test_it_is_shown_first_and_removed_when_that_is_confirmed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    end_run(run, 42)
    checkpoints(run, "step-00000010")
    assert main(["clean", "demo"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].split()[2] == "FAILED"
    assert f"the run of {run.path}\n" in shown
    assert shown.endswith("nothing was removed; --yes removes it\n")
    assert run.path.exists()
    assert main(["clean", "demo", "--yes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["is_removed"], [row["paths"] for row in told["runs"]]) == (True, [[str(run.path)]])
    assert os.listdir(run.path.parent) == []


@pytest.mark.parametrize(
    ("code", "left"), [(42, ["step-00000020"]), (0, [])], ids=["a run that can go on", "a complete run"]
)
def test_only_checkpoints(run: Run, code: int, left: list[str]) -> None:
    end_run(run, code)
    checkpoints(run, "step-00000010", "step-00000020", "step-00000030.tmp-abc", "step-00000015.aside-3")
    (run.path / "model.safetensors").write_text("")
    before = latest_claim(run.path)
    assert main(["clean", "demo", "--checkpoints", "--yes"]) == 0
    assert os.listdir(run.path / "checkpoints") == left
    assert (run.path / "model.safetensors").exists()
    assert latest_claim(run.path) == before


def test_by_state_and_age(tmp_path: Path, run: Run, make_spec: MakeSpec, capsys: pytest.CaptureFixture[str]) -> None:
    made = {"old": made_run(tmp_path / "a" / "old", make_spec), "new": made_run(tmp_path / "a" / "new", make_spec)}
    for name, other in made.items():
        end_run(other, 42)
        runs.register(runs.registry_path(os.environ), other.path, name, "7")
    ten_days_ago = time.time() - 10 * 86400
    for path in made["old"].path.rglob("*"):
        os.utime(path, (ten_days_ago, ten_days_ago))
    assert main(["clean", "--older-than", "9", "--state", "failed", "--yes"]) == 0
    assert os.listdir(tmp_path / "a") == ["new"]
    assert main(["clean", "--state", "COMPLETED", "--yes"]) == 0
    assert os.listdir(tmp_path / "a") == ["new"]
    assert main(["clean", "--state", "FAILED,COMPLETE", "--yes"]) == 2
    assert "--state is 'COMPLETE'; it must be one of PENDING, RUNNING, COMPLETED," in capsys.readouterr().err
    assert main(["clean"]) == 2
    assert "no run is named" in capsys.readouterr().err


def test_a_run_directory_that_holds_something_else_stays(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    end_run(run)
    (run.path / ".git").mkdir()
    assert main(["clean", "demo", "--yes"]) == 2
    assert "is a git repository" in capsys.readouterr().err
    shutil.rmtree(run.path / ".git")
    write(run.path / "job.json", run.job | {"config": str(run.path / "run.yaml")})
    assert main(["clean", "demo", "--yes"]) == 2
    assert "run.yaml, which is not of the run" in capsys.readouterr().err
    assert run.path.exists()


def test_a_run_that_is_resumed_meanwhile_stays(run: Run) -> None:
    end_run(run, 42)
    item = clean.Item(run, "FAILED", -1, (run.path,), 0, 0.0)
    assert make_claim(run.path, 0) is not None
    with pytest.raises(LockedError, match="has just been resumed"):
        clean.remove(item)
    assert run.path.exists()


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB")],
)
def test_sizes(num_bytes: int, words: str) -> None:
    assert clean.size(num_bytes) == words


# --- finding


def test_a_run_is_found_by_the_ids_of_all_its_jobs(tmp_path: Path, make_spec: MakeSpec) -> None:
    """Successors are submitted by jobs, not by a command, and stand in no list."""
    made = {name: made_run(tmp_path / name, make_spec, chain="singleton") for name in ("one", "two")}
    registry = runs.registry_path(os.environ)
    for number, (name, made_one) in enumerate(made.items()):
        runs.register(registry, made_one.path, name, str(70 + number))
        write(
            made_one.path / "exit" / "0" / "attempt.json", {"job_id": str(70 + number), "successor": str(80 + number)}
        )
    write(made["one"].path / "exit" / "1" / "attempt.json", {"job_id": "80", "successor": "90"})
    found = {job_id: runs.find(job_id, registry, tmp_path / "elsewhere").name for job_id in ("70", "80", "90", "81")}
    assert found == {"70": "one", "80": "one", "90": "one", "81": "two"}
    with pytest.raises(LaunchError, match="RUN is '91'; it must be a run's name, job id or directory"):
        runs.find("91", registry, tmp_path / "elsewhere")


# --- attach


def test_a_command_inside_the_job(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    folder = run.path.parents[1]
    (folder / "jobs").write_text("RUNNING|None|N/A\n")
    write(run.path / "exit" / "0" / "here-1.json", {"host": "n2"})
    stand_in(folder / "bin", "srun", 'printf "%s\\n" "$@"; env | grep -E "CLEANSFT|TOKEN"')
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "launch", "attach", "demo", "--node", "1", "--", "nvidia-smi", "a b"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=folder)
    words, variables = done.stdout.splitlines()[:9], set(done.stdout.splitlines()[9:])
    assert words == [
        "--jobid=7", "--overlap", "--nodes=1", "--ntasks=1", "--nodelist=n2", f"--chdir={folder}", "nvidia-smi", "a b",
        *words[8:],
    ]  # fmt: skip
    seen = {*words[8:], *variables}
    assert {"TOKEN=a,b c", "CLEANSFT_NODE_RANK=1", "CLEANSFT_ATTEMPT=0", f"CLEANSFT_RUN_DIR={run.path}"} <= seen
    assert main(["attach", "demo", "--node", "0"]) == 2
    assert main(["attach", "demo", "--node", "2"]) == 2
    said = capfd.readouterr().err
    assert "node 0 of demo has not begun" in said
    assert "--node is 2; it must be 0 to 1." in said


def test_a_run_that_has_ended_cannot_be_attached_to(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    end_run(run)
    assert main(["attach", "demo"]) == 2
    assert "demo is COMPLETED; it must be RUNNING to be attached to." in capsys.readouterr().err


def test_a_command_inside_the_container_of_the_job(run: Run, make_spec: MakeSpec) -> None:
    folder = run.path.parents[1]
    (folder / "jobs").write_text("RUNNING|None|N/A\n")
    changes = {"container": Container("apptainer", "/i.sif"), "working_dir": str(folder), "run_dir": str(run.path)}
    write(run.path / "job.json", make_spec(**changes).to_json())
    write(run.path / "exit" / "0" / "attempt.json", {"job_id": "7"})
    write(run.path / "exit" / "0" / "here-0.json", {"host": "n1"})
    stand_in(folder / "bin", "srun", 'printf "%s\\n" "$@"')
    environment = os.environ | {"PYTHONPATH": str(ROOT), "SHELL": "/opt/bin/fish"}
    command = [sys.executable, "-m", "launch", "attach", "demo"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=folder)
    words = done.stdout.splitlines()
    assert words[6:10] == [f"--chdir={folder}", "apptainer", "exec", words[9]]
    assert words[9].startswith("--bind=")
    assert words[-3:] == ["/i.sif", "/bin/bash", "-i"]  # an image need not have this user's shell


# --- tensorboard


def test_the_curves_of_runs_of_one_name_stand_side_by_side(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "demo" for folder in ("a", "b")]
    for path in paths:
        (path / "tensorboard").mkdir(parents=True)
    (tmp_path / "links").mkdir()
    link(paths, tmp_path / "links")
    assert sorted(os.listdir(tmp_path / "links")) == ["demo", "demo-2"]
    with pytest.raises(LaunchError, match="tensorboard is missing; it must be written by the run"):
        link([tmp_path], tmp_path / "links")


@pytest.mark.ranks
def test_tensorboard_serves_the_runs_here_alone(run: Run, tmp_path: Path) -> None:
    made = (
        "import sys; from torch.utils.tensorboard import SummaryWriter\n"
        "for path in sys.argv[1:]:\n    w = SummaryWriter(path); w.add_scalar('train/loss', 1.0, 1); w.close()"
    )
    other = tmp_path / "runs" / "other"
    shutil.copytree(run.path, other)
    subprocess.run([sys.executable, "-c", made, *(f"{path}/tensorboard" for path in (run.path, other))], check=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "launch", "tensorboard", "demo", "other", "--json"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            assert server.stdout is not None
            told = json.loads(server.stdout.readline())
            address = f"http://127.0.0.1:{told['port']}/data/runs"
            assert told["tunnel"].startswith(f"ssh -N -L {told['port']}:127.0.0.1:{told['port']} ")
            found: list[str] = []
            deadline = time.monotonic() + 60
            while sorted(found) != ["demo", "other"] and time.monotonic() < deadline:
                time.sleep(0.5)
                try:
                    with urllib.request.urlopen(address, timeout=5) as answer:
                        found = json.load(answer)
                except OSError:
                    continue
            assert sorted(found) == ["demo", "other"]
        finally:
            server.terminate()
    assert server.wait(timeout=20) == 0


@pytest.mark.ranks
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_tensorboard_is_left_of_one_that_is_ended_as_it_starts(
    run: Run, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run.path / "tensorboard").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-m", "launch", "tensorboard", "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        server.stdout.readline()
        time.sleep(0.003)  # somewhere around the start of the server
        server.send_signal(number)
        server.stdout.read()  # whoever holds the pipe lives


# --- completion


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["st"], ["stages", "status"]),
        (["status", "de"], ["demo"]),
        (["status", ""], ["demo", "other"]),
        (["logs", "--fo"], ["--follow"]),
        (["logs", "--rank", ""], []),
        (["logs", "-f", "o"], ["other"]),
        (["submit", "--con"], ["--config", "--constraint"]),
        (["submit", ""], []),
        (["submit", "--", "--con"], []),
        (["completion", "z"], ["zsh"]),
        (["nonsense", ""], []),
    ],
)
def test_what_could_stand_there(typed: list[str], expected: list[str]) -> None:
    assert sorted(words_for(typed, lambda: ["demo", "other"])) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_s_code(run: Run, capsys: pytest.CaptureFixture[str], shell: str) -> None:
    """bash completes a command, an option and a run with it; zsh and fish read it, where they are installed."""
    assert main(["completion", shell]) == 0
    code = capsys.readouterr().out
    assert "launch completion words" in code
    if shutil.which(shell) is None:
        assert shell != "bash"
        return
    if shell != "bash":
        subprocess.run([shell, "-n"], input=code, text=True, check=True)
        return
    ask = "\n".join(
        f'COMP_WORDS=(launch {words}); COMP_CWORD={number}; _launch_words; echo "${{COMPREPLY[*]}}"'
        for words, number in (("stat", 1), ("logs --fol", 2), ("status de", 2), ("status ''", 2))
    )
    done = subprocess.run(["bash", "-c", f"{code}\n{ask}"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["status", "--follow", "demo", "demo"]


# --- all commands


@pytest.mark.parametrize("verb", options.VERBS)
def test_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"example:\n  python -m launch {verb}" in text
    assert "--json" in text


@pytest.mark.parametrize("verb", options.VERBS)
def test_every_command_has_a_module_and_needs_nothing_heavy(verb: str) -> None:
    """By the modules that are loaded, not by the time that it takes."""
    code = (
        f"import sys\nimport launch.verbs.{verb} as verb\nassert callable(verb.run)\n"
        "heavy = {'torch', 'deepspeed', 'transformers', 'sft', 'numpy', 'submitit', 'tensorboard'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


def test_commands_that_look_read_no_settings() -> None:
    """`status` and its like answer without the parser of settings files."""
    for verb in ("list", "status", "logs", "wait", "cancel", "top", "clean"):
        code = f"import sys, launch.verbs.{verb}\nassert not {{'yaml', 'strict_settings'}} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)


def test_the_words_that_squeue_gets(run: Run) -> None:
    assert main(["status", "demo"]) == 0
    assert calls(run.path.parents[1] / "bin", "squeue")[0] == "-h -t all -r -j 7 -o %T|%r|%S"
