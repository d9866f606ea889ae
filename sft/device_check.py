"""What settings need of this machine, looked at before anything is read, encoded or loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from sft.activation_offload import require_gpu
from sft.config import Args
from sft.eight_bit import require_bitsandbytes
from sft.liger import require_liger
from sft.trackers import require_trackers
from strict_settings import Problem, SettingsError


def refuse_what_is_not_here(args: Args, device: torch.device) -> None:
    """Returns if the device and the installed libraries are those that the settings need.

    Raises:
        SettingsError: all that is missing.
    """
    problems: list[Problem] = []
    with _gathered(problems):
        if args.liger:
            require_liger(device)
    with _gathered(problems):
        if args.activation_offload:
            require_gpu(device)
    attention = args.attn_implementation
    if attention.startswith("paged"):
        problems.append(Problem("attn_implementation", attention, "be for training; this one is for generation"))
    if attention == "flex_attention" and device.type == "cpu":
        rule = "be another one on a CPU, for which it is compiled for minutes"
        problems.append(Problem("attn_implementation", attention, rule, "Take auto, sdpa or eager."))
    with _gathered(problems):
        require_trackers(args.trackers)
    for name, value in (("load_in_4bit", True), ("load_in_8bit", True), ("optim", "adamw_8bit")):
        with _gathered(problems):
            if getattr(args, name) == value:
                require_bitsandbytes(name, value)
    if problems:
        raise SettingsError(problems)


@contextlib.contextmanager
def _gathered(problems: list[Problem]) -> Iterator[None]:
    try:
        yield
    except SettingsError as error:
        problems.extend(error.problems)
