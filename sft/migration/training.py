"""Keys of transformers' TrainingArguments (5.x), which TRL and LLaMA-Factory share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sft.migration.mapping import Default, Idle, Key, Lost, Made, Taken, Theirs, beside, idle, lost, made, same, words
from sft.migration.sharing import fsdp, zero_file
from sft.setting_rules import REPORTS

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant"}
OPTIMIZERS = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw"), "adamw"),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"), "adamw_8bit"),
    "paged_adamw_32bit": "adamw",
}
NO_CLIPPING = 1e9
HUB = "`python -m sft export RUN --push NAME` uploads, when it is asked to"
LIGER = "for norms, rotary positions and feed-forward blocks; the loss is in tiles in any case"
TRACKERS = tuple(name for name in REPORTS if name not in ("tensorboard", "none"))
"""What `report_to` may name beside TensorBoard, which is there in any case."""
REPORTED = f"there is TensorBoard, and beside it {', '.join(TRACKERS)}"
LOADER = "the next step's batch is made by a thread meanwhile"


def max_steps(value: Any, _: Theirs) -> Taken:
    """-1 stands for none."""
    return Made({"max_steps": value}) if isinstance(value, int) and value > 0 else Idle("no limit, as here")


def warmup(value: Any, theirs: Theirs) -> Taken:
    """`warmup_steps` below 1 is a ratio; their `constant` has no warm-up."""
    if theirs.get("lr_scheduler_type", theirs.get("lr_scheduler")) == "constant":
        return Idle("`constant` has no warm-up")
    if isinstance(value, float) and 0 < value < 1:
        return Made({"warmup_ratio": value})
    if value == 0 and theirs.get("warmup_ratio") is not None:
        return Idle("warmup_ratio holds")
    return Made({"warmup_steps": int(value)})


def warmup_ratio(value: Any, theirs: Theirs) -> Taken:
    """Steps win over the ratio, there and here."""
    if theirs.get("lr_scheduler_type", theirs.get("lr_scheduler")) == "constant":
        return Idle("`constant` has no warm-up")
    return Made({"warmup_ratio": value})


def schedule(value: Any, _: Theirs) -> Taken:
    """Their `constant` begins at the full rate."""
    ours = SCHEDULES.get(str(value).lower())
    if ours is None:
        return Lost("there is only cosine, linear, constant; without a word it would be cosine")
    return Made({"lr_scheduler_type": ours, **({"warmup_steps": 0} if value == "constant" else {})})


def max_grad_norm(value: Any, _: Theirs) -> Taken:
    """0 stands for no clipping."""
    if value:
        return Made({"max_grad_norm": value})
    return Made({"max_grad_norm": NO_CLIPPING}, "gradients are always clipped; so large a norm is never reached")


def bf16(value: Any, theirs: Theirs) -> Taken:
    """Left to the device where they want fp16 or say `auto`."""
    if value is False and theirs.get("fp16"):
        return Idle("fp16 tells")
    return Made({"bf16": value}) if isinstance(value, bool) else Idle("taken where the device has it, as here")


def compiled(value: Any, _: Theirs) -> Taken:
    """`auto` is on where it can be."""
    return Made({"compile": bool(value)}, "each decoder layer is compiled by itself" if value else "")


def report_to(value: Any, _: Theirs) -> Taken:
    """The trackers that are there, beside training_log.json."""
    named = [str(name) for name in (value if isinstance(value, list) else [value])]
    others = [name for name in named if name not in (*REPORTS, "all")]
    if others and others == named:
        return Lost(REPORTED)
    return Made({"report_to": reports(named)}, f"without {', '.join(others)}" if others else "")


def reports(named: Sequence[str]) -> str | list[str]:
    """`report_to` for what their file names."""
    trackers = [name for name in TRACKERS if name in named]
    if not trackers:
        return "none" if "none" in named else "tensorboard"
    return trackers[0] if len(trackers) == 1 else trackers


def eval_strategy(value: Any, _: Theirs) -> Taken:
    """At the end of each epoch is our default."""
    if str(value) == "no":
        return Made({})
    return Made({}, "" if str(value) == "steps" else "the end of each epoch is the default")


def eval_steps(value: Any, theirs: Theirs) -> Taken:
    """Counts only with `eval_strategy: steps`."""
    strategy = theirs.get("eval_strategy", theirs.get("evaluation_strategy"))
    if strategy in ("no", "epoch", False):
        return Idle(f"eval_strategy is {strategy}")
    return whole("eval_steps", "steps, not a share of them")(value, theirs)


def save_strategy(value: Any, _: Theirs) -> Taken:
    """Every so many steps, or never."""
    if value in ("no", False):
        return Made({"save_steps": 0})
    if value == "steps":
        return Made({})
    return Lost("checkpoints are made every so many steps: save_steps, 500 by default")


def save_steps(value: Any, theirs: Theirs) -> Taken:
    """Counts only where checkpoints are made by steps."""
    strategy = theirs.get("save_strategy", "steps")
    if strategy != "steps":
        return Idle(f"save_strategy is {strategy}")
    return whole("save_steps", "steps, not a share of them")(value, theirs)


def whole(setting: str, unit: str) -> Callable[[Any, Theirs], Taken]:
    """A whole number of ours, which they may also give as a share."""

    def take(value: Any, _: Theirs) -> Taken:
        if isinstance(value, int | float) and value >= 1 and value == int(value):
            return Made({setting: int(value)})
        return Lost(f"{setting} is a number of {unit}")

    return take


def resume(value: Any, _: Theirs) -> Taken:
    """Other trainers' checkpoints cannot be read."""
    if value is True or value == "latest":
        return Idle("a run goes on from its newest checkpoint by itself")
    return Idle("off") if value is False else Lost("checkpoints of another trainer cannot be read")


def best_metric(value: Any, _: Theirs) -> Taken:
    """The evaluation loss is the only one."""
    return Idle("as here") if value in ("loss", "eval_loss") else Lost("the best evaluation is that of the least loss")


def modules(value: Any) -> Made | Lost:
    """Layers that get adapters: a list, a comma-separated text, or a word for all."""
    if value in ("all", "all-linear", ["all-linear"], ["all"]):
        return Made({"lora.target_modules": []})
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else list(value)
    if any(not str(name).replace("_", "").replace(".", "").isalnum() for name in names):
        return Lost("layers are named one by one, not by a pattern")
    return Made({"lora.target_modules": names})


def has_warmup(theirs: Theirs) -> bool:
    """Whether their file says how long the learning rate rises."""
    return theirs.get("warmup_steps") is not None or theirs.get("warmup_ratio") is not None


def no_warmup(theirs: Theirs, settings: Any) -> float | None:
    """Their default, where the file says nothing."""
    return None if has_warmup(theirs) or "warmup_steps" in settings else 0.0


TRAINING: tuple[Key, ...] = (
    same("output_dir"),
    same("run_name"),
    same("per_device_train_batch_size"),
    same("per_device_eval_batch_size"),
    same("gradient_accumulation_steps"),
    same("learning_rate"),
    same("num_train_epochs"),
    made("max_steps", "max_steps", max_steps, "-1: no limit"),
    made("lr_scheduler_type", "lr_scheduler_type", schedule, "constant_with_warmup → constant; no others"),
    made("warmup_ratio", "warmup_ratio", warmup_ratio),
    made("warmup_steps", "warmup_steps, warmup_ratio", warmup, "below 1 it is a ratio"),
    words("optim", "optim", OPTIMIZERS, "AdamW of any make; in eight bits adamw_8bit"),
    same("weight_decay"),
    same("adam_beta1"),
    same("adam_beta2"),
    same("adam_epsilon"),
    made("max_grad_norm", "max_grad_norm", max_grad_norm, "0 → 1e9, since gradients are always clipped"),
    same("seed"),
    made("bf16", "bf16", bf16, "default: where the device has it"),
    *lost("fp16", "there is bfloat16, where the device has it, and float32"),
    same("gradient_checkpointing"),
    same("activation_checkpointing", "gradient_checkpointing"),
    made("torch_compile", "compile", compiled, "each decoder layer by itself"),
    same("use_liger_kernel", "liger", LIGER),
    made("report_to", "report_to", report_to, ", ".join(REPORTS)),
    made("logging_steps", "logging_steps", whole("logging_steps", "steps, not a share of them")),
    made("eval_strategy", "–", eval_strategy, "evaluations are by steps, or at the end of each epoch"),
    made("evaluation_strategy", "–", eval_strategy, "the old name of eval_strategy"),
    made("eval_steps", "eval_steps", eval_steps),
    made("save_strategy", "save_steps", save_strategy, "no → save_steps: 0; epoch is not there"),
    made("save_steps", "save_steps", save_steps),
    same("save_total_limit"),
    same("load_best_model_at_end"),
    made("metric_for_best_model", "–", best_metric, "the loss only"),
    same("ddp_timeout"),
    made("deepspeed", "deepspeed", zero_file, "the file of ds_configs/ with the same stage and offload"),
    made("fsdp", "fsdp", fsdp, "FSDP2, whatever is wrapped"),
    *beside("fsdp_config", "fsdp"),
    made("resume_from_checkpoint", "–", resume, "goes on by itself, from its own checkpoints"),
    *lost(
        "overwrite_output_dir",
        "a run goes on from the checkpoints in its output_dir; give it a new one to begin anew",
    ),
    *lost("fp16_full_eval", "there is bfloat16, where the device has it, and float32"),
    *lost("neftune_noise_alpha", "no noise is added to embeddings", 0),
    *lost("label_smoothing_factor", "the loss is plain cross-entropy", 0, 0.0),
    *lost("auto_find_batch_size", "batch sizes are not searched for; `python -m sft estimate` tells what fits"),
    *lost("save_only_model", "checkpoints hold the optimizer's state too; save_steps: 0 makes none"),
    *lost("greater_is_better", "the best evaluation is that of the least loss"),
    *lost("dataloader_drop_last", "no row is dropped"),
    *lost("data_seed", "seed alone orders the data"),
    *lost("lr_scheduler_kwargs optim_args optim_target_modules", "the optimizer is AdamW, its schedule one of three"),
    *lost("torch_compile_backend", "it is inductor", "inductor"),
    *lost("torch_compile_mode", "it is inductor's default", "default"),
    *lost("liger_kernel_config", "which kernels are used is fixed"),
    *lost("eval_delay eval_on_start", "evaluations are every eval_steps steps, or at the end of each epoch", 0),
    *lost("parallelism_config accelerator_config", "see deepspeed, fsdp, fsdp_shard_size, sequence_parallel_size"),
    *lost("tf32", "float32 products are as torch makes them by default"),
    *lost("full_determinism ignore_data_skip", "random numbers follow from seed, step and rank"),
    *lost("push_to_hub hub_model_id hub_strategy hub_private_repo hub_always_push hub_token hub_revision", HUB),
    *lost(
        "project trackio_space_id trackio_bucket_id trackio_static_space_id",
        "trackers ask the environment: WANDB_PROJECT, MLFLOW_EXPERIMENT_NAME, TRACKIO_SPACE_ID",
        "huggingface",
        "trackio",
    ),
    *lost("use_cpu", "the device is the one that is there"),
    *lost("do_predict", "`python -m sft evaluate` asks a trained model"),
    *idle("do_train do_eval local_rank", "what is named is done"),
    *idle(
        "gradient_checkpointing_kwargs activation_checkpointing_kwargs",
        "how layers are computed again is the trainer's own",
    ),
    *idle(
        "group_by_length length_column_name train_sampling_strategy",
        "rows are shared out by what they cost, without padding",
    ),
    *idle("average_tokens_across_devices", "the loss is over the trained tokens of all ranks and micro-batches"),
    *idle(
        "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor",
        LOADER,
    ),
    *idle("dataloader_multiprocessing_context dataloader_in_order", LOADER),
    *idle(
        "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend",
        "the engine sets it",
    ),
    *idle("remove_unused_columns label_names use_cache", "columns that are not turns are not read"),
    *idle(
        "logging_strategy logging_first_step log_level log_level_replica log_on_each_node disable_tqdm",
        "the log has the first step and the last in any case",
    ),
    *idle("logging_nan_inf_filter", "a loss that is not finite ends the run"),
    *idle(
        "include_num_input_tokens_seen include_for_metrics skip_memory_metrics debug",
        "the log has tokens and memory",
    ),
    *idle(
        "prediction_loss_only eval_accumulation_steps eval_do_concat_batches batch_eval_metrics bf16_full_eval",
        "evaluation is the loss",
    ),
    *idle(
        "eval_use_gather_object torch_empty_cache_steps save_on_each_node enable_jit_checkpoint",
        "the trainer's own way",
    ),
    *idle("restore_callback_states_from_checkpoint", "there are none"),
)  # fmt: skip


def step_defaults(learning_rate: float, epochs: float) -> tuple[Default, ...]:
    """What TrainingArguments does where nothing is said."""
    return (
        Default("learning_rate", lambda *_: learning_rate, f"{learning_rate:g}"),
        Default("num_train_epochs", lambda _, ours: None if "max_steps" in ours else epochs, f"{epochs:g}"),
        Default("lr_scheduler_type", lambda *_: "linear", "linear"),
        Default("warmup_ratio", no_warmup, "0"),
    )
