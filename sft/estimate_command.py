"""`python -m sft estimate`: the command line and what it prints."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sft.arguments import checked, naming_places, read_settings
from sft.config import Args
from sft.subject import split_words
from strict_settings import Problem, SettingsError

if TYPE_CHECKING:
    from sft.estimate import Machine, Rows

_GIB = 2**30


def main(words: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    # `max_length=4096` is `--max_length=4096`, as `launch` has it.
    dashed = [f"--{word}" if _is_assignment(word) else word for word in words]
    options, settings = split_words(_parser(), dashed)
    sources = read_settings([*settings, "--config", options.file])
    args = checked(sources)
    rows, sizes = _rows(options, args), _sizes(options, args)
    from sft.estimate import estimate
    from sft.estimate_text import estimate_text, to_json
    from sft.tokenizer import build_tokenizer

    machine = _machine(options, args, *sizes)
    with naming_places(sources):
        found = estimate(args, build_tokenizer(args), machine, rows)
    print(json.dumps(to_json(found)) if options.json else estimate_text(found), end="\n" if options.json else "")
    return 0


def _is_assignment(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return bool(equals) and name.replace("_", "").replace(".", "").isalnum()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sft estimate",
        description="Memory per device and time of a step, before the run: for every way of sharing the model out.",
        epilog="Every setting of a run is an option too: --max_length 4096, or max_length=4096.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="RUN.yaml", help="the settings")
    parser.add_argument("--nodes", metavar="N", help="default: launch.nodes of the settings, or 1")
    parser.add_argument("--procs-per-node", metavar="M", help="default: launch.procs_per_node or gpus_per_node, or 1")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), help="default: cuda where there is one or launch asks for it"
    )
    parser.add_argument("--memory-gib", metavar="G", help="of one device (default: this machine's)")
    parser.add_argument("--length", metavar="L", help="tokens of the longest documents (default max_length)")
    parser.add_argument("--trained-share", metavar="S", help="share of their tokens that is trained (default 1)")
    parser.add_argument("--tflops", metavar="T", help="what one device reaches in matrix products, in TFLOP/s")
    parser.add_argument("--measure", action="store_true", help="measure that on this machine, in a second")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    return parser


def _sizes(options: argparse.Namespace, args: Args) -> tuple[int, int]:
    """(nodes, processes on each)."""
    launch = args.launch
    per_node = launch.get("procs_per_node") or launch.get("gpus_per_node") or 1
    return (
        _whole("--nodes", options.nodes, launch.get("nodes") or 1),
        _whole("--procs-per-node", options.procs_per_node, per_node),
    )


def _rows(options: argparse.Namespace, args: Args) -> Rows:
    from sft.estimate import Rows

    length = _whole("--length", options.length, args.max_length)
    if not 2 <= length <= args.max_length:
        raise SettingsError(Problem("--length", length, f"be from 2 to max_length, {args.max_length}"))
    share = _number("--trained-share", options.trained_share) if options.trained_share is not None else 1.0
    if share > 1:
        raise SettingsError(Problem("--trained-share", share, "be at most 1"))
    return Rows(length, share)


def _machine(options: argparse.Namespace, args: Args, num_nodes: int, procs_per_node: int) -> Machine:
    import torch

    from sft.estimate import Machine
    from sft.matmul_rate import measured_flops_per_s
    from sft.world import has_bf16

    if options.tflops is not None and options.measure:
        raise SettingsError(Problem("--tflops", options.tflops, "not be given with --measure", "Keep one of the two."))
    has_cuda = torch.cuda.is_available()
    device = options.device or ("cuda" if has_cuda or args.launch.get("gpus_per_node") else "cpu")
    if device == "cuda" and options.measure and not has_cuda:
        remedy = "Measure on a machine with the GPU, or give --tflops (H200, bf16: about 790)."
        raise SettingsError(Problem("--measure", True, "be left out where there is no such device", remedy))
    here = torch.device(device if has_cuda else "cpu")
    bf16 = args.in_bf16((device == "cuda" and not has_cuda) or has_bf16(here))
    stated = options.tflops if options.tflops is not None else args.matmul_tflops
    rate = _number("--tflops", stated) * 1e12 if stated is not None else None
    if options.measure:
        rate = measured_flops_per_s(here, bf16=bf16, budget_s=1.0)
    memory = _memory(options, device, has_cuda=has_cuda, procs_per_node=procs_per_node)
    emulates = device == "cpu" and not has_bf16(torch.device("cpu"))
    return Machine(device, num_nodes, procs_per_node, memory, bf16, rate, emulates)


def _memory(options: argparse.Namespace, device: str, *, has_cuda: bool, procs_per_node: int) -> int:
    """Bytes of one device; processes on a CPU share the machine's."""
    if options.memory_gib is not None:
        return round(_number("--memory-gib", options.memory_gib) * _GIB)
    if device == "cuda":
        import torch

        if has_cuda:
            return int(torch.cuda.get_device_properties(0).total_memory)
        remedy = "Give the memory of one GPU, for example --memory-gib 80."
        raise SettingsError(Problem("--memory-gib", None, "be given where there is no GPU to look at", remedy))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // procs_per_node


def _whole(name: str, given: str | None, default: int) -> int:
    """
    Raises:
        SettingsError: it is no whole number above 0.
    """
    if given is None:
        return default
    if not given.isdecimal() or int(given) < 1:
        raise SettingsError(Problem(name, given, "be a whole number above 0"))
    return int(given)


def _number(name: str, given: str | float) -> float:
    """
    Raises:
        SettingsError: it is no number above 0.
    """
    try:
        value = float(given)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise SettingsError(Problem(name, given, "be a number above 0"))
    return value
