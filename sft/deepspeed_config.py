"""DeepSpeed's settings file: read and checked without torch, before anything is submitted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from strict_settings import Problem, SettingsError

_FILLED_IN = {
    "train_batch_size": "per_device_train_batch_size and gradient_accumulation_steps",
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
    "bf16": "bf16",
    "fp16": "bf16",
    "optimizer": "learning_rate and the adam_ settings",
    "scheduler": "lr_scheduler_type",
}
"""Key of DeepSpeed's settings → the setting of ours that it follows from."""


def read_deepspeed_config(path: str | Path) -> dict[str, Any]:
    """DeepSpeed's settings from a JSON file that leaves to us what follows from our own settings.

    Raises:
        SettingsError: bad JSON, a key that we fill in, or a value "auto", which only transformers' Trainer replaces.
    """
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(Problem("deepspeed", str(path), "be a readable JSON file", f"{error}.")) from error
    if not isinstance(config, dict):
        raise SettingsError(Problem("deepspeed", str(path), "hold a JSON object"))
    problems = [
        Problem(key, config[key], "be left out", f"It follows from {ours} in the settings.", where=str(path))
        for key, ours in _FILLED_IN.items()
        if key in config
    ]
    problems += [Problem(key, "auto", "be a value, or be left out", where=str(path)) for key in _autos(config)]
    if problems:
        raise SettingsError(problems)
    return config


def zero_stage(config: Mapping[str, Any]) -> int:
    """The ZeRO stage that a configuration asks for."""
    return int(config.get("zero_optimization", {}).get("stage", 0))


def _autos(config: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _autos(value, f"{prefix}.{key}" if prefix else key)
    elif config == "auto" and prefix.partition(".")[0] not in _FILLED_IN:
        yield prefix
