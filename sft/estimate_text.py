"""An estimate for the terminal, and as plain values for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from typing import Any

from sft.estimate import GIB, USUAL_MFU, Choice, Estimate
from sft.memory import PARTS

_HEADS = ("weights", "grads", "AdamW", "layers", "loss", "buffers")
"""Short names of `memory.PARTS`, for the table."""


def estimate_text(found: Estimate) -> str:
    """The model, the table, what is recommended, the time."""
    parts = [_subject(found), _table(found), _advice(found), _time(found)]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def to_json(found: Estimate) -> dict[str, Any]:
    """Plain values, in bytes and seconds."""
    return {
        "machine": asdict(found.machine),
        "usable_bytes": found.machine.usable_bytes,
        "world_size": found.machine.world_size,
        "length": found.rows.length,
        "trained_share": found.rows.trained_share,
        "num_parameters": found.sizes.total,
        "num_trained_parameters": found.sizes.trained,
        "choices": [_choice(choice) for choice in found.choices],
        "left_out": dict(found.left_out),
        "recommended": _choice(found.recommended) if found.recommended else None,
        "step": asdict(found.time),
        "loading_bytes": found.loading_bytes,
    }


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "name": choice.sharing.name,
        "settings": list(choice.settings),
        "is_yours": choice.is_yours,
        "lora": choice.is_lora,
        "gradient_checkpointing": choice.is_checkpointed,
        "fits": choice.fits,
        "total_bytes": choice.peak.total_bytes,
        "host_bytes": choice.peak.host_bytes,
        "parts": dict(choice.peak.parts),
    }


def _subject(found: Estimate) -> Iterator[str]:
    sizes, machine, rows = found.sizes, found.machine, found.rows
    yield (
        f"{_count(sizes.total)} parameters, {_count(sizes.trained)} trained; rows of {rows.length:,} tokens, "
        f"{rows.trained_share:.0%} trained; {'bf16' if machine.bf16 else 'fp32'}"
    )
    yield (
        f"{machine.num_nodes} node(s) × {machine.procs_per_node} process(es), {machine.device}, "
        f"{machine.memory_bytes / GIB:.1f} GiB each, of which {machine.usable_bytes / GIB:.1f} for tensors"
    )


def _table(found: Estimate) -> Iterator[str]:
    """A row for each way, its total without and with gradient checkpointing, likewise its host memory where it differs;
    the parts are those without."""
    yield f"{'GiB per device':<22}" + "".join(f"{head:>9}" for head in _HEADS) + f"{'total':>9}{'ckpt.':>9}  host"
    for (name, is_lora), group in groupby(found.choices, key=lambda choice: (choice.sharing.name, choice.is_lora)):
        plain, checkpointed = sorted(group, key=lambda choice: choice.is_checkpointed)
        title = f"{name} LoRA" if is_lora else name
        is_yours = plain.is_yours or checkpointed.is_yours
        cells = "".join(f"{_gib(plain.peak.parts[part]):>9}" for part in PARTS)
        hosts = [choice.peak.host_bytes for choice in (plain, checkpointed)]
        host = " / ".join(map(_gib, dict.fromkeys(hosts))) if any(hosts) else ""
        line = f"{'→ ' if is_yours else '  '}{title:<20}{cells}{_total(plain)}{_total(checkpointed)}  {host}"
        yield line.rstrip()
    yield "  ✓ fits; ckpt.: total with gradient_checkpointing; →: as the settings have it"
    by_reason = sorted(found.left_out.items(), key=lambda item: item[1])
    for reason, ways in groupby(by_reason, key=lambda item: item[1]):
        yield f"  left out: {', '.join(name for name, _ in ways)}, since {reason}"


def _advice(found: Estimate) -> Iterator[str]:
    chosen = found.recommended
    if chosen is None:
        least = min(found.choices, key=lambda choice: choice.peak.total_bytes)
        yield (
            f"nothing fits: {_title(least)} needs least, {_gib(least.peak.total_bytes)} GiB. Take more devices, "
            "a smaller per_device_train_batch_size or a smaller max_length."
        )
    else:
        yield f"take {_title(chosen)}: {_gib(chosen.peak.total_bytes)} GiB of {_gib(found.machine.usable_bytes)}."
        yield f"  {'; '.join(chosen.settings)}"
    whole = found.loading_bytes * found.machine.procs_per_node
    yield f"loading takes {_gib(found.loading_bytes)} GiB of main memory per process, {_gib(whole)} GiB on a node."


def _time(found: Estimate) -> Iterator[str]:
    time = found.time
    flops = f"{time.causal_flops / 1e12:,.3g} TFLOP ({time.palm_flops / 1e12:,.3g} by PaLM's convention)"
    yield f"a full step: {time.num_tokens:,} tokens, {flops}"
    if time.fastest_s is None or time.usual_s is None or found.machine.matmul_flops_per_s is None:
        yield "  give --measure, or --tflops N, for its time."
        return
    usual, tflops = USUAL_MFU[found.machine.device], found.machine.matmul_flops_per_s / 1e12
    yield (
        f"  {time.usual_s:,.3g} s at {usual:.0%} of {tflops:,.4g} TFLOP/s, "
        f"{time.num_tokens / time.usual_s:,.0f} tokens/s; not under {time.fastest_s:,.3g} s"
    )


def _title(choice: Choice) -> str:
    checkpointing = " with gradient checkpointing" if choice.is_checkpointed else ""
    return f"{choice.sharing.name}{' with LoRA' if choice.is_lora else ''}{checkpointing}"


def _total(choice: Choice) -> str:
    return f"{_gib(choice.peak.total_bytes):>7}{' ✓' if choice.fits else '  '}"


def _gib(num_bytes: int) -> str:
    value = num_bytes / GIB
    digits = 1 if value >= 10 else 2 if value >= 0.01 or not value else 4
    return f"{value:.{digits}f}"


def _count(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:,}"
