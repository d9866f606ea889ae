"""A trained model to look at: a folder or hub name, whole or an adapter, merged and ready to answer."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sft.config import Args
from sft.model import build_model
from sft.run_files import has_final_model
from sft.tokenizer import cannot_load
from sft.world import has_bf16
from strict_settings import Problem, SettingsError


@dataclass(frozen=True)
class Loaded:
    """A model on its device, for inference."""

    model: Any
    autocast: bool
    """Whether the trainer would compute in bfloat16 here, from float32 weights."""
    max_positions: int | None
    """Tokens that its configuration allows; None where it does not say."""


def load_model(args: Args, tokenizer: Any, device: torch.device) -> Loaded:
    """The model of `model_name_or_path`; an adapter is merged into the model that it belongs to.

    With `param_dtype: bfloat16` the weights are in bfloat16, else in float32.

    Raises:
        SettingsError: it cannot be loaded.
    """
    folder = Path(str(args.model_name_or_path))
    _refuse_unfinished(folder)
    adapter = (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()
    base = dataclasses.replace(args, model_name_or_path=_base_of(folder)) if adapter else args
    model = build_model(base, tokenizer, device=device).model
    if adapter:
        model = _with_adapter(model, folder)
    if args.param_dtype == "bfloat16":
        model = model.to(torch.bfloat16)
    is_cast = args.param_dtype != "bfloat16" and args.in_bf16(has_bf16(device))
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return Loaded(model.to(device).eval(), is_cast, positions)


def _refuse_unfinished(folder: Path) -> None:
    if (folder / "checkpoints").is_dir() and not has_final_model(folder):
        remedy = f"Make one of its newest checkpoint: python -m sft export {folder} --output {folder}-model"
        raise SettingsError(Problem("MODEL", str(folder), "hold a finished model", remedy))


def _base_of(folder: Path) -> str:
    """The model that an adapter belongs to; where a folder was moved, the `base_model` beside it."""
    try:
        named = str(json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError) as error:
        raise cannot_load("MODEL", str(folder), error) from error
    beside = folder / "base_model"
    return str(beside) if not Path(named).exists() and beside.is_dir() else named


def _with_adapter(model: Any, folder: Path) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except Exception as error:  # the library raises many kinds; its own words are the best there are
        raise cannot_load("MODEL", str(folder), error) from error
