"""TRL: the YAML of `trl sft` (SFTConfig, ModelConfig, ScriptArguments, DatasetMixtureConfig), as of TRL 1.16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft.config import Args
from sft.migration.data import named, training_data
from sft.migration.mapping import (
    Default,
    Idle,
    Key,
    Lost,
    Made,
    Remark,
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
from sft.migration.training import TRAINING, modules, step_defaults

_TRAINED = (
    "where it is not given, TRL trains every token of `messages`, and the completions of prompts; here it is what the "
    "assistant says in both. train_on: all trains every token"
)


def _dataset_name(value: Any, theirs: Theirs) -> Taken:
    """The training split, and the test split where they evaluate."""
    if theirs.get("datasets"):
        return Idle("datasets holds")
    config = theirs.get("dataset_config")
    taken = training_data([named(str(value), config=config, split=theirs.get("dataset_train_split"))], "dataset_name")
    if theirs.get("eval_strategy", "no") in ("no", False):
        return taken
    held_out = named(str(value), config=config, split=theirs.get("dataset_test_split", "test"))
    return Several(Made({**taken.made.settings, "eval_file": held_out.sources[0]}), taken.told)


def _datasets(value: Any, _: Theirs) -> Taken:
    """A mixture: every dataset once in an epoch."""
    parts = []
    for entry in value if isinstance(value, list) else []:
        given = entry if isinstance(entry, Mapping) else {"path": entry}
        part = named(
            str(given.get("path", "")),
            files=given.get("data_files"),
            config=given.get("name"),
            split=given.get("split"),
        )
        if given.get("fraction") is not None:
            reason = "the first rows of each are not taken; train_files says how often a file is seen in an epoch"
            part.told.append(("fraction", given["fraction"], Lost(reason)))
        if given.get("data_dir") is not None:
            part.told.append(("data_dir", given["data_dir"], Lost("name the folder itself")))
        if given.get("columns") is not None:
            part.told.append(("columns", given["columns"], Idle("columns of no form are not read")))
        parts.append(part)
    return training_data(parts, "datasets")


def _assistant_only(value: Any, theirs: Theirs) -> Taken:
    if value:
        return Made({"train_on": "assistant"})
    return Idle("completion_only_loss tells") if theirs.get("completion_only_loss") else Made({"train_on": "all"})


def _completion_only(value: Any, theirs: Theirs) -> Taken:
    if theirs.get("assistant_only_loss"):
        return Idle("assistant_only_loss tells")
    return Made({"train_on": "assistant" if value else "all"})


def _truncation(value: Any, _: Theirs) -> Taken:
    if value == "keep_start":
        return Made({"truncation": "right"})
    return Made({"truncation": "left"}, "whole turns are cut from the beginning, not single tokens")


def _max_length(value: Any, _: Theirs) -> Taken:
    """Null stands for no limit."""
    if value is not None:
        return Made({"max_length": value})
    default = Args.max_length
    return Made({}, f"no limit there; here longer documents are truncated, by default to {default:,}. Set max_length")


def _packing(value: Any, theirs: Theirs) -> Taken:
    """Ours never joins documents, nor cuts one in two."""
    strategy = theirs.get("packing_strategy", "bfd")
    differs = strategy != "bfd" and bool(value)
    note = f"with {strategy}, TRL cuts documents in two; here a longer one is truncated" if differs else ""
    return Made({"packing": bool(value)}, note)


def _attention(value: Any, _: Theirs) -> Taken:
    """`auto` is better than all of them, where the model allows it."""
    if value == "eager":
        return Made({"attn_implementation": "eager"})
    return Made({}, "auto attends within each document without padding; write attn_implementation to have this one")


def _dtype(value: Any, _: Theirs) -> Taken:
    if value == "float32":
        return Idle("the default")
    if value == "bfloat16":
        return Made({"param_dtype": "bfloat16"}, "float32 masters stand beside the bfloat16 weights and are trained")
    return Lost("weights are float32, or bfloat16 with float32 masters (param_dtype)")


def _lora(name: str, setting: str) -> Key:
    def take(value: Any, theirs: Theirs) -> Taken:
        return Made({setting: value}) if theirs.get("use_peft") else Idle("use_peft is off")

    return made(name, setting, take, "with use_peft")


def _use_peft(value: Any, _: Theirs) -> Taken:
    return Made({"lora.enabled": True}) if value else Idle("off, as here")


def _target_modules(value: Any, theirs: Theirs) -> Taken:
    return modules(value) if theirs.get("use_peft") else Idle("use_peft is off")


def _template(value: Any, _: Theirs) -> Taken:
    if str(value).endswith((".jinja", ".jinja2", ".j2")):
        return Made({"chat_template_path": value})
    return Lost("a template is a Jinja file, or `chatml`. Save that tokenizer's chat_template as one")


def _model_init(value: Any, _: Theirs) -> Taken:
    """A mapping of what else the model is loaded with."""
    given = value if isinstance(value, Mapping) else {}
    told = [(f"model_init_kwargs.{name}", inner, _of_loading(name, inner)) for name, inner in given.items()]
    return Several(Made({}), told) if told else Lost("it must be a mapping")


def _of_loading(name: str, value: object) -> Lost | Idle:
    if name in ("attn_implementation", "dtype", "torch_dtype", "use_cache", "device_map", "low_cpu_mem_usage"):
        return Idle("the trainer's own; see attn_implementation and param_dtype")
    if name == "revision" and value in (None, "main"):
        return Idle("the default")
    return Lost("not handed to the model; name a folder with the model as you want it")


KEYS: tuple[Key, ...] = (
    *TRAINING,
    same("model_name_or_path"),
    same("trust_remote_code"),
    made("attn_implementation", "attn_implementation", _attention, "only eager; else auto, attention per document"),
    made("dtype", "param_dtype", _dtype, "bfloat16 keeps float32 masters"),
    made("torch_dtype", "param_dtype", _dtype, "the old name of dtype"),
    made("model_init_kwargs", "–", _model_init),
    *lost("model_revision", "a revision cannot be named. Download it, and name the folder", "main"),
    made("dataset_name", "train_file, eval_file", _dataset_name, "NAME:CONFIG@SPLIT; the test split if they evaluate"),
    *beside("dataset_config dataset_train_split dataset_test_split", "dataset_name"),
    made("datasets", "train_file, train_files", _datasets, "each once in an epoch; `fraction` is not there"),
    *lost("test_split_size", "nothing is split off. Put held-out rows into a file of their own: eval_file"),
    *idle("dataset_streaming streaming", "files are streamed, and what is encoded is kept"),
    *lost("dataset_text_field", "raw text does not say who speaks; rows must hold turns", "text"),
    *lost("dataset_kwargs", "data is always encoded here"),
    same("dataset_num_proc"),
    made("max_length", "max_length", _max_length, "null, for no limit, is our default", takes_null=True),
    same("max_seq_length", "max_length"),
    made("truncation_mode", "truncation", _truncation, "keep_end cuts whole turns"),
    made("packing", "packing", _packing, "documents never see each other, and are not cut in two"),
    *beside("packing_strategy", "packing"),
    *idle(
        "padding_free pad_to_multiple_of pad_token eval_packing shuffle_dataset",
        "no padding; each epoch is shuffled",
    ),
    made("assistant_only_loss", "train_on", _assistant_only, "false → all"),
    made("completion_only_loss", "train_on", _completion_only, "false → all"),
    *lost("loss_type", "the loss is cross-entropy", "nll", "chunked_nll"),
    *lost("eos_token", "what ends a turn is what the chat template writes"),
    made("chat_template_path", "chat_template_path", _template, "a Jinja file; not a tokenizer's name"),
    same("activation_offloading", "activation_offload"),
    *lost("router_aux_loss_coef", "the loss is that of the tokens alone", 0.0),
    made("use_peft", "lora.enabled", _use_peft),
    _lora("lora_r", "lora.r"),
    _lora("lora_alpha", "lora.alpha"),
    _lora("lora_dropout", "lora.dropout"),
    made("lora_target_modules", "lora.target_modules", _target_modules, "all-linear is the default"),
    _lora("use_rslora", "lora.rslora"),
    _lora("use_dora", "lora.dora"),
    *lost("lora_modules_to_save lora_target_parameters", "adapters are on linear layers alone; no others are trained"),
    *lost("lora_task_type", "causal language models only", "CAUSAL_LM"),
    same("load_in_4bit", note="NF4, with the scales in eight bits"),
    same("load_in_8bit"),
    *lost("bnb_4bit_quant_type", "four bits are NF4", "nf4"),
    *idle("use_bnb_nested_quant bnb_4bit_quant_storage", "scales are in eight bits with load_in_4bit"),
    *idle("ignore_bias_buffers", "for debugging"),
    *lost("env", "variables of the ranks are set in launch: {env: {NAME: VALUE}}"),
)  # fmt: skip


def _if_lora(value: float) -> Any:
    return lambda theirs, _: value if theirs.get("use_peft") else None


TRL = Tool(
    "trl",
    "TRL",
    KEYS,
    (
        *step_defaults(2e-5, 3.0),
        Default("max_length", lambda theirs, _: None if "max_length" in theirs.values else 1024, "1024"),
        Default("gradient_checkpointing", lambda *_: True, "true"),
        Default("logging_steps", lambda *_: 10, "10"),
        Default("lora.dropout", _if_lora(0.05), "0.05, with use_peft"),
    ),
    remarks=(Remark("assistant_only_loss", ("assistant_only_loss", "completion_only_loss"), _TRAINED),),
)
