"""slurm/*.sbatch: what slurm/generate.py writes, the launcher's own commands, and a chain that does what it says.

The chain is run with stand-ins for Slurm's commands and for Python: real ones are in tests/cluster.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from launch.command import NodeFacts, launcher_argv, node_environment
from launch.rendezvous import Rendezvous
from launch.spec import JobSpec, Resources

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("torchrun.sbatch", "deepspeed.sbatch", "chain.sbatch")


def generator() -> ModuleType:
    found = importlib.util.spec_from_file_location("generate", ROOT / "slurm" / "generate.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_files_are_what_is_generated() -> None:
    texts = generator().texts()
    assert tuple(texts) == NAMES
    assert {path.name for path in (ROOT / "slurm").glob("*.sbatch")} == set(NAMES)
    for name, text in texts.items():
        assert (ROOT / "slurm" / name).read_text() == text, "run: python slurm/generate.py"


@pytest.mark.parametrize("name", NAMES)
def test_they_are_bash_and_not_too_wide(name: str) -> None:
    text = (ROOT / "slurm" / name).read_text()
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("name", "launcher"), [("torchrun", "torchrun"), ("deepspeed", "deepspeed"), ("chain", "torchrun")]
)
def test_their_commands_are_the_launcher_s(name: str, launcher: str, tmp_path: Path) -> None:
    """By running the text for one node, with a Python that prints its words."""
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    text = (ROOT / "slurm" / f"{name}.sbatch").read_text()
    step = text[text.index("bash -c '") + len("bash -c '") : text.index(f'\' {launcher} "$@"')]
    variables = {
        "PYTHON": str(python), "SLURM_JOB_NUM_NODES": "4", "SLURM_NODEID": "3", "PROCS_PER_NODE": "8", "ZERO": "2",
        "SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "12345",
        "HOSTFILE_TEXT": "", "ON_RANK": "ranks run this",
    }  # fmt: skip
    environment = {**os.environ, **variables}
    done = subprocess.run(
        ["bash", "-c", step, launcher, "run.yaml", "--seed", "a b"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    spec = JobSpec(
        "demo",
        "/runs/demo",
        "slurm",
        launcher,
        Resources(4, 8),
        "",
        (),
        "/",
        str(python),  # type: ignore[arg-type]
    )
    *expected, _wrapper = launcher_argv(spec, Rendezvous("77.1", "10.0.0.1", "12345", 3, ()), "/logs")
    own = ("--hostfile=", "--log-dir=")  # files of a run directory, which these scripts have not
    words = [word for word in done.stdout.splitlines() if not word.startswith(own)]
    wanted = [word for word in expected[1:] if not word.startswith(own)]
    assert words[: len(wanted)] == wanted
    script = ["sft/train.py", "--config", "run.yaml", "--seed", "a b"]
    assert words[len(wanted) :] == {
        "torchrun": script,
        "deepspeed": [*script, "--deepspeed", "ds_configs/zero2.json"],
        "chain": ["--no-python", "bash", "-c", "ranks run this", "rank", "run.yaml", "--seed", "a b"],
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("cpus", "ranks"), [(None, 1), (1, 1), (8, 1), (8, 8), (7, 2), (3, 4), (64, 8)])
def test_threads_of_a_rank_are_those_of_the_launcher(name: str, cpus: int | None, ranks: int) -> None:
    text = (ROOT / "slurm" / name).read_text()
    start = text.index("export PROCS_PER_NODE=")
    lines = text[start : text.index("export PYTHON=")]
    given = {"PROCS_PER_NODE": str(ranks)} | ({} if cpus is None else {"SLURM_CPUS_PER_TASK": str(cpus)})
    done = subprocess.run(
        ["bash", "-euc", f'{lines}\necho "$OMP_NUM_THREADS"'],
        env={"PATH": "/usr/bin:/bin", **given}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    spec = JobSpec("x", "/x", "slurm", "torchrun", Resources(1, ranks, cpus_per_task=cpus), "", (), "/", "python")
    rendezvous = Rendezvous("7.0", "10.0.0.1", "12345", 0, ())
    launcher_s = node_environment(spec, rendezvous, "0", NodeFacts((), None, None))
    assert done.stdout.strip() == launcher_s["OMP_NUM_THREADS"]


# --- the chain

STAND_INS = {
    "scontrol": 'case "$1 $2" in "show hostnames") printf "n1\\nn2\\n";; "show node") echo "NodeAddr=10.0.0.1 X";;'
    ' *) echo "$@" >> scontrol.calls;; esac',
    "scancel": 'echo "$@" >> scancel.calls; touch told',
    "srun": 'while [ "$1" != bash ]; do shift; done; SLURM_NODEID=0 exec "$@"',
    # As torchrun two ranks one after the other, as the trainer what the file `ranks` says of each.
    "python": """if [ "$3" = torch.distributed.run ]; then
  while [ "$1" != bash ]; do shift; done
  for RANK in 0 1; do export RANK; "$@" || code=1; sleep 0.02; done
  exit ${code:-0}
fi
echo "$RANK $*" >> ranks.calls
eval "$(sed -n $((RANK + 1))p ranks)"
""",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with stand-ins; `ranks` has a line of shell for each rank."""
    for name, text in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "train.py").touch()
    (tmp_path / "run.yaml").touch()
    return tmp_path


def attempt(folder: Path, number: int, ranks: Sequence[str], step: int | None = None) -> subprocess.Popen[str]:
    """Begins an attempt in which the ranks do this, and a checkpoint of a step is written by then."""
    (folder / "ranks").write_text("\n".join(ranks))
    if step is not None:
        (folder / "out" / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    slurm = {"JOB_ID": "77", "JOB_NAME": "sft", "JOB_NUM_NODES": "2", "JOB_NODELIST": "n[1-2]"}
    environment = {f"SLURM_{name}": value for name, value in slurm.items()} | {"OUTPUT_DIR": "out"}
    environment |= {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "SLURM_RESTART_COUNT": str(number)}
    command = ["bash", str(ROOT / "slurm" / "chain.sbatch"), "run.yaml", "--max_steps", "3"]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    said = process.communicate(timeout=60)[0]
    return process.returncode, said.strip()


def requeues(folder: Path) -> int:
    calls = folder / "scontrol.calls"
    lines = calls.read_text().splitlines() if calls.exists() else []
    assert set(lines) <= {"requeue 77"}
    return len(lines)


def test_a_good_end_ends_the_chain(folder: Path) -> None:
    assert end(attempt(folder, 0, ["", ""])) == (0, "attempt 0 is done")
    assert requeues(folder) == 0
    words = "-u sft/train.py --config run.yaml --max_steps 3 --output_dir out"
    assert (folder / "ranks.calls").read_text().splitlines() == [f"0 {words}", f"1 {words}"]


def test_codes_that_an_earlier_job_has_left_do_not_count(folder: Path) -> None:
    """It had more ranks, in the same directory."""
    (folder / "out" / "codes").mkdir(parents=True)
    for name in ("0.0", "0.3"):
        (folder / "out" / "codes" / name).write_text("2\n")
    assert end(attempt(folder, 0, ["", ""])) == (0, "attempt 0 is done")


@pytest.mark.parametrize(
    ("ranks", "code", "again"),
    [
        (["exit 10", "exit 10"], 10, True),
        (["exit 11", "exit 137"], 137, True),
        (["exit 11", "exit 11"], 11, True),
        (["kill -KILL $PPID", "kill -KILL $PPID"], 143, True),
        (["exit 11", "exit 2"], 2, False),
        (["exit 3", "exit 11"], 3, False),
        (["exit 1", "exit 137"], 1, False),
        (["exit 0", "exit 15"], 15, False),
        (["exit 13", "exit 11"], 13, False),
    ],
)
def test_what_another_attempt_can_cure_goes_on(folder: Path, ranks: list[str], code: int, again: bool) -> None:
    """With the code of the rank that failed first; a rank that only followed another does not count."""
    ended, said = end(attempt(folder, 0, ranks))
    assert f"ended with code {code}" in said
    assert requeues(folder) == again
    assert again or ended == code


def test_three_attempts_without_a_newer_checkpoint_end_it(folder: Path) -> None:
    stops = ["exit 10", "exit 10"]
    for number, step in enumerate([None, None, 5, None, None]):
        assert "goes on from" in end(attempt(folder, number, stops, step))[1]
    code, said = end(attempt(folder, 5, stops))
    assert (code, requeues(folder)) == (93, 5)
    assert said.endswith("three attempts in a row brought no newer checkpoint")


def wait_until_told(folder: Path, process: subprocess.Popen[str], number: str) -> None:
    """Sends a signal to the batch shell once both ranks' loop has begun."""
    while not (folder / "ranks.calls").exists():
        assert process.poll() is None
    subprocess.run(["kill", f"-{number}", str(process.pid)], check=True)


def test_the_warning_of_a_time_limit_reaches_the_ranks(folder: Path) -> None:
    saves = "while [ ! -e told ]; do sleep 0.02; done; exit 10"
    process = attempt(folder, 0, [saves, "exit 10"])
    wait_until_told(folder, process, "USR1")
    assert "attempt 0 ended with code 10; it goes on from none" in end(process)[1]
    assert (folder / "scancel.calls").read_text() == "--signal=USR1 77\n"
    assert requeues(folder) == 1


def test_what_slurm_ends_is_not_put_back_by_the_script(folder: Path) -> None:
    """It is cancelled, or Slurm puts it back itself."""
    process = attempt(folder, 0, ["while [ ! -e told ]; do sleep 0.02; done; exit 10", "exit 10"])
    wait_until_told(folder, process, "TERM")
    (folder / "told").touch()
    code, said = end(process)
    assert (code, requeues(folder)) == (10, 0)
    assert "Slurm ends the job, or puts it back by itself" in said


def test_a_job_that_can_not_be_put_back_has_the_code_of_its_end(folder: Path) -> None:
    scontrol = folder / "bin" / "scontrol"
    scontrol.write_text(scontrol.read_text().replace('echo "$@" >> scontrol.calls', "exit 1"))
    assert end(attempt(folder, 0, ["exit 10", "exit 10"]))[0] == 10


def test_what_was_given_is_checked_first(folder: Path) -> None:
    for name in NAMES:
        command = ["bash", str(ROOT / "slurm" / name), "none.yaml"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert (done.returncode, "the settings file is 'none.yaml'" in done.stderr) == (2, True)
