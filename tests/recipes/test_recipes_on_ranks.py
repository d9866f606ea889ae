"""Recipes for several GPUs, with a small model on two processes; and whether their estimates are those of now."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from docsite.pages import RECIPES_PAGE, ROOT, made_anew

from .scaled import STEPS, records, scaled


def zero3_hpz(folder: Path) -> str:
    """The bundled file, with nodes of as many ranks as there are here."""
    config = json.loads((ROOT / "ds_configs" / "zero3_hpz.json").read_text())
    config["zero_optimization"]["zero_hpz_partition_size"] = 2
    (folder / "zero3_hpz.json").write_text(json.dumps(config))
    return str(folder / "zero3_hpz.json")


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("full-8b-two-nodes", {}),
        pytest.param("full-70b-sixteen-nodes", {"deepspeed": zero3_hpz}, marks=pytest.mark.soak),
        pytest.param("long-context", {"sequence_parallel_size": 2, "mlp_tile_tokens": 64}, marks=pytest.mark.soak),
    ],
)
def test_a_small_model_trains_by_it_on_two_ranks(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    made = {key: value(tmp_path) if callable(value) else value for key, value in changes.items()}
    settings = scaled(name, tmp_path, bf16=False, per_device_train_batch_size=1, **made)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*launcher, str(ROOT / "sft" / "train.py"), "--config", str(settings)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    losses = [record["loss"] for record in records(tmp_path) if record["type"] == "train"]
    assert len(losses) == STEPS
    assert losses[-1] < losses[0]
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_estimates_are_those_of_now() -> None:
    """Six models of their full size are traced: half a minute each."""
    assert RECIPES_PAGE.read_text(encoding="utf-8") == made_anew(RECIPES_PAGE), "run `python -m docsite.pages`"
