"""axolotl: its YAML for supervised fine-tuning, as of axolotl 0.19."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft.migration.axolotl_data import chat_template, datasets, held_out, template_file
from sft.migration.axolotl_left import LEFT
from sft.migration.mapping import (
    Default,
    Idle,
    Key,
    Lost,
    Made,
    Refused,
    Several,
    Taken,
    Theirs,
    Tool,
    beside,
    idle,
    lost,
    made,
    same,
)
from sft.migration.training import REPORTED, TRACKERS, TRAINING, modules, no_warmup, reports, whole

_SHARED = (
    "output_dir", "gradient_accumulation_steps", "learning_rate", "max_steps", "warmup_ratio", "warmup_steps",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "bf16", "fp16",
    "torch_compile", "torch_compile_backend", "torch_compile_mode", "logging_steps", "eval_strategy",
    "evaluation_strategy", "eval_steps",
    "save_strategy", "save_steps", "save_total_limit", "save_only_model", "load_best_model_at_end",
    "metric_for_best_model", "greater_is_better", "ddp_timeout", "deepspeed", "fsdp", "resume_from_checkpoint",
    "neftune_noise_alpha", "auto_find_batch_size", "group_by_length", "gradient_checkpointing_kwargs",
    "dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor",
    "remove_unused_columns", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_find_unused_parameters",
    "lr_scheduler_kwargs", "optim_args", "optim_target_modules", "hub_model_id", "hub_strategy", "hub_revision",
    "torch_empty_cache_steps", "local_rank", "accelerator_config", "tf32",
)  # fmt: skip
"""Keys of TrainingArguments that axolotl hands on."""
_OTHER_NAMES = {"optimizer": "optim", "lr_scheduler": "lr_scheduler_type"}
_ATTENTION = "auto attends within each document without padding; attn_implementation chooses another"


def _rl(value: Any, _: Theirs) -> Taken:
    return Refused("be left out", "Only supervised fine-tuning is done here.") if value else Idle("off, as here")


def _adapter(value: Any, _: Theirs) -> Taken:
    if value not in ("lora", "qlora"):
        return Lost("adapters are LoRA's. Without them, all weights would be trained")
    return Made({"lora.enabled": True})


def _lora(name: str, setting: str) -> Key:
    def take(value: Any, theirs: Theirs) -> Taken:
        return Made({setting: value}) if theirs.get("adapter") else Idle("adapter is not given")

    return made(name, setting, take, "with adapter")


def _target_modules(value: Any, theirs: Theirs) -> Taken:
    if not theirs.get("adapter"):
        return Idle("adapter is not given")
    if theirs.get("lora_target_linear"):
        return Idle("lora_target_linear means every linear layer, as here by default")
    return modules(value)


def _target_linear(value: Any, _: Theirs) -> Taken:
    return Made({"lora.target_modules": []}) if value else Idle("off")


def _few_bits(name: str) -> Key:
    def take(value: Any, theirs: Theirs) -> Taken:
        return Made({name: bool(value)}) if theirs.get("adapter") else Idle("adapter is not given")

    return made(name, name, take)


def _train_on_inputs(value: Any, _: Theirs) -> Taken:
    if not value:
        return Made({"train_on": "assistant"})
    return Made({"train_on": "all"}, "every token is trained, what the template writes included")


def _checkpointing(value: Any, _: Theirs) -> Taken:
    if value in ("offload", "offload_disk", "unsloth"):
        note = "inputs of recomputed layers go to the host's memory, on a GPU"
        return Made({"gradient_checkpointing": True, "activation_offload": True}, note)
    return Made({"gradient_checkpointing": bool(value)})


def _offloading(value: Any, theirs: Theirs) -> Taken:
    if not value:
        return Idle("off, as here")
    if not theirs.get("gradient_checkpointing"):
        return Lost("only inputs of recomputed layers are moved: set gradient_checkpointing too")
    return Made({"activation_offload": True})


def _excess(value: Any, _: Theirs) -> Taken:
    if value == "raise":
        return Lost("longer documents are truncated or dropped, and counted; `python -m sft audit` tells before")
    return Made({"truncation": "right" if value == "truncate" else "drop"})


def _evals_per_epoch(value: Any, _: Theirs) -> Taken:
    if not value:
        return Made({})
    return Made({}, "" if value == 1 else "it is once, at the end of each epoch; eval_steps sets another distance")


def _plugins(value: Any, _: Theirs) -> Taken:
    """Liger and cut cross-entropy have a place here, other plugins none."""
    names = [str(name) for name in (value if isinstance(value, list) else [value])]
    told: list[tuple[str, object, Lost | Idle]] = []
    for name in names:
        if "Liger" in name:
            told.append(("plugins", name, Idle("the liger_ keys tell")))
        elif "CutCrossEntropy" in name:
            told.append(("plugins", name, Idle("the loss is computed in tiles in any case")))
        else:
            told.append(("plugins", name, Lost("there are no plugins")))
    return Several(Made({}), told)


def _liger(value: Any, _: Theirs) -> Taken:
    return Made({"liger": True}, "all of Liger's kernels but the loss") if value else Idle("off")


def _tracker(value: Any, theirs: Theirs) -> Taken:
    """All that are on, whichever of them is asked about. A project's name switches W&B on there, too."""
    named = [name for name in TRACKERS if theirs.get(f"use_{name}")]
    named += ["wandb"] if theirs.get("wandb_project") else []
    return Made({"report_to": reports(named)}) if value else Idle("off")


def _wandb_name(value: Any, theirs: Theirs) -> Taken:
    return Made({"run_name": value}) if value else Idle("empty")


def _attention(value: Any, _: Theirs) -> Taken:
    return Made({"attn_implementation": "eager"}) if value == "eager" else Made({}, _ATTENTION)


def _attention_flag(value: Any, _: Theirs) -> Taken:
    return Made({}, _ATTENTION) if value else Idle("off")


def _special_tokens(value: Any, _: Theirs) -> Taken:
    given = value if isinstance(value, Mapping) else {}
    told: list[tuple[str, object, Lost | Idle]] = []
    for name, token in given.items():
        reason = "no token is added or renamed. Save the tokenizer with it, and name that: tokenizer_name"
        what = Idle("nothing is padded, or with any token, which is masked") if name == "pad_token" else Lost(reason)
        told.append((f"special_tokens.{name}", token, what))
    return Several(Made({}), told)


def _context_parallel(value: Any, _: Theirs) -> Taken:
    if not isinstance(value, int) or value < 2:
        return Idle("off, as here")
    return Made({"sequence_parallel_size": value}, "by exchanging heads, so it must divide the attention heads")


def _template_kwargs(value: Any, _: Theirs) -> Taken:
    return Made({"template_kwargs": dict(value)}) if isinstance(value, Mapping) else Lost("it must be a mapping")


_BY_NAME = {key.name: key for key in TRAINING}

KEYS: tuple[Key, ...] = (
    same("base_model", "model_name_or_path"),
    same("tokenizer_config", "tokenizer_name"),
    same("trust_remote_code"),
    made("datasets", "train_file, train_files, columns", datasets, "by their type, see below"),
    made("test_datasets", "eval_file", held_out, "the first of them"),
    *lost("val_set_size", "nothing is split off. Put held-out rows into a file of their own: eval_file", 0, 0.0),
    made("chat_template", "chat_template_path", chat_template, "chatml, or the tokenizer's own; jinja from a file"),
    made("chat_template_jinja", "chat_template_path", template_file, "a file, not the text itself"),
    made("chat_template_kwargs", "template_kwargs", _template_kwargs),
    same("sequence_len", "max_length"),
    made("excess_length_strategy", "truncation", _excess, "drop is their default, truncate → right"),
    same("sample_packing", "packing"),
    made("train_on_inputs", "train_on", _train_on_inputs, "false → assistant, true → all"),
    same("micro_batch_size", "per_device_train_batch_size"),
    same("eval_batch_size", "per_device_eval_batch_size"),
    same("num_epochs", "num_train_epochs"),
    *(
        Key(new, _BY_NAME[old].becomes, _BY_NAME[old].note, "carried", _BY_NAME[old].take)
        for new, old in _OTHER_NAMES.items()
    ),
    *(_BY_NAME[name] for name in _SHARED),
    made("gradient_checkpointing", "gradient_checkpointing, activation_offload", _checkpointing, "offload → both"),
    made("activation_offloading", "activation_offload", _offloading, "with gradient_checkpointing"),
    made("evals_per_epoch", "–", _evals_per_epoch, "once per epoch is the default"),
    *lost("saves_per_epoch", "checkpoints are made every save_steps steps, 500 by default"),
    made("early_stopping_patience", "early_stopping_patience", whole("early_stopping_patience", "evaluations")),
    made("adapter", "lora.enabled", _adapter, "lora or qlora"),
    _lora("lora_r", "lora.r"),
    _lora("lora_alpha", "lora.alpha"),
    _lora("lora_dropout", "lora.dropout"),
    made("lora_target_modules", "lora.target_modules", _target_modules),
    made("lora_target_linear", "lora.target_modules", _target_linear, "every linear layer is the default"),
    _lora("peft_use_dora", "lora.dora"),
    _lora("peft_use_rslora", "lora.rslora"),
    _few_bits("load_in_4bit"),
    _few_bits("load_in_8bit"),
    made("context_parallel_size", "sequence_parallel_size", _context_parallel, "must divide the attention heads"),
    made("sequence_parallel_degree", "sequence_parallel_size", _context_parallel, "its old name"),
    same("dp_shard_size", "fsdp_shard_size"),
    made("attn_implementation", "attn_implementation", _attention, "only eager; else auto, attention per document"),
    *(
        made(f"{name}_attention", "–", _attention_flag, "auto: attention per document")
        for name in ("flash", "xformers", "sdp", "flex", "sage", "eager")
    ),
    made("plugins", "liger", _plugins, "Liger and cut cross-entropy"),
    *(
        made(f"liger_{name}", "liger", _liger, "all of Liger's kernels but the loss")
        for name in ("rope", "rms_norm", "layer_norm", "glu_activation", "swiglu")
    ),
    *idle(
        "liger_cross_entropy liger_fused_linear_cross_entropy liger_use_token_scaling",
        "the loss is computed in tiles in any case",
    ),
    *(made(f"use_{name}", "report_to", _tracker) for name in TRACKERS),
    made("wandb_project", "report_to", _tracker, "the project's name is taken from WANDB_PROJECT"),
    made("wandb_name", "run_name", _wandb_name),
    *lost("use_comet use_otel_metrics", REPORTED),
    made("special_tokens", "–", _special_tokens, "pad_token only"),
    same("dataset_num_proc"),
    same("dataset_processes", "dataset_num_proc"),
    *beside("fsdp_config", "fsdp"),
    made("rl", "–", _rl, "refused: only supervised fine-tuning is done"),
    made("reward_model", "–", _rl, "refused, too"),
    made("process_reward_model", "–", _rl, "refused, too"),
    *LEFT,
)  # fmt: skip


def _drop(theirs: Theirs, _: Mapping[str, Any]) -> str | None:
    return "drop" if "excess_length_strategy" not in theirs.values else None


AXOLOTL = Tool(
    "axolotl",
    "axolotl",
    KEYS,
    (
        Default("max_length", lambda *_: 512, "512"),
        Default("truncation", _drop, "drop"),
        Default("per_device_train_batch_size", lambda *_: 1, "1"),
        Default("per_device_eval_batch_size", lambda _, ours: ours["per_device_train_batch_size"], "micro_batch_size"),
        Default("warmup_ratio", lambda theirs, ours: None if no_warmup(theirs, ours) is None else 0.03, "0.03"),
    ),
    prefixes={
        **dict.fromkeys(("dpo_", "kto_", "simpo_", "orpo_", "cpo_", "rl_"), "only supervised fine-tuning is done here"),
        "mlflow_": "it is taken from the environment: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME",
        "trackio_": "it is taken from the environment: TRACKIO_SPACE_ID, TRACKIO_SERVER_URL, TRACKIO_DIR",
        **dict.fromkeys(("comet_", "otel_"), REPORTED),
        **dict.fromkeys(("pose_", "generation_", "gradio_", "ray_"), "there is nothing like it"),
        **dict.fromkeys(("peft_",), "adapters are LoRA, DoRA or rsLoRA, all alike"),
        **dict.fromkeys(("qgalore_", "dion_", "lisa_", "jagged_", "relora_"), "the optimizer is AdamW on all weights"),
        **dict.fromkeys(("scaling_softmax", "fused_attn", "flash_attn", "fp32_norm"), "the model is taken as it is"),
    },
)
