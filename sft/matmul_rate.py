"""What a device reaches in plain matrix products: the roof under which training stays."""

from __future__ import annotations

import time

import torch

_SIZES = {"cuda": 8192, "cpu": 1024}


def measured_flops_per_s(device: torch.device, *, bf16: bool, budget_s: float = 0.1) -> float:
    """Operations per second of the fastest of several square products, with the threads that torch has.

    Args:
        device: where.
        bf16: in bfloat16, or else float32 as torch is set.
        budget_s: about how long to measure; at least three products are done.
    """
    size = _SIZES.get(device.type, 1024)
    dtype = torch.bfloat16 if bf16 else torch.float32
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    torch.mm(left, right, out=out)  # the first one chooses and loads its kernel
    fastest, started, count = float("inf"), time.perf_counter(), 0
    while count < 3 or time.perf_counter() - started < budget_s:
        fastest = min(fastest, _seconds(left, right, out))
        count += 1
    return float(2 * size**3 / fastest)


def _seconds(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> float:
    if left.device.type != "cuda":
        started = time.perf_counter()
        torch.mm(left, right, out=out)
        return time.perf_counter() - started
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    first.record()
    torch.mm(left, right, out=out)
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1000.0
