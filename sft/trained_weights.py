"""The weights of a run without running it: of any checkpoint of any engine, or of its final model, in one process."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sft.checkpoint_search import problems_of
from sft.commit import checkpoints_in, step_of
from sft.config import Args
from sft.errors import CheckpointError
from sft.lora_args import LoraArgs
from sft.manifest import MANIFEST, Manifest
from sft.model import BuiltModel, build_model, set_stop_tokens
from sft.pieces import PartFiles, Piece
from sft.run_files import has_final_model
from sft.tokenizer import build_tokenizer, listed
from sft.world import World
from strict_settings import Problem, SettingsError


@dataclass(frozen=True)
class TrainedWeights:
    """A model in float32 on the CPU with trained weights: what `export.export_model` takes."""

    model: Any
    """Of transformers, or peft's around one."""
    tokenizer: Any
    save_dtype: torch.dtype
    step: int | None
    """Of the checkpoint; None for the final model."""
    source: Path

    def gather(self, name: str) -> Tensor:
        """One parameter."""
        found: Tensor = self.model.get_parameter(name).detach()
        return found


def run_arguments(run: Path) -> Args:
    """The settings with which a run was trained.

    Raises:
        SettingsError: the folder is no run directory.
    """
    path = run / "arguments.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in dataclasses.fields(Args)}
        given = {name: value for name, value in values.items() if name in known}
        return Args(**{**given, "lora": LoraArgs(**given.get("lora", {"enabled": False}))})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        rule = "be a run directory, with the arguments.json that training writes"
        raise SettingsError(Problem("RUN", str(run), rule, f"{error}.")) from error


def for_weights(args: Args) -> Args:
    """The settings without what the training's devices were needed for, and the weights are not: kernels, few bits, and
    what saves memory."""
    return dataclasses.replace(
        args,
        liger=False,
        load_in_4bit=False,
        load_in_8bit=False,
        mlp_tile_tokens=None,
        gradient_checkpointing=False,
        gradient_checkpointing_every=1,
        activation_offload=False,
        attn_implementation="auto",
    )


def weights_of(run: Path, wanted: str, world: World) -> TrainedWeights:
    """The weights that `wanted` names.

    Args:
        run: the run directory.
        wanted: `final`; `newest` or `best`, of the checkpoints; `step-00000100`, or its number; `auto`: the final
            model, or where there is none the newest checkpoint.
        world: one process.

    Raises:
        SettingsError: there is no such thing.
        CheckpointError: the checkpoint is not as it was written.
    """
    args = for_weights(run_arguments(run))
    has_final = has_final_model(run)
    if wanted == "final" or (wanted == "auto" and has_final):
        if not has_final:
            raise SettingsError(Problem("--from", wanted, "be there", "The run has written no final model yet."))
        return _final(run, args)
    path = _checkpoint(run, wanted)
    if problems := problems_of(path, world, print):
        raise CheckpointError(f"{'; '.join(problems)}. Name another checkpoint with --from.")
    tokenizer = build_tokenizer(args)
    built = build_model(args, tokenizer)
    manifest = Manifest.read(path / MANIFEST)
    _fill(built.model, PartFiles([path / name for name in sorted(manifest.files)]))
    if args.lora.enabled and args.model_config is not None:
        built.model.peft_config["default"].base_model_name_or_path = str((run / "base_model").resolve())
    _set_stops(built.model, tokenizer, args, run)
    return TrainedWeights(built.model, tokenizer, built.save_dtype, manifest.step, path)


def _checkpoint(run: Path, wanted: str) -> Path:
    found = {step_of(path): path for path in checkpoints_in(run / "checkpoints")}
    if wanted in ("auto", "newest"):
        step = max(found, default=-1)
    elif wanted == "best":
        best = (Manifest.read(path / MANIFEST).state.get("best_step") for _, path in sorted(found.items())[-1:])
        step = int(next(best, None) or -1)
    else:
        digits = wanted.removeprefix("step-")
        step = int(digits) if digits.isdecimal() else -1
    if step not in found:
        there = ", ".join(path.name for _, path in sorted(found.items())) or "none"
        rule = "be final, newest, best or one of the run's checkpoints"
        raise SettingsError(Problem("--from", wanted, rule, f"There is: {there}."))
    return found[step]


@torch.no_grad()
def _fill(model: Any, files: PartFiles) -> None:
    """Sets the trained weights."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            size = math.prod(parameter.shape)
            parameter.copy_(files.read(Piece(name, "weight", 0, size, size)).view(parameter.shape))


def _final(run: Path, args: Args) -> TrainedWeights:
    is_adapter = (run / "adapter_config.json").is_file()
    args = dataclasses.replace(args, tokenizer_name=str(run), chat_template_path=None)
    tokenizer = build_tokenizer(args)
    if not is_adapter:
        whole = dataclasses.replace(args, model_name_or_path=str(run), model_config=None, lora=LoraArgs(enabled=False))
        built = build_model(whole, tokenizer)
        return TrainedWeights(built.model, tokenizer, built.save_dtype, None, run)
    from peft import PeftModel

    built = base_model(run, args, tokenizer)
    model = PeftModel.from_pretrained(built.model, str(run))
    _set_stops(model, tokenizer, args, run)
    return TrainedWeights(model, tokenizer, built.save_dtype, None, run)


def base_model(run: Path, args: Args, tokenizer: Any) -> BuiltModel:
    """The model that a run's adapter belongs to, as it was before."""
    args = dataclasses.replace(for_weights(args), lora=LoraArgs(enabled=False))
    if (run / "base_model").is_dir():
        args = dataclasses.replace(args, model_name_or_path=str(run / "base_model"), model_config=None)
    return build_model(args, tokenizer)


def _set_stops(model: Any, tokenizer: Any, args: Args, run: Path) -> None:
    """Makes `generate` stop where turns end: as the final model does, or as the template shows."""
    from transformers import GenerationConfig

    from sft.questions import SMALL_TALK
    from sft.run_masker import masker_of

    try:
        stops = listed(GenerationConfig.from_pretrained(str(run)).eos_token_id)
    except OSError:  # there is none yet
        masker = masker_of(args, tokenizer)
        masker.documents(SMALL_TALK)
        stops = sorted(masker.stop_token_ids)
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    set_stop_tokens(base, tokenizer, stops)
