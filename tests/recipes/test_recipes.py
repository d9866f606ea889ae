"""recipes/: their settings are valid, their jobs render, and a small model of the same kind trains by them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from docsite.estimates import RECIPES, recipes, sizes_of
from docsite.pages import RECIPES_PAGE
from launch.__main__ import main as launch
from sft.arguments import load_args
from sft.config import Args
from sft.train import run_training
from strict_settings import read_yaml

from .scaled import STEPS, records, scaled

NAMES = [path.stem for path in recipes()]
NODES = "gpu|gpu*|16|gpu:h100:8(S:0-1)|192|2063000+|2-00:00:00|h100|up"
"""A partition of sixteen nodes, as sinfo tells of it."""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, where Slurm's commands are stand-ins."""
    short = "cut -d'|' -f1-5,7"  # what `submit` asks for
    answers = {
        "sinfo": f"case \"$*\" in *%a*) echo '{NODES}';; *%c*) echo '{NODES}' | {short};; *) echo gpu;; esac",
        "scontrol": "echo 'KillWait = 30 sec'",
        "sbatch": "exit 1",
    }
    for name, text in answers.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o755)
    for name in os.environ:
        if name.startswith(("SLURM_", "SBATCH_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def world(name: str) -> tuple[int, int]:
    """(nodes, GPUs of each) that a recipe asks for."""
    asked = read_yaml(RECIPES / f"{name}.yaml").values["launch"]
    return asked.get("nodes", 1), asked["gpus_per_node"]


def test_there_is_one_for_each_purpose() -> None:
    assert NAMES == [
        "full-70b-sixteen-nodes", "full-8b-two-nodes", "long-context", "lora-8b-one-gpu", "reasoning", "tool-use",
    ]  # fmt: skip
    ways: dict[str, Args] = {name: load_args(config=RECIPES / f"{name}.yaml") for name in NAMES}
    assert ways["lora-8b-one-gpu"].lora.enabled
    assert world("lora-8b-one-gpu") == (1, 1)
    assert (ways["full-8b-two-nodes"].deepspeed or "").endswith("ds_configs/zero3.json")
    assert world("full-8b-two-nodes") == (2, 8)
    assert world("full-70b-sixteen-nodes") == (16, 8)
    assert ways["long-context"].sequence_parallel_size == 8
    assert ways["long-context"].max_length <= int(
        str(sizes_of(RECIPES / "long-context.yaml")["max_position_embeddings"])
    )


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_valid_for_their_number_of_ranks(name: str) -> None:
    nodes, gpus = world(name)
    args = load_args(config=RECIPES / f"{name}.yaml", world_size=nodes * gpus)
    heads = int(str(sizes_of(RECIPES / f"{name}.yaml")["num_attention_heads"]))
    assert heads % args.sequence_parallel_size == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_tokens_per_step_that_its_comment_names_are_right(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    nodes, gpus = world(name)
    args = load_args(config=RECIPES / f"{name}.yaml")
    num_tokens = args.rows_per_step(nodes * gpus) * args.max_length
    assert re.findall(r"([\d,]+) tokens per step", text) == [f"{num_tokens:,}"]


@pytest.mark.parametrize("name", NAMES)
def test_its_job_renders(name: str, cluster: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(["submit", "--config", str(RECIPES / f"{name}.yaml"), "--dry-run"]) == 0
    plan = capfd.readouterr().out
    nodes, gpus = world(name)
    assert f"#SBATCH --nodes={nodes}" in plan
    assert f"#SBATCH --gpus-per-node={gpus}" in plan
    assert f"--nproc-per-node={gpus}" in plan
    assert not (cluster / "runs").exists()


@pytest.mark.parametrize("name", NAMES)
def test_the_page_has_its_estimate(name: str) -> None:
    """Of these settings; whether it is what the command says now, `make soak` looks."""
    part = RECIPES_PAGE.read_text(encoding="utf-8").partition(f"<!-- made: {name} -->")[2].partition("<!-- end -->")[0]
    nodes, gpus = world(name)
    args = load_args(config=RECIPES / f"{name}.yaml")
    assert f"rows of {args.max_length:,} tokens" in part
    assert f"{nodes} node(s) × {gpus} process(es), cuda" in part
    assert f"a full step: {args.rows_per_step(nodes * gpus) * args.max_length:,} tokens" in part
    (yours,) = re.findall(r"^→ .*$", part, re.MULTILINE)
    assert re.search(r"\d ✓(  [\d.]+)?$", yours)  # with gradient checkpointing, which all of them have


@pytest.mark.parametrize("name", ["lora-8b-one-gpu", "reasoning", "tool-use"])
def test_a_small_model_trains_by_it(name: str, tmp_path: Path) -> None:
    """One process; of the reasoning's ZeRO-2 the test of several ranks has a sibling."""
    run_training(str(scaled(name, tmp_path, **({"deepspeed": None} if name == "reasoning" else {}))))
    losses = [record["loss"] for record in records(tmp_path) if record["type"] == "train"]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]
    is_adapter = load_args(config=RECIPES / f"{name}.yaml").lora.enabled
    written = "adapter_model.safetensors" if is_adapter else "model.safetensors"
    assert (tmp_path / "out" / written).is_file()
