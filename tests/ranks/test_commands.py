"""The commands of README.md, as people type them: in the clone, and from an installed wheel elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml
from tiny import QWEN3, TOKENIZER, losses, write_conversations

from sft.core_binding import own_share

pytestmark = pytest.mark.ranks
ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent
RUN_BY = {
    "make demo": "itself; the same submission by test_the_installed_wheel_…",
    "make test": "these tests",
    "python -m launch submit --nodes 2 --config run.yaml --dry-run": "test_launcher_commands",
    "python -m launch submit --nodes 2 --config run.yaml": "test_launcher_commands",
    "python -m launch status": "test_launcher_commands",
    "python -m launch logs -f": "test_launcher_commands",
    "python -m launch top": "test_launcher_commands",
    "python -m launch list": "test_launcher_commands",
    "python -m launch wait": "test_launcher_commands",
    "python -m launch cancel": "test_launcher_commands",
    "python -m launch resume": "tests/launch/test_going_on.py",
    "python -m sft inspect conversations.jsonl --config run.yaml": "test_looking_at_data",
    "python -m sft audit run.yaml --html audit.html": "test_looking_at_data",
    "python -m sft estimate run.yaml --nodes 2 --procs-per-node 8 --memory-gib 80": "test_estimate",
    "tensorboard --logdir runs": "test_launcher_commands",
    "torchrun --nproc-per-node 2 sft/train.py --config run.yaml": "test_torchrun_by_hand",
    "deepspeed --num_gpus 2 sft/train.py --config run.yaml --deepspeed ds_configs/zero2.json": "test_deepspeed_by_hand",
    "sbatch slurm/torchrun.sbatch run.yaml": "tests/cluster/test_launch_slurm.py",
    "sbatch slurm/deepspeed.sbatch run.yaml": "tests/cluster/test_launch_slurm.py",
    "sbatch slurm/chain.sbatch run.yaml": "tests/cluster/test_plain_chain.py",
}


def run(words: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> str:
    """Runs a command to its end; its output."""
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return done.stdout


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "XDG_STATE_HOME": str(tmp_path / "state"), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """The README's settings, with a tiny random model in place of the hub's, and data to go with them."""
    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    values = yaml.safe_load(block)
    del values["model_name_or_path"]
    values |= {"model_config": QWEN3, "tokenizer_name": TOKENIZER, "bf16": False, "num_train_epochs": 1}
    values |= {"per_device_train_batch_size": 2, "learning_rate": 1e-2, "launch": {"cpus_per_task": 1}}
    write_conversations(tmp_path / "conversations.jsonl", 8)
    write_conversations(tmp_path / "held_out.jsonl", 3, seed=1)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "run.yaml"


def test_every_command_of_the_readme_is_run_by_a_test() -> None:
    commands = re.findall(
        r"^    ((?:make|python|torchrun|deepspeed|sbatch|tensorboard)\b[^#\n]*)", README, re.MULTILINE
    )
    assert {command.strip() for command in commands} == set(RUN_BY)


def test_the_settings_of_the_readme_are_valid(tmp_path: Path) -> None:
    from sft.arguments import load_args

    (block,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "run.yaml").write_text(block)
    for name in ("conversations.jsonl", "held_out.jsonl"):
        write_conversations(tmp_path / name, 1)
    assert load_args(config=tmp_path / "run.yaml").learning_rate == 1e-5


def test_launcher_commands(settings: Path, environment: dict[str, str]) -> None:
    launch, folder = [sys.executable, "-m", "launch"], settings.parent
    environment["PYTHONPATH"] = str(ROOT)
    submit = [*launch, "submit", "--nodes", "2", "--config", "run.yaml", "--name", "one"]
    plan = run([*submit, "--dry-run"], folder, environment)
    assert not (folder / "runs").exists()
    run(submit, folder, environment)
    assert (folder / "runs" / "one" / "plan.txt").read_text() == plan
    assert "[" in run([*launch, "logs", "-f"], folder, environment)
    assert "COMPLETED" in run([*launch, "wait"], folder, environment)
    assert "COMPLETED" in run([*launch, "status"], folder, environment)
    assert "COMPLETED" in run([*launch, "cancel"], folder, environment)
    assert "COMPLETED" in run([*launch, "list"], folder, environment)
    assert "last lines" in run([*launch, "top"], folder, environment)
    assert len(losses(folder / "runs" / "one")) == 2
    inspected = run(["tensorboard", "--inspect", "--logdir", "runs"], folder, environment)
    assert "train/loss" in inspected
    assert "eval/eval_loss" in inspected


def test_looking_at_data(settings: Path, environment: dict[str, str]) -> None:
    sft, folder = [sys.executable, "-m", "sft"], settings.parent
    environment["PYTHONPATH"] = str(ROOT)
    assert "⟦" in run([*sft, "inspect", "conversations.jsonl", "--config", "run.yaml"], folder, environment)
    assert "One epoch" in run([*sft, "audit", "run.yaml", "--html", "audit.html"], folder, environment)
    assert "<svg" in (folder / "audit.html").read_text()


def test_estimate(settings: Path, environment: dict[str, str]) -> None:
    environment["PYTHONPATH"] = str(ROOT)
    words = [sys.executable, "-m", "sft", "estimate", "run.yaml"]
    options = ["--nodes", "2", "--procs-per-node", "8", "--memory-gib", "80"]
    assert "take DDP" in run([*words, *options], settings.parent, environment)


def test_torchrun_by_hand(settings: Path, environment: dict[str, str]) -> None:
    words = [
        "torchrun",
        "--nproc-per-node",
        "2",
        "--standalone",
        str(ROOT / "sft" / "train.py"),
        "--config",
        "run.yaml",
    ]
    said = run([*words, "--output_dir", "out"], settings.parent, environment)
    assert len(losses(settings.parent / "out")) == 2
    if own_share(os.sched_getaffinity(0), 0, 2, 1):  # not before the data, which are encoded by all CPUs
        assert said.index(" documents, ") < said.index("each rank of a node keeps to its share of the CPUs")


def test_deepspeed_by_hand(settings: Path, environment: dict[str, str]) -> None:
    words = ["deepspeed", "--num_gpus", "2", "--master_port", free_port(), str(ROOT / "sft" / "train.py")]
    words += ["--config", "run.yaml", "--deepspeed", "ds_configs/zero2.json", "--output_dir", "out"]
    # Nobody has said how many threads: all ranks together have as many as there are cores.
    del environment["OMP_NUM_THREADS"]
    said = run(words, settings.parent, environment | {"DS_ACCELERATOR": "cpu"})
    assert len(losses(settings.parent / "out")) == 2
    if own_share(os.sched_getaffinity(0), 0, 2, 1):
        assert "each rank of a node keeps to its share of the CPUs" in said


def free_port() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_python_of_the_readme(settings: Path, environment: dict[str, str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    script = settings.parent / "train_it.py"
    script.write_text(block)
    run([sys.executable, str(script)], settings.parent, environment | {"PYTHONPATH": str(ROOT)})
    assert len(losses(settings.parent / "runs" / "latest")) == 4


def test_the_installed_wheel_runs_the_quick_start_anywhere(tmp_path: Path, environment: dict[str, str]) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)], ROOT, environment
    )
    (wheel,) = tmp_path.glob("cleansft-*.whl")
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], ROOT, environment)
    elsewhere.mkdir()
    environment["PYTHONPATH"] = str(site)
    where = run(
        [sys.executable, "-c", "import launch, sft; print(launch.__file__, sft.__file__)"], elsewhere, environment
    )
    assert where.count(str(site)) == 2
    words = [sys.executable, "-m", "launch", "submit", "--nodes", "2", "--wait", "--zero", "2", "--name", "quick"]
    output = run([*words, "--", "--max_steps", "2", "--max_eval_samples", "4"], elsewhere, environment)
    assert "COMPLETED" in output
    assert (elsewhere / "runs" / "quick" / "model.safetensors").is_file()
