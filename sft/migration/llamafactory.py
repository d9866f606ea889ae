"""LLaMA-Factory: the YAML of `llamafactory-cli train`, as of 0.9.5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sft.migration.llamafactory_data import dataset, eval_dataset
from sft.migration.mapping import (
    Default,
    Idle,
    Key,
    Lost,
    Made,
    Refused,
    Taken,
    Theirs,
    Tool,
    beside,
    idle,
    lost,
    made,
    same,
)
from sft.migration.training import LIGER, REPORTED, TRAINING, modules, step_defaults

_OWN = "the tokenizer's own template is taken; `python -m sft inspect` shows what it renders"


def _stage(value: Any, _: Theirs) -> Taken:
    return Made({}) if value == "sft" else Refused("be sft", "Only supervised fine-tuning is done here.")


def _kind(value: Any, _: Theirs) -> Taken:
    if value in ("lora", "full"):
        return Made({"lora.enabled": True} if value == "lora" else {})
    return Refused("be lora or full", "Other kinds of adapters, and frozen layers, are not there.")


def _is_lora(theirs: Theirs) -> bool:
    return bool(theirs.get("finetuning_type", "lora") == "lora")


def _lora(name: str, setting: str) -> Key:
    def take(value: Any, theirs: Theirs) -> Taken:
        return Made({setting: value}) if _is_lora(theirs) else Idle("finetuning_type is full")

    return made(name, setting, take, "with finetuning_type: lora")


def _target(value: Any, theirs: Theirs) -> Taken:
    return modules(value) if _is_lora(theirs) else Idle("finetuning_type is full")


def _bits(value: Any, _: Theirs) -> Taken:
    if value in (4, 8):
        return Made({f"load_in_{value}bit": True})
    return Lost("weights have four bits (load_in_4bit) or eight (load_in_8bit)")


def _template(value: Any, _: Theirs) -> Taken:
    return Made({"chat_template_path": "chatml"}) if value == "chatml" else Made({}, _OWN)


def _thinking(value: Any, theirs: Theirs) -> Taken:
    note = "handed to the chat template; LLaMA-Factory adds empty thoughts to answers without"
    return Made({"template_kwargs": {"enable_thinking": bool(value)}}, note)


def _train_on_prompt(value: Any, _: Theirs) -> Taken:
    return Made({"train_on": "all"}, "every token is trained, what the template writes included") if value else Made({})


def _mask_history(value: Any, _: Theirs) -> Taken:
    return Made({"train_on": "last"}) if value else Made({})


def _packing(value: Any, theirs: Theirs) -> Taken:
    if not value:
        return Made({"packing": bool(theirs.get("neat_packing", False))})
    differs = not theirs.get("neat_packing", False)
    return Made({"packing": True}, "documents of a row never see each other, as with neat_packing" if differs else "")


def _neat_packing(value: Any, theirs: Theirs) -> Taken:
    return Made({"packing": True} if value else {})


def _cutoff(value: Any, _: Theirs) -> Taken:
    note = "longer documents are cut at the end; LLaMA-Factory shortens prompt and answer in proportion"
    return Made({"max_length": value}, note)


def _attention(value: Any, _: Theirs) -> Taken:
    if value == "disabled":
        return Made({"attn_implementation": "eager"})
    if value == "auto":
        return Idle("the default")
    return Made({}, "auto attends within each document without padding; attn_implementation chooses another")


def _no_checkpointing(value: Any, _: Theirs) -> Taken:
    return Made({"gradient_checkpointing": not value})


def _unsloth(value: Any, _: Theirs) -> Taken:
    if not value:
        return Idle("off, as here")
    note = "inputs of recomputed layers go to the host's memory, on a GPU"
    return Made({"gradient_checkpointing": True, "activation_offload": True}, note)


def _pure_bf16(value: Any, _: Theirs) -> Taken:
    if not value:
        return Idle("off, as here")
    return Made({"param_dtype": "bfloat16"}, "float32 masters stand beside the bfloat16 weights and are trained")


def _first_rows(value: Any, theirs: Theirs) -> Taken:
    held_out = {"max_eval_samples": value} if theirs.get("eval_dataset") else {}
    return Made({"max_train_samples": value, **held_out})


def _mixed(value: Any, theirs: Theirs) -> Taken:
    if value == "concat":
        return Idle("as here")
    return Lost("files follow one permutation; train_files says how often each is seen in an epoch")


KEYS: tuple[Key, ...] = (
    *TRAINING,
    made("stage", "–", _stage, "sft; anything else is refused"),
    made("finetuning_type", "lora.enabled", _kind, "lora or full; anything else is refused"),
    same("model_name_or_path"),
    same("trust_remote_code"),
    *lost("model_revision", "a revision cannot be named. Download it, and name the folder", "main"),
    made("dataset", "train_file, train_files, columns", dataset, "looked up in dataset_info.json"),
    made("eval_dataset", "eval_file", eval_dataset, "the first of them"),
    *beside("dataset_dir", "dataset"),
    made("mix_strategy", "–", _mixed, "concat only"),
    *lost("interleave_probs", "train_files says how often each file is seen in an epoch"),
    *lost("val_size", "nothing is split off. Put held-out rows into a file of their own: eval_file", 0, 0.0),
    made("max_samples", "max_train_samples, max_eval_samples", _first_rows, "of each dataset, as there"),
    made("template", "chat_template_path", _template, "chatml; else the tokenizer's own template"),
    made("enable_thinking", "template_kwargs", _thinking, "where the chat template knows it"),
    same("default_system", "system_prompt", "replaces the rows' own system messages too"),
    made("cutoff_len", "max_length", _cutoff, "documents are cut at the end"),
    made("packing", "packing", _packing, "documents of a row never see each other"),
    made("neat_packing", "packing", _neat_packing),
    made("train_on_prompt", "train_on", _train_on_prompt, "true → all"),
    made("mask_history", "train_on", _mask_history, "true → last"),
    same("preprocessing_num_workers", "dataset_num_proc"),
    made("flash_attn", "attn_implementation", _attention, "disabled → eager; else auto, attention per document"),
    same("enable_liger_kernel", "liger", LIGER),
    made("disable_gradient_checkpointing", "gradient_checkpointing", _no_checkpointing, "turned round"),
    made("use_unsloth_gc", "gradient_checkpointing, activation_offload", _unsloth),
    made("pure_bf16", "param_dtype", _pure_bf16, "with float32 masters"),
    _lora("lora_rank", "lora.r"),
    _lora("lora_alpha", "lora.alpha"),
    _lora("lora_dropout", "lora.dropout"),
    made("lora_target", "lora.target_modules", _target, "all is the default"),
    _lora("use_rslora", "lora.rslora"),
    _lora("use_dora", "lora.dora"),
    made("quantization_bit", "load_in_4bit, load_in_8bit", _bits),
    *lost("quantization_method", "weights in few bits are bitsandbytes'", "bnb", "bitsandbytes"),
    *lost("quantization_type", "four bits are NF4", "nf4"),
    *idle("double_quantization quantization_device_map", "scales are in eight bits with load_in_4bit"),
    *lost(
        "additional_target create_new_adapter adapter_name_or_path adapter_folder",
        "training begins with new adapters on linear layers, and no other layers",
    ),
    *lost(
        "loraplus_lr_ratio loraplus_lr_embedding pissa_init pissa_convert",
        "adapters are LoRA, DoRA or rsLoRA, one learning rate for all",
    ),
    *lost("use_galore use_apollo use_badam use_adam_mini use_muon", "the optimizer is AdamW"),
    *lost("use_dft_loss use_asft_loss use_eaft_loss", "the loss is cross-entropy"),
    *lost(
        "add_tokens add_special_tokens new_special_tokens_config resize_vocab",
        "no token is added. Save the tokenizer with it, and name that: tokenizer_name",
    ),
    *lost(
        "rope_scaling shift_attn mixture_of_depths moe_aux_loss_coef use_llama_pro train_from_scratch",
        "the model is taken as it is",
    ),
    *lost("use_mca use_hyper_parallel use_kt use_unsloth fp8", "the engines are DDP, FSDP2 and DeepSpeed"),
    *lost(
        "init_special_tokens module_dropout simpo_gamma ld_alpha asft_alpha eaft_alpha hyper_parallel_args",
        "what they belong to is not there",
        "noise_init",
        0.0,
        1.0,
    ),
    *lost("use_audio_in_video crop_to_patches", "images, sound and video are refused"),
    *idle(
        "eval_num_beams offload_folder compute_dtype device_map model_max_length block_diag_attn",
        "the trainer's own way",
    ),
    *lost("use_swanlab", REPORTED),
    *lost("early_stopping_steps", "early_stopping_patience counts evaluations; it needs an eval_file"),
    *lost("disable_shuffling", "each epoch is shuffled"),
    *lost(
        "tool_format preserve_thinking",
        "calls and reasoning are rendered by the chat template; see history: as_rendered",
    ),
    *lost(
        "freeze_vision_tower freeze_multi_modal_projector image_max_pixels video_max_pixels media_dir",
        "images, sound and video are refused",
        True,
    ),
    *lost(
        "predict_with_generate compute_accuracy eval_on_each_dataset",
        "`python -m sft evaluate` asks a trained model",
    ),
    *idle(
        "overwrite_cache preprocessing_batch_size tokenized_path data_shared_file_system",
        "encoded data is kept under a hash of all that it depends on",
    ),
    *idle("streaming buffer_size", "files are streamed, and what is encoded is kept"),
    *idle(
        "plot_loss include_effective_tokens_per_second print_param_status",
        "`python -m sft report RUN` draws curves",
    ),
    *idle(
        "use_fast_tokenizer split_special_tokens low_cpu_mem_usage use_reentrant_gc upcast_layernorm",
        "so it is here",
    ),
    *idle(
        "upcast_lmhead_output use_kv_cache use_v1_kernels cache_dir ignore_pad_token_for_loss",
        "the trainer's own way",
    ),
    *idle("ray_num_workers master_addr master_port", "`python -m launch` starts the nodes"),
    *idle(
        "hf_hub_token ms_hub_token om_hub_token",
        "HF_TOKEN is read from the environment or .env. Take tokens out of files",
    ),
)  # fmt: skip


def _rank(theirs: Theirs, _: Mapping[str, Any]) -> int | None:
    return 8 if _is_lora(theirs) else None


def _alpha(theirs: Theirs, ours: Mapping[str, Any]) -> int | None:
    return 2 * ours["lora.r"] if _is_lora(theirs) else None


def _precision(theirs: Theirs, _: Mapping[str, Any]) -> bool | None:
    return None if any(theirs.get(name) for name in ("bf16", "fp16", "pure_bf16")) else False


LLAMAFACTORY = Tool(
    "llamafactory",
    "LLaMA-Factory",
    KEYS,
    (
        *step_defaults(5e-5, 3.0),
        Default("gradient_checkpointing", lambda *_: True, "true"),
        Default("bf16", _precision, "false"),
        Default("lora.r", _rank, "8"),
        Default("lora.alpha", _alpha, "2 · lora_rank"),
    ),
    prefixes={
        **dict.fromkeys(
            ("pref_", "dpo_", "kto_", "ppo_", "ref_model", "reward_model"), "only supervised fine-tuning is done"
        ),
        **dict.fromkeys(
            ("galore_", "apollo_", "badam_", "freeze_", "oft_", "pissa_"),
            "the optimizer is AdamW, on all weights or LoRA's",
        ),
        **dict.fromkeys(
            ("vllm_", "sglang_", "infer_", "export_"), "`python -m sft export` and chat come after the training"
        ),
        **dict.fromkeys(("image_", "video_", "audio_"), "images, sound and video are refused"),
        **dict.fromkeys(("swanlab_", "profiler_", "ray_", "kt_", "mcore_"), "there is nothing like it"),
    },
)
