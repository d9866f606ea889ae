"""Args: every setting of a training run, in the YAML file and on the command line alike. Imports no torch.

Names are those of transformers' TrainingArguments where they exist there; `ALIASES` lists the other spellings taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from sft.lora_args import LoraArgs
from sft.setting_rules import problems_between
from strict_settings import (
    Problem,
    SettingsError,
    above,
    at_least,
    at_most,
    below,
)

ROOT = Path(__file__).resolve().parent.parent
"""The folder that holds `sft/` and `ds_configs/`: the clone, or site-packages."""

ALIASES = {
    "model_name": "model_name_or_path",
    "max_seq_length": "max_length",
    "dataset": "train_file",
    "validation_file": "eval_file",
    "per_device_batch_size": "per_device_train_batch_size",
    "accumulation_steps": "gradient_accumulation_steps",
    "epochs": "num_train_epochs",
    "max_grad": "max_grad_norm",
    "path_chat_template": "chat_template_path",
    "profile": "profile_steps",
    "use_liger_kernel": "liger",
}
"""Other spelling → setting."""

LAUNCHER_OPTIONS = ("--local_rank", "--local-rank")
"""What per-node launchers add to a script's options; the environment says the same."""

FULL_LEARNING_RATE = 5e-6
LORA_LEARNING_RATE = 1e-4

PositiveInt = Annotated[int, at_least(1)]


@dataclass(frozen=True)
class Args:
    """Every setting of a run. Instances from `load_args` are validated; `to_json` is what `arguments.json` holds."""

    # Model
    model_name_or_path: str | None = None
    """Hub name or folder of a causal language model with safetensors weights."""
    model_config: dict[str, Any] | None = None
    """Instead of a name: a transformers config (`{model_type: qwen3, hidden_size: 64, …}`) for random weights."""
    tokenizer_name: str | None = None
    """Hub name or folder of the tokenizer; by default the model's."""
    chat_template_path: str | None = None
    """A Jinja file, or `chatml` for the bundled one; by default the tokenizer's own template."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you have read that code."""
    attn_implementation: str = "auto"
    """`auto`: attention per document, without padding or masks, where the model is found to allow it, else its default;
    or one of transformers' implementations (`sdpa`, `eager`, `flash_attention_2`)."""

    # Data
    train_file: str | None = None
    """Conversations to train on: a file (JSON, JSON Lines, CSV, Parquet, Arrow), a folder of such files or a hub name;
    `name@split` chooses another split than train (docs/data-formats.md)."""
    eval_file: str | None = None
    """Held-out conversations, for the evaluation loss."""
    columns: dict[str, str] = field(default_factory=dict)
    """What our columns are called in your files: `{prompt: ask, response: reply}` or `{messages: dialog}`."""
    max_train_samples: PositiveInt | None = None
    """Take only the first rows of each file, folder or hub name that is trained on."""
    max_eval_samples: PositiveInt | None = None
    """Take only the first rows of `eval_file`."""
    max_length: Annotated[int, at_least(2)] = 2048
    """Tokens per document, and per row with `packing`; longer documents are truncated, and counted."""
    truncation: Literal["right", "left", "drop"] = "right"
    """What happens to longer documents: cut at the end, whole turns cut from the beginning, or dropped. A document of
    which nothing trained remains is dropped, and counted."""
    packing: bool = False
    """Fill rows of `max_length` tokens with several documents each, which do not see each other."""
    train_files: dict[str, Annotated[float, above(0)]] = field(default_factory=dict)
    """Several sources instead of `train_file`: `{chat.jsonl: 1, math.jsonl: 2.5}`, each with how often its rows are
    seen in an epoch."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A row that cannot be read, rendered or masked ends the run before its first step, or is counted and skipped."""
    max_bad_rows: Annotated[int, at_least(0)] = 100
    """With `on_bad_row: skip`, end the run if there are more than this."""
    dataset_num_proc: PositiveInt | None = None
    """Processes that encode the conversations; by default one for every core that this rank may use."""
    dataset_cache_dir: str | None = None
    """Where encoded conversations are kept; by default `cleansft` in `$XDG_CACHE_HOME` or `~/.cache`."""

    # Masks
    train_on: Literal["assistant", "last", "all"] = "assistant"
    """What is trained: every assistant turn (those with `train: false` aside), the last one only, or every token."""
    history: Literal["exact", "as_rendered"] = "exact"
    """For templates that render earlier turns differently once later ones follow: a document of its own for each
    affected turn, under the prompt that it has at inference; or the one render as it is."""
    prompt_mismatch: Literal["as_rendered", "unroll", "refuse"] = "as_rendered"
    """For turns that do not continue what the template gives as the generation prompt: train them as rendered, put
    what is trained after the generation prompt, or refuse the row."""
    special_tokens_in_data: Literal["escape", "error"] = "escape"
    """Control strings such as `<|im_end|>` in what people wrote: keep them as text, or refuse the row."""
    system_prompt: str | None = None
    """Replaces the system message of every conversation; empty: removes it; `auto`: prompts/system_prompt.txt."""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Further variables for the chat template, for example `{enable_thinking: false}`."""
    template_date: str | None = None
    """The date, `YYYY-MM-DD`, that templates see which ask for today's; by default today's."""

    # Optimization
    num_train_epochs: Annotated[float, above(0)] = 1.0
    """Passes over the training data, if `max_steps` is not given."""
    max_steps: PositiveInt | None = None
    """Optimizer steps in all; wins over `num_train_epochs`."""
    per_device_train_batch_size: PositiveInt = 8
    """Conversations in one forward pass of one process."""
    per_device_eval_batch_size: PositiveInt = 8
    """The same for evaluation."""
    gradient_accumulation_steps: PositiveInt = 1
    """Forward passes per optimizer step."""
    train_batch_size: PositiveInt | None = None
    """Conversations per optimizer step over all processes; when given, the accumulation steps follow from it."""
    learning_rate: Annotated[float, above(0)] | None = None
    """Peak learning rate; by default 5e-6 for full fine-tuning and 1e-4 for LoRA."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up: to zero, one step after the last; or not at all."""
    warmup_ratio: Annotated[float, at_least(0), at_most(1)] = 0.1293
    """Share of all steps in which the learning rate rises linearly from zero."""
    warmup_steps: Annotated[int, at_least(0)] | None = None
    """Steps of warm-up; wins over `warmup_ratio`."""
    weight_decay: Annotated[float, at_least(0)] = 0.0
    """AdamW's decoupled weight decay, on matrices only (not on biases and norms)."""
    optim: Literal["adamw", "adamw_8bit"] = "adamw"
    """AdamW; in eight bits its state takes 2 bytes a weight instead of 8 (needs bitsandbytes; one process or DDP)."""
    adam_beta1: Annotated[float, at_least(0), below(1)] = 0.9
    """Decay of AdamW's mean of gradients."""
    adam_beta2: Annotated[float, at_least(0), below(1)] = 0.999
    """Decay of AdamW's mean of squared gradients."""
    adam_epsilon: Annotated[float, above(0)] = 1e-8
    """AdamW's guard against division by zero."""
    max_grad_norm: Annotated[float, above(0)] = 1.0
    """The gradient's global 2-norm is scaled down to this."""
    skip_loss_spikes: Annotated[float, above(0)] | None = None
    """Leave out steps whose loss is so many robust standard deviations above the median of the last 64, 8 for example:
    no rank updates its weights, and the log has the rows. By default none (docs/recovery.md)."""
    max_loss_spikes: PositiveInt = 3
    """With skip_loss_spikes: after so many of them in a row, the next one ends the run."""
    seed: Annotated[int, at_least(0)] = 42
    """Random weights, data order and dropout follow from it."""

    # Precision and memory
    bf16: bool | None = None
    """bfloat16 forward and backward passes with fp32 weights in the optimizer; by default where the device has it."""
    load_in_4bit: bool = False
    """QLoRA: the frozen weights of the layers in four bits (NF4, with scales in eight), for `lora` (needs bitsandbytes;
    one process or DDP)."""
    load_in_8bit: bool = False
    """The same in eight bits (LLM.int8)."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the parameters that layers compute with. In bfloat16 they have float32 masters, which are what
    is trained, saved and exported: nothing is cast in each pass, and frozen weights take half the memory. FSDP2 and
    ZeRO 1–3 compute so with bf16 in any case."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    gradient_checkpointing_every: PositiveInt = 1
    """With gradient_checkpointing: recompute one of every so many decoder layers, for memory and time in between."""
    activation_offload: bool = False
    """With gradient_checkpointing on a GPU: keep the inputs of recomputed layers in the host's memory."""
    mlp_tile_tokens: PositiveInt | None = None
    """Compute the feed-forward blocks for so many tokens at a time, again in the backward pass: for very long rows."""
    compile: bool = False
    """torch.compile each decoder layer by itself: faster on GPUs; the first steps take longer. With `packing` rows
    have a fixed capacity, so that all steps have one shape; without it one code serves all lengths."""
    liger: bool = False
    """Liger's kernels for norms, rotary positions and feed-forward blocks, on GPUs (needs liger-kernel)."""

    # Engine
    deepspeed: str | None = None
    """A DeepSpeed ZeRO settings file (`ds_configs/zero2.json`); by default plain torch (DDP)."""
    fsdp: bool = False
    """Shard weights, gradients and optimizer state by torch's FSDP2 (`fully_shard`)."""
    fsdp_shard_size: PositiveInt | None = None
    """With fsdp: so many neighbouring ranks, such as a node's, share one copy of the state, and gradients are averaged
    over the copies (hybrid sharding); by default all ranks share one (docs/scaling.md)."""
    sequence_parallel_size: PositiveInt = 1
    """Neighbouring processes that share the tokens of each row, for rows too long for one (docs/long-rows.md)."""
    ddp_timeout: Annotated[int, at_least(1)] = 1800
    """Seconds that a collective may take before the run is ended."""

    # Adapters
    lora: LoraArgs = field(default_factory=lambda: LoraArgs(enabled=False))
    """Mapping `{enabled, r, alpha, dropout, target_modules, merge}`; naming it turns it on."""

    # Evaluation
    eval_steps: PositiveInt | None = None
    """Evaluate every so many steps; by default at the end of every epoch."""
    early_stopping_patience: PositiveInt | None = None
    """End the run after so many evaluations without a better loss."""
    load_best_model_at_end: bool = False
    """Write the weights of the best evaluation as the final model, instead of the last ones."""

    # Output
    output_dir: str = "runs/latest"
    """Where everything goes: the model, checkpoints, TensorBoard events and logs."""
    run_name: str | None = None
    """Name of the run; the launcher makes the run directory from it."""
    logging_steps: PositiveInt = 1
    """Log every so many steps, and the first and the last."""
    parameter_check_steps: Annotated[int, at_least(0)] = 0
    """Compare the weights' bits over ranks that must have the same, every so many steps; 0: never. It takes about as
    long as reading the weights once."""
    profile_steps: Annotated[int, at_least(0)] = 0
    """Record so many steps of rank 0 with torch's profiler, after the first two, to `profile/` in the output directory;
    Perfetto and TensorBoard open it. 0: none."""
    matmul_tflops: Annotated[float, above(0)] | None = None
    """What one device reaches in matrix products, in 10**12 operations per second: the whole of which the logged `mfu`
    is the share. By default it is measured at the start, in a tenth of a second."""
    save_steps: Annotated[int, at_least(0)] = 500
    """Checkpoint every so many steps; 0: never."""
    save_total_limit: PositiveInt = 2
    """Keep so many checkpoints."""
    save_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the final weights; `auto`: that of the model we started from."""
    resume_from_checkpoint: str = "auto"
    """`auto`: the newest checkpoint in `output_dir`, if there is one; `none`; or a checkpoint's folder."""
    resume_override: list[str] = field(default_factory=list)
    """Settings that may differ from the checkpoint's; also `chat_template` and `tokenizer` (docs/recovery.md)."""
    accept_data_change: bool = False
    """Go on from a checkpoint although the training data has changed since."""
    report_to: str | list[str] = field(default_factory=lambda: ["tensorboard"])
    """Where the scalars go besides `training_log.json`: `tensorboard`; `wandb`, `mlflow` or `trackio` beside it, or
    several of them, on this machine where there is no network (docs/run-directory.md); or `none`."""

    # The launcher's
    launch: dict[str, Any] = field(default_factory=dict)
    """Read by `python -m launch` only: nodes, partition and the like."""

    def __post_init__(self) -> None:
        # HfArgumentParser and plain Python hand a mapping over; both spellings give the same object.
        if isinstance(self.lora, Mapping):
            object.__setattr__(self, "lora", LoraArgs(**self.lora))

    @property
    def train_sources(self) -> dict[str, float]:
        """File → how often its rows are seen in an epoch."""
        return dict(self.train_files) or {str(self.train_file): 1.0}

    @property
    def peak_learning_rate(self) -> float:
        """`learning_rate`, or the default that belongs to full fine-tuning or to LoRA."""
        default = LORA_LEARNING_RATE if self.lora.enabled else FULL_LEARNING_RATE
        return self.learning_rate if self.learning_rate is not None else default

    @property
    def reports(self) -> tuple[str, ...]:
        """The names in `report_to`."""
        return (self.report_to,) if isinstance(self.report_to, str) else tuple(dict.fromkeys(self.report_to))

    @property
    def trackers(self) -> tuple[str, ...]:
        """Those of libraries that are asked beside TensorBoard."""
        return tuple(name for name in self.reports if name not in ("tensorboard", "none"))

    @property
    def recomputed_share(self) -> float:
        """The share of decoder layers that the backward pass computes again."""
        return 1 / self.gradient_checkpointing_every if self.gradient_checkpointing else 0.0

    @property
    def row_capacity(self) -> int | None:
        """Tokens to which a micro-batch's row is filled up, for shapes that do not change; None: as many as there are.

        Packed rows are nearly full anyway. Without packing, rows of that many tokens would be mostly padding.
        """
        return self.max_length * self.per_device_train_batch_size if self.compile and self.packing else None

    def in_bf16(self, has_bf16: bool) -> bool:
        """Whether forward and backward passes are in bfloat16, on a device that has it or not."""
        return self.bf16 if self.bf16 is not None else has_bf16 or self.param_dtype == "bfloat16"

    def accumulation_steps(self, world_size: int) -> int:
        """Forward passes per optimizer step.

        Raises:
            SettingsError: `train_batch_size` is no multiple of what all processes take in one pass, or the processes
                cannot be shared out into groups of `sequence_parallel_size`.
        """
        if problems := list(self.batch_problems(world_size)):
            raise SettingsError(problems)
        if self.train_batch_size is None:
            return self.gradient_accumulation_steps
        return self.train_batch_size // self._rows_per_pass(world_size)

    def rows_per_step(self, world_size: int) -> int:
        """Rows of an optimizer step over all processes. Raises as `accumulation_steps` does."""
        return self.accumulation_steps(world_size) * self._rows_per_pass(world_size)

    def _rows_per_pass(self, world_size: int) -> int:
        return world_size // self.sequence_parallel_size * self.per_device_train_batch_size

    def batch_problems(self, world_size: int) -> Iterator[Problem]:
        """Whether rows and `train_batch_size` can be shared out, with the arithmetic and the nearest sizes that can."""
        size = self.sequence_parallel_size
        if world_size % size:
            valid = " or ".join(str(number) for number in range(1, world_size + 1) if world_size % number == 0)
            remedy = f"Take {valid}, or start a multiple of {size} processes."
            yield Problem("sequence_parallel_size", size, f"divide the number of processes, {world_size}", remedy)
            return
        per_pass = self._rows_per_pass(world_size)
        if self.train_batch_size is not None and self.train_batch_size % per_pass:
            lower = self.train_batch_size // per_pass * per_pass
            valid = f"{lower} or {lower + per_pass}" if lower else f"{per_pass}"
            takers = "processes" if size == 1 else "sequence groups"
            rule = (
                f"be a multiple of {per_pass} = {world_size // size} {takers} × "
                f"{self.per_device_train_batch_size} per_device_train_batch_size"
            )
            yield Problem("train_batch_size", self.train_batch_size, rule, f"Take {valid}.")
        if self.fsdp_shard_size is not None and world_size % self.fsdp_shard_size:
            remedy = "Take the number of processes of a node."
            yield Problem("fsdp_shard_size", self.fsdp_shard_size, f"divide the {world_size} processes", remedy)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `arguments.json` holds them."""
        return dataclasses.asdict(self)

    def problems(self) -> Iterator[Problem]:
        """What is wrong between settings; each field alone is checked by its annotation."""
        return problems_between(self)
