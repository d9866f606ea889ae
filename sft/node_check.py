"""What a node computes and carries, for `launch doctor`: matrix products of each device, and all-reduces with others.

A program of its own: it reads a request per line of standard input and answers each with a line, both JSON, until its
input ends. It uses nothing of the trainer, so that a node is judged and not the settings.

    {"do": "rate", "seconds": 0.25, "windows": 6}
                          → {"device": "cpu", "flops_per_s": [5.1e10], "throttled_share": 0.0}
    {"do": "meet", "address": "10.0.0.1", "port": 12345, "rank": 0, "world": 2, "backend": "gloo", "megabytes": 4,
     "repeats": 5, "timeout_s": 10}                    → {"seconds": 0.011}
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_SIZES = {"cuda": 8192, "cpu": 512}


def rate(device: torch.device, window_s: float, num_windows: int) -> float:
    """Operations per second in plain matrix products, sustained over the best of several windows.

    Not the fastest product, as `sft.matmul_rate` has it: a CPU quota lets single products pass and holds up the next.

    Args:
        device: where.
        window_s: how long a window is; longer than the period of a CPU quota (0.1 s).
        num_windows: how many.
    """
    size = _SIZES.get(device.type, 512)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.mm(left, right)
    best = 0.0
    for _ in range(num_windows):
        _wait_for(device)
        started, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - started) < window_s or count == 0:
            torch.mm(left, right, out=out)
            count += 1
            if count % 8 == 0 or device.type == "cpu":
                _wait_for(device)
        _wait_for(device)
        elapsed = time.perf_counter() - started
        best = max(best, 2.0 * size**3 * count / elapsed)
    return best


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measured_rates(request: dict[str, Any]) -> dict[str, Any]:
    """The rate of each device, one after another."""
    if torch.cuda.is_available():
        devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    else:
        devices = [torch.device("cpu")]
    held_up, started = throttled_s(), time.monotonic()
    rates = [rate(device, request["seconds"], request["windows"]) for device in devices]
    share = (throttled_s() - held_up) / (time.monotonic() - started)
    return {"device": devices[0].type, "flops_per_s": rates, "throttled_share": share}


def throttled_s() -> float:
    """For how long the kernel has held up this process's cgroup for its CPU quota, in seconds; 0 without one."""
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        folders = {"": ("", "unified"), "cpu": ("cpu",), "cpu,cpuacct": ("cpu,cpuacct", "cpu")}.get(controllers, ())
        for folder in folders:
            try:
                text = Path(f"/sys/fs/cgroup/{folder}{path}/cpu.stat").read_text(encoding="ascii")
            except OSError:
                continue
            words = dict(entry.split() for entry in text.splitlines())
            held_up = int(words.get("throttled_usec", 0)) / 1e6 + int(words.get("throttled_time", 0)) / 1e9
            if held_up:
                return held_up
    return 0.0


def met(request: dict[str, Any]) -> dict[str, Any]:
    """Seconds of an all-reduce in a group that exists for this request alone.

    Raises:
        RuntimeError: the others do not come, or the sum is wrong.
    """
    backend, world = request["backend"], request["world"]
    device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
    dist.init_process_group(
        backend,
        init_method=f"tcp://{request['address']}:{request['port']}",
        rank=request["rank"],
        world_size=world,
        timeout=timedelta(seconds=request["timeout_s"]),
    )
    try:
        values = torch.ones(int(request["megabytes"] * 2**20) // 4, device=device)
        seconds = []
        for repeat in range(request["repeats"] + 1):
            dist.barrier()
            values.fill_(1.0)
            _wait_for(device)
            started = time.perf_counter()
            dist.all_reduce(values)
            _wait_for(device)
            if repeat:  # the first one connects
                seconds.append(time.perf_counter() - started)
        if not bool((values == world).all()):
            raise RuntimeError(f"the sum of {world} ones is {values[0].item():g}; the network or a device is wrong")
    finally:
        dist.destroy_process_group()
    return {"seconds": min(seconds)}


_ANSWERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"rate": measured_rates, "meet": met}


def main() -> int:
    """Answers requests until there are no more."""
    print(json.dumps({"torch": torch.__version__, "cuda": torch.cuda.is_available()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _ANSWERS[request["do"]](request)
        except (RuntimeError, ValueError, OSError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            answer = {"error": lines[0][:300]}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
