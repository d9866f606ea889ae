"""Tokenizer and model: from a hub name, a folder, or a config with random weights."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from sft.config import Args
from sft.eight_bit import require_bitsandbytes
from sft.liger import use_liger
from sft.tiling import tile_mlps
from sft.tokenizer import cannot_load, listed, pad_token_id
from sft.world import has_bf16
from strict_settings import Problem, SettingsError


@dataclass(frozen=True)
class BuiltModel:
    """A model in float32 on the CPU, and what the export has to know of where it came from."""

    model: Any
    """A transformers causal LM, or a peft model around one."""
    save_dtype: torch.dtype
    """Number format of the final weights."""


def build_model(
    args: Args, tokenizer: Any, *, with_weights: bool = True, device: torch.device | None = None
) -> BuiltModel:
    """The model with a vocabulary that holds the tokenizer's, gradient checkpointing and adapters as asked for.

    Random weights follow from `seed` alone, so that every rank makes the same ones. `with_weights=False` only takes
    the configuration of a model that has a name, for tensors without memory (`memory_trace.without_memory`).
    `device` is where the model is going to be; weights in four or eight bits are put there at once.

    Raises:
        SettingsError: the model cannot be loaded, or does not go with the tokenizer.
    """
    config = _config(args, tokenizer)
    save_dtype = _save_dtype(args, config)
    if not with_weights:
        sizes = config.get_text_config()
        sizes.vocab_size = max(sizes.vocab_size, len(tokenizer))
    is_random = args.model_config is not None or not with_weights
    model = _from_config(args, config) if is_random else _from_pretrained(args, config, device or torch.device("cpu"))
    _fit_vocabulary(model, tokenizer, args)
    model.config.use_cache = False
    if args.gradient_checkpointing:
        # Named anew in transformers 5.2x; 5.17 knows only the old name.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
        _recompute_one_of(model, args.gradient_checkpointing_every)
    if args.liger and with_weights:
        use_liger(model, device or torch.device("cpu"))
    if args.mlp_tile_tokens is not None:
        tile_mlps(model, args.mlp_tile_tokens)
    if args.lora.enabled:
        model = _with_adapters(model, args)
    return BuiltModel(model, save_dtype)


def _recompute_one_of(model: Any, every: int) -> None:
    """Leaves gradient checkpointing on in one of every so many decoder layers, from the first.

    Raises:
        SettingsError: the model does not recompute layer by layer.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers and every > 1:
        rule = f"be 1 with {model.config.model_type}, whose layers are not recomputed one by one"
        raise SettingsError(Problem("gradient_checkpointing_every", every, rule))
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = number % every == 0


def _from_pretrained(args: Args, config: Any, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM

    few_bits = _in_few_bits(args, device)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            args.model_name_or_path,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=args.trust_remote_code,
            attn_implementation=_attention(args),
            **few_bits,
        )
    except Exception as error:  # the library raises many kinds; its own words are the best there are
        blamed = _refused_attention(args, config)
        raise blamed or cannot_load("model_name_or_path", args.model_name_or_path, error) from error
    for layer in filter(lambda module: hasattr(module, "support_avx512bf16_for_cpu"), model.modules()):
        # With it, an evaluation lays 4-bit weights out for inference, for good, and no gradient passes them any more.
        layer.support_avx512bf16_for_cpu = False
    return model


def _in_few_bits(args: Args, device: torch.device) -> dict[str, Any]:
    """What transformers is told to load the layers' weights in four or eight bits (Dettmers et al., "QLoRA", 2023)."""
    if not (args.load_in_4bit or args.load_in_8bit):
        return {}
    require_bitsandbytes("load_in_4bit" if args.load_in_4bit else "load_in_8bit", True)
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=args.load_in_4bit,
        load_in_8bit=args.load_in_8bit,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if args.in_bf16(has_bf16(device)) else torch.float32,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def _attention(args: Args) -> str | None:
    """What transformers is told: with `auto` nothing, so that it takes the model's default."""
    return None if args.attn_implementation == "auto" else args.attn_implementation


def _config(args: Args, tokenizer: Any) -> Any:
    from transformers import AutoConfig

    if args.model_config is None:
        try:
            return AutoConfig.from_pretrained(args.model_name_or_path, trust_remote_code=args.trust_remote_code)
        except Exception as error:  # the library raises many kinds; its own words are the best there are
            raise cannot_load("model_name_or_path", args.model_name_or_path, error) from error
    try:
        config = AutoConfig.for_model(**{"vocab_size": len(tokenizer), **args.model_config})
    except Exception as error:  # configs validate themselves, with errors of many kinds
        raise cannot_load("model_config", args.model_config, error) from error
    if problems := list(_impossible_sizes(config.get_text_config())):
        raise SettingsError(problems)
    return config


def _impossible_sizes(sizes: Any) -> Iterator[Problem]:
    """What transformers builds, and cannot run."""
    layers, heads = getattr(sizes, "num_hidden_layers", 1), getattr(sizes, "num_attention_heads", 1)
    if isinstance(layers, int) and layers < 1:
        yield Problem("model_config.num_hidden_layers", layers, "be at least 1")
    shared = getattr(sizes, "num_key_value_heads", None) or heads
    if isinstance(heads, int) and isinstance(shared, int) and heads % shared:
        yield Problem("model_config.num_attention_heads", heads, f"be a multiple of num_key_value_heads, {shared}")


def _from_config(args: Args, config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(args.seed)
    try:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=_attention(args))
    except Exception as error:  # sizes that do not go together show only here
        raise _refused_attention(args, config) or cannot_load("model_config", args.model_config, error) from error


def _refused_attention(args: Args, config: Any) -> SettingsError | None:
    """The error for an `attn_implementation` that is not there, where the model builds with its default one; else None:
    whatever went wrong has another reason."""
    if args.attn_implementation == "auto":
        return None
    words = [_why_not_built(config, attention) for attention in (None, args.attn_implementation)]
    if words[0] is not None or words[1] is None:
        return None
    rule = f"be auto, or one that {config.model_type} has here"
    return SettingsError(Problem("attn_implementation", args.attn_implementation, rule, words[1]))


def _why_not_built(config: Any, attention: str | None) -> str | None:
    """What transformers says of a model with this attention, tried without memory; None if it builds."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=attention)
    except Exception as error:  # the library raises many kinds
        return next(iter(str(error).strip().splitlines()), type(error).__name__)
    return None


def _save_dtype(args: Args, config: Any) -> torch.dtype:
    dtype = getattr(torch, args.save_dtype) if args.save_dtype != "auto" else config.dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _fit_vocabulary(model: Any, tokenizer: Any, args: Args) -> None:
    """Gives the embedding a row for every token. A vocabulary that is larger than the tokenizer's stays as it is."""
    num_tokens, num_rows = len(tokenizer), model.config.get_text_config().vocab_size
    if num_tokens <= num_rows:
        return
    if args.lora.enabled:
        rule = f"have at most {num_rows} tokens, as the model has rows, with LoRA (new rows would stay untrained)"
        raise SettingsError(Problem("the tokenizer's length", num_tokens, rule, "Resize the model first and save it."))
    model.resize_token_embeddings(num_tokens)


def _with_adapters(model: Any, args: Args) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    lora = args.lora
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) or "all-linear",
        use_dora=lora.dora,
        use_rslora=lora.rslora,
        task_type=TaskType.CAUSAL_LM,
    )
    torch.manual_seed(args.seed)
    try:
        with warnings.catch_warnings():
            # peft asks by a name that transformers has given up.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            adapted = get_peft_model(model, config)
    except ValueError as error:
        problem = Problem("lora.target_modules", lora.target_modules, "name layers of the model", str(error))
        raise SettingsError(problem) from error
    if lora.merge:
        require_mergeable(adapted, "lora.merge")
    if args.gradient_checkpointing:
        adapted.enable_input_require_grads()
    return adapted


def require_mergeable(model: Any, setting: str) -> None:
    """
    Args:
        model: of peft.
        setting: that asks for adapters to be added to the model's weights.

    Raises:
        SettingsError: an adapter is on a layer where that gives another model: one that is not linear, or whose weight
            is another layer's too, as a tied output layer's is the embedding's.
    """
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    for name, layer in model.named_modules():
        if not hasattr(layer, "base_layer") or not hasattr(layer, "lora_A"):
            continue
        is_linear = all(isinstance(matrix, torch.nn.Linear) for matrix in layer.lora_A.values()) and len(layer.lora_A)
        if not is_linear or uses[id(layer.base_layer.weight)] > 1:
            what = "whose weight another layer has too" if is_linear else "which is not linear"
            rule = f"be false with an adapter on {name.rpartition('.')[2]}, {what}"
            raise SettingsError(Problem(setting, True, rule, "Take the adapter as it is, or name other layers."))


def set_stop_tokens(model: Any, tokenizer: Any, stop_token_ids: list[int]) -> None:
    """Makes `generate` stop where the model was trained to stop, beside the model's own end-of-text tokens.

    A model that is made from a configuration has none of its own; config.json then has these too, which is where
    llama.cpp's converter looks.
    """
    config = model.generation_config
    known = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    stops = sorted({*listed(known), *stop_token_ids})
    config.eos_token_id = stops or None
    config.pad_token_id = pad_token_id(tokenizer)
    if model.config.eos_token_id is None and stops:
        model.config.eos_token_id = stops[0] if len(stops) == 1 else stops
