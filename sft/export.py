"""The final model: weights as `save_pretrained` lays them out, configuration, tokenizer and adapters.

Weights are fetched from the engine tensor by tensor, so that sharded models are never whole in one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from sft.errors import NonFiniteError
from sft.storage import MAX_SHARD_BYTES, TensorEntry, new_files, storage_errors, write_tensors
from sft.world import World

_PEFT_PREFIX = "base_model.model."


class Weights(Protocol):
    """A model and its weights, wherever they are; every engine is one."""

    @property
    def model(self) -> Any:
        """Of transformers, or peft's around one."""

    def gather(self, name: str) -> Tensor:
        """One parameter's value, whole (a collective)."""


def export_model(
    engine: Weights, tokenizer: Any, folder: Path, world: World, dtype: torch.dtype, *, merge_adapters: bool = False
) -> None:
    """Writes what `from_pretrained(folder)` loads: a whole model, or an adapter (peft) and, if asked for, `merged/`.

    A collective: every rank calls it; rank 0 writes.

    Raises:
        NonFiniteError: a weight is no number, or too large for `dtype`; on every rank, and no weights are left there.
        StorageError: the disk does not take it; nothing half-written is left there.
    """
    if hasattr(engine.model, "peft_config"):
        export_adapter(engine, tokenizer, folder, world)
        if merge_adapters:
            export_whole(engine, tokenizer, folder / "merged", world, dtype)
    else:
        export_whole(engine, tokenizer, folder, world, dtype)


def export_base_model(model: Any, tokenizer: Any, folder: Path, world: World, dtype: torch.dtype) -> None:
    """Writes a base model of random weights before adapters are trained on it: without it they fit nothing.

    Args:
        model: a peft model with fresh adapters, not sharded yet.
    """
    if world.is_main:
        entries = [
            TensorEntry(_plain_name(name), tensor.nbytes, partial(tensor.detach().to, dtype))
            for name, tensor in _saved_tensors(model)
            if ".lora_" not in name
        ]
        _write_whole(model.get_base_model(), entries, tokenizer, folder, is_main=True, dtype=dtype)


def export_whole(
    engine: Weights,
    tokenizer: Any,
    folder: Path,
    world: World,
    dtype: torch.dtype,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a whole model, adapters merged; otherwise as `export_model`."""
    model = engine.model
    adapters = _adapters(engine) if hasattr(model, "peft_config") else {}

    def entry(name: str, tensor: Tensor) -> TensorEntry:
        def written() -> Tensor:
            whole = _merged(engine, name, adapters)
            return _finite(_plain_name(name), whole, dtype) if isinstance(tensor, Parameter) else whole.to(dtype)

        return TensorEntry(_plain_name(name), _num_elements(tensor) * dtype.itemsize, written)

    entries = [entry(name, tensor) for name, tensor in _saved_tensors(model) if ".lora_" not in name]
    inner = model.get_base_model() if adapters else model
    try:
        _write_whole(
            inner,
            entries,
            tokenizer,
            folder,
            is_main=world.is_main,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
        )
    except NonFiniteError:
        if world.is_main:
            _remove_weights(folder)
        raise


def _finite(name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight as it is written. Gradients were finite in every step, but the step itself may have been too long.

    Raises:
        NonFiniteError: it holds infinities or no numbers, or does so in `dtype`.
    """
    written = weight.to(dtype)
    if bool(torch.isfinite(written).all()):
        return written
    if torch.isfinite(weight).all():
        what, remedy = f"values that {dtype} can't hold", "Choose save_dtype: float32 or bfloat16."
    else:
        what, remedy = "values that are no finite numbers", "Lower learning_rate."
    raise NonFiniteError(f"the weight {name} has {what}; the final model must be finite, and is not written. {remedy}")


def _write_whole(
    model: Any,
    entries: list[TensorEntry],
    tokenizer: Any,
    folder: Path,
    *,
    is_main: bool,
    dtype: torch.dtype,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    from transformers.core_model_loading import revert_weight_conversion

    if is_main:
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _remove_weights(folder)
        _write_description(model, tokenizer, folder, dtype)
    write_tensors(
        entries,
        folder,
        "model",
        is_main=is_main,
        transform=lambda tensors: revert_weight_conversion(model, tensors),
        max_shard_bytes=max_shard_bytes,
    )


def _write_description(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype) -> None:
    """config.json, generation_config.json and the tokenizer's files, each of them atomically."""
    with new_files(folder) as temporary:
        config = model.config
        config.architectures = [type(model).__name__]
        previous = config.dtype, config.use_cache
        config.dtype, config.use_cache = dtype, True
        config.save_pretrained(temporary)
        config.dtype, config.use_cache = previous
        model.generation_config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def _remove_weights(folder: Path) -> None:
    """Weights of an earlier run: shards that nobody would overwrite must not stay beside new ones."""
    for path in [*folder.glob("model*.safetensors"), *folder.glob("model.safetensors.index.json")]:
        path.unlink()


def export_adapter(engine: Weights, tokenizer: Any, folder: Path, world: World) -> None:
    """Writes the adapter alone, in float32; otherwise as `export_model`."""
    from peft import get_peft_model_state_dict

    model = engine.model
    names = [name for name, _ in model.named_parameters() if ".lora_" in name]
    parameters = dict(model.named_parameters())

    def weight(name: str) -> Tensor:
        return _finite(name, engine.gather(name), torch.float32)

    entries = [TensorEntry(name, _num_elements(parameters[name]) * 4, partial(weight, name)) for name in names]
    if world.is_main:
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with new_files(folder) as temporary:
            model.peft_config["default"].save_pretrained(str(temporary))
            tokenizer.save_pretrained(temporary)

    def as_peft_saves(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        saved: dict[str, Tensor] = get_peft_model_state_dict(model, state_dict=tensors, save_embedding_layers=False)
        return saved

    write_tensors(
        entries, folder, "adapter_model", is_main=world.is_main, transform=as_peft_saves, max_shard_bytes=2**62
    )


def _saved_tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors that a checkpoint of the model holds: parameters, tied ones once, and persistent buffers."""
    saved = model.state_dict().keys()
    seen_ids: set[int] = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in saved and id(tensor) not in seen_ids:
            seen_ids.add(id(tensor))
            yield name, tensor


def _num_elements(tensor: Any) -> int:
    # Under ZeRO-3 a partitioned parameter is empty and keeps its real size beside it.
    return int(getattr(tensor, "ds_numel", tensor.numel()))


def _plain_name(name: str) -> str:
    """The name that the tensor has in the model without adapters."""
    return name.removeprefix(_PEFT_PREFIX).replace(".base_layer.", ".")


def _adapters(engine: Weights) -> dict[str, Tensor]:
    """The adapters' weights, whole: they are small."""
    names = [name for name, _ in engine.model.named_parameters() if ".lora_" in name]
    return {name: engine.gather(name).float() for name in names}


def _merged(engine: Weights, name: str, adapters: dict[str, Tensor]) -> Tensor:
    """A weight with the product of its adapters added, as peft's own merging does."""
    buffers: dict[str, Tensor] = dict(engine.model.named_buffers())
    weight = buffers[name] if name in buffers else engine.gather(name)
    layer_name, is_adapted, _ = name.partition(".base_layer.weight")
    if not is_adapted or f"{layer_name}.lora_A.default.weight" not in adapters:
        return weight
    layer = engine.model.get_submodule(layer_name)
    product = adapters[f"{layer_name}.lora_B.default.weight"] @ adapters[f"{layer_name}.lora_A.default.weight"]
    delta: Tensor = product * layer.scaling["default"]
    merged = (weight.T if layer.fan_in_fan_out else weight).float() + delta
    magnitude = adapters.get(f"{layer_name}.lora_magnitude_vector.default.weight")
    if magnitude is not None:  # DoRA: the sum gives only the direction of a row
        merged *= (magnitude / merged.norm(dim=1)).unsqueeze(1)
    return merged.T if layer.fan_in_fan_out else merged
