"""Their files for DeepSpeed and FSDP → ours."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft.migration.mapping import Idle, Lost, Made, Taken, Theirs

_STAGE = re.compile(r"z(?:ero)?_?(?:stage)?_?([0-3])", re.IGNORECASE)


def zero_file(value: Any, theirs: Theirs) -> Taken:
    """The bundled file with the stage and the offload of theirs: read from it where it is there, else from its name."""
    if not value:
        return Idle("off, as here")
    read = value if isinstance(value, Mapping) else _read(theirs.path(str(value)))
    zero = read.get("zero_optimization", {}) if read is not None else None
    if isinstance(zero, Mapping):
        stage, where = zero.get("stage", 0), "its file"
        is_offloaded = any(_offloads(zero.get(name)) for name in ("offload_optimizer", "offload_param"))
        has_hpz = zero.get("zero_hpz_partition_size", 1) not in (1, "auto")
    else:
        found = _STAGE.search(Path(str(value)).name)
        stage, where = (int(found[1]) if found else None), "its name, as the file is not here"
        is_offloaded, has_hpz = "offload" in Path(str(value)).name.lower(), False
    if stage not in (0, 1, 2, 3):
        return Lost("its stage is unknown. Take one of ds_configs/")
    if is_offloaded and stage == 1:
        stage = 2
    suffix = "_offload" if is_offloaded and stage else "_hpz" if has_hpz and stage == 3 else ""
    note = f"by {where}; batch sizes, clipping, bf16 and the optimizer follow from the settings, buckets are ours"
    return Made({"deepspeed": f"ds_configs/zero{stage}{suffix}.json"}, note)


def fsdp(value: Any, theirs: Theirs) -> Taken:
    """FSDP2 for whatever kind of it they ask for."""
    words = " ".join(value) if isinstance(value, list) else str(value)
    if not value or words in ("no_shard", "False"):
        return Idle("off, as here")
    notes = []
    if "hybrid" in words:
        notes.append("for copies within nodes, set fsdp_shard_size to the GPUs of a node")
    if "shard_grad_op" in words:
        notes.append("weights are sharded too")
    config = theirs.get("fsdp_config", {})
    if "offload" in words or (isinstance(config, Mapping) and _offloads_fsdp(config)):
        notes.append("nothing is offloaded to the CPU; ds_configs/zero3_offload.json does that")
    return Made({"fsdp": True}, "; ".join(notes))


def _offloads_fsdp(config: Mapping[str, Any]) -> bool:
    return any(
        bool(value) for name, value in config.items() if name.removeprefix("fsdp_") in ("offload_params", "cpu_offload")
    )


def _offloads(value: object) -> bool:
    return isinstance(value, Mapping) and value.get("device") not in (None, "none")


def _read(path: Path | None) -> Mapping[str, Any] | None:
    if path is None or not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, Mapping) else None
