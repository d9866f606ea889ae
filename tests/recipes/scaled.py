"""A recipe with a small model of the same kind, and rows that fit it: what is left of its settings is as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from tiny import TOKENIZER

from docsite.estimates import RECIPES, sizes_of
from strict_settings import read_yaml

SIZES = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024,
}  # fmt: skip
STEPS = 4
GPU_ONLY = ("activation_offload", "param_dtype")
"""Settings that are refused without a GPU, or slow on processors without units for bfloat16."""


def scaled(name: str, folder: Path, **changes: Any) -> Path:
    """The settings file, written to the folder. Steps and rows are few; the number of ranks is left to the caller."""
    recipe = RECIPES / f"{name}.yaml"
    values = dict(read_yaml(recipe).values)
    values["model_config"] = {**sizes_of(recipe), **SIZES}
    del values["model_name_or_path"], values["launch"]
    values |= {"tokenizer_name": TOKENIZER, "chat_template_path": "chatml", "report_to": "none"}
    values |= {"train_file": str(RECIPES / values["train_file"]), "output_dir": str(folder / "out"), "save_steps": 3}
    values |= {"max_length": min(values["max_length"], 512), "max_steps": STEPS, "dataset_num_proc": 1}
    values |= {"learning_rate": 3e-3}  # as befits a model this small
    values["gradient_accumulation_steps"] = min(values.get("gradient_accumulation_steps", 1), 2)
    for setting in GPU_ONLY:
        values.pop(setting, None)
    values |= changes
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def records(folder: Path) -> list[dict[str, Any]]:
    """The log of a run of it."""
    found: list[dict[str, Any]] = json.loads((folder / "out" / "training_log.json").read_text())
    return found
