"""What has to hold between settings, and what they name that has to be there. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sft.deepspeed_config import read_deepspeed_config, zero_stage
from sft.setting_files import found_file, looks_like_a_path
from strict_settings import Problem, SettingsError, with_suggestion

if TYPE_CHECKING:
    from sft.config import Args

FILE_SETTINGS = ("model_name_or_path", "tokenizer_name", "chat_template_path", "train_file", "eval_file", "deepspeed")
"""Settings that may name a file; so do the keys of `train_files`."""

REPORTS = ("tensorboard", "wandb", "mlflow", "trackio", "none")
"""What `report_to` may name."""

COLUMNS = (
    "messages", "prompt", "response", "conversations", "completion", "question", "answer", "instruction", "input",
    "output", "history", "system", "tools", "weight", "chat_template_kwargs",
)  # fmt: skip
"""Our names for the columns of a row (docs/data-formats.md)."""


def problems_between(args: Args) -> Iterator[Problem]:
    """What is wrong between settings; each field alone is checked by its annotation."""
    if (args.model_name_or_path is None) == (args.model_config is None):
        remedy = "Give a hub name or a folder, or a config for random weights."
        rule = "be given, or model_config, and not both"
        yield Problem("model_name_or_path", args.model_name_or_path, rule, remedy)
    elif args.model_config is not None and args.tokenizer_name is None:
        yield Problem("tokenizer_name", None, "be given together with model_config")
    if args.model_config is not None and not isinstance(args.model_config.get("model_type"), str):
        yield Problem("model_config", args.model_config, "name a model_type", "For example model_type: qwen3.")
    if args.train_file is None and not args.train_files:
        yield Problem("train_file", None, "be given", "Name a JSON or JSONL file of conversations.")
    if args.train_file is not None and args.train_files:
        yield Problem("train_file", args.train_file, "not be given with train_files", "Keep one of the two.")
    if args.deepspeed is not None and args.fsdp:
        yield Problem("fsdp", True, "be false with deepspeed", "Choose one of the two.")
    if args.train_batch_size is not None and args.gradient_accumulation_steps != 1:
        rule, remedy = "not be given with train_batch_size", "Remove one: either follows from the other."
        yield Problem("gradient_accumulation_steps", args.gradient_accumulation_steps, rule, remedy)
    for name in ("early_stopping_patience", "load_best_model_at_end", "eval_steps"):
        if getattr(args, name) and args.eval_file is None:
            yield Problem(name, getattr(args, name), "come with an eval_file")
    yield from _settings_alone(args)
    yield from _precision(args)
    yield from _few_bits(args)
    yield from _reports(args)
    yield from _unknown_columns(args)
    yield from _missing_files(args)
    if args.deepspeed is not None and Path(args.deepspeed).is_file():
        yield from _with_zero(args, args.deepspeed)


def _with_zero(args: Args, file: str) -> Iterator[Problem]:
    """What does not go with the stage of ZeRO that a file names."""
    try:
        stage = zero_stage(read_deepspeed_config(file))
    except SettingsError as error:
        yield from error.problems
        return
    if args.param_dtype == "bfloat16" and not stage:
        remedy = "Take ZeRO-1, which keeps float32 weights beside bfloat16 ones."
        yield Problem("param_dtype", args.param_dtype, "be float32 with ZeRO-0", remedy)
    if args.mlp_tile_tokens is not None and stage == 3:
        # Weights would be gathered for every tile, and ranks with unlike rows have not as many.
        remedy = "Leave it out, or take fsdp or ZeRO-2."
        yield Problem("mlp_tile_tokens", args.mlp_tile_tokens, "not be given with ZeRO-3", remedy)


def _settings_alone(args: Args) -> Iterator[Problem]:
    """Settings without the one that they belong to, or with one that they do not go with."""
    for name, allowed in (("attn_implementation", "auto"), ("compile", False)):
        if args.sequence_parallel_size > 1 and getattr(args, name) != allowed:
            rule = f"be {str(allowed).lower()} with sequence_parallel_size"
            yield Problem(name, getattr(args, name), rule, "Leave it out.")
    heads = (args.model_config or {}).get("num_attention_heads")  # a model that has a name is asked later
    if isinstance(heads, int) and heads % args.sequence_parallel_size:
        rule = f"divide the model's {heads} attention heads"
        yield Problem("sequence_parallel_size", args.sequence_parallel_size, rule)
    if args.fsdp_shard_size is not None and not args.fsdp:
        yield Problem("fsdp_shard_size", args.fsdp_shard_size, "come with fsdp: true")
    if args.gradient_checkpointing_every != 1 and not args.gradient_checkpointing:
        every = args.gradient_checkpointing_every
        yield Problem("gradient_checkpointing_every", every, "come with gradient_checkpointing: true")
    if args.activation_offload and not args.gradient_checkpointing:
        yield Problem("activation_offload", True, "come with gradient_checkpointing: true")


def _precision(args: Args) -> Iterator[Problem]:
    if args.param_dtype == "bfloat16" and args.bf16 is False:
        remedy = "Leave bf16 out, or set param_dtype: float32."
        yield Problem("bf16", False, "not be false with param_dtype: bfloat16", remedy)


def _few_bits(args: Args) -> Iterator[Problem]:
    """Where weights or AdamW's state are in four or eight bits."""
    few = [name for name in ("load_in_4bit", "load_in_8bit") if getattr(args, name)]
    chosen: list[tuple[str, object]] = [(name, True) for name in few]
    chosen += [("optim", args.optim)] if args.optim == "adamw_8bit" else []
    for name, value in chosen:
        for other in ("fsdp", "deepspeed"):
            if getattr(args, other):
                remedy = f"Leave {other} out: what is left to share out is small." if few else f"Leave {other} out."
                yield Problem(name, value, f"not be given with {other}", remedy)
    if len(few) > 1:
        yield Problem("load_in_8bit", True, "not be given with load_in_4bit", "Keep one of the two.")
    if few and not args.lora.enabled:
        remedy = "Add lora: {r: 16}. Weights in so few bits cannot be trained, adapters beside them can."
        yield Problem(few[0], True, "come with lora", remedy)
    if few and args.model_config is not None:
        yield Problem(few[0], True, "come with model_name_or_path", "There are no weights to load.")
    if few and args.lora.merge:
        remedy = "Merge the adapter afterwards into the model as it was, with peft's merge_and_unload."
        yield Problem("lora.merge", True, f"be false with {few[0]}", remedy)


def _reports(args: Args) -> Iterator[Problem]:
    for name in args.reports:
        if name not in REPORTS:
            yield Problem("report_to", name, f"be of {', '.join(REPORTS)}", with_suggestion(name, REPORTS))
    if "none" in args.reports and len(args.reports) > 1:
        yield Problem("report_to", args.report_to, "name nothing beside none", "Leave none out, or the others.")
    if not args.reports:
        yield Problem(
            "report_to", args.report_to, "name at least one", "Write report_to: none for no more than the log."
        )


def _unknown_columns(args: Args) -> Iterator[Problem]:
    if not set(args.columns) <= set(COLUMNS):
        rule = f"have no keys but {', '.join(COLUMNS)}"
        yield Problem("columns", args.columns, rule, "Write {our name: your name}.")


def _missing_files(args: Args) -> Iterator[Problem]:
    named = [(name, getattr(args, name)) for name in FILE_SETTINGS]
    for name, value in [*named, *(("train_files", name) for name in args.train_files)]:
        if value is not None and looks_like_a_path(value) and not found_file(value):
            remedy = "No such file, looked for from the working directory and beside the settings file."
            yield Problem(name, value, "be there", remedy)
