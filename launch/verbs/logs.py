"""`launch logs`: what the ranks print, of all nodes and attempts, in the order of time."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Sequence

from launch import attempts
from launch.checks import takes_colours
from launch.errors import OK, LaunchError
from launch.merged_logs import LEVELS, Choice, Line, merged_lines
from launch.runs import Run
from launch.verbs.common import Watch, find

_COLOURS = (36, 35, 34, 32, 33, 96, 95, 94, 92, 93)
_CONTROL = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # operating system commands, such as a title
    r"|\x1b\[(?![0-9;:]*m)[0-?]*[ -/]*[@-~]?"  # control sequences but those of colours
    r"|\x1b(?!\[)[ -/]*[0-~]?"
    r"|[\x00-\x08\x0a-\x1a\x1c-\x1f\x7f-\x9f]"
)
"""What would steer the terminal: escape sequences (ECMA-48) but those of colours, and control characters but tabs. The
files keep them."""
_OF_LEVEL = {"error": 31, "warning": 33}


def run(arguments: argparse.Namespace) -> int:
    """Prints the lines, each with its node and rank; with `--follow` until the run has ended."""
    if arguments.level is not None and arguments.level not in LEVELS:
        raise LaunchError(f"--level is {arguments.level!r}; it must be one of {', '.join(LEVELS)}.")
    found = find(arguments)
    _require_there(found, arguments)
    choice = Choice(arguments.rank, arguments.node, arguments.attempt, arguments.level or LEVELS[0])
    is_coloured = takes_colours(sys.stdout, os.environ)
    lines = merged_lines(found, choice, Watch(found).has_ended if arguments.follow else None)
    for line in lines:
        if arguments.json:
            print(as_json(line), flush=arguments.follow)
        else:
            print(as_text(line, has_time=arguments.times, is_coloured=is_coloured), flush=arguments.follow)
    return OK


def _require_there(found: Run, arguments: argparse.Namespace) -> None:
    """
    Raises:
        LaunchError: the run has no such rank, node or attempt.
    """
    num_ranks = found.num_nodes * int(found.job["resources"]["procs_per_node"])
    known: dict[str, Sequence[int]] = {"rank": range(num_ranks), "node": range(found.num_nodes)}
    if not arguments.follow:  # else it may be one that is to come
        known["attempt"] = attempts.numbers(found.path)
    for name, there in known.items():
        given = getattr(arguments, name)
        if given is not None and given not in there and there:
            rule = f"be from {min(there)} to {max(there)}" if len(there) > 1 else f"be {there[0]}"
            raise LaunchError(f"--{name} is {given}; it must {rule}, as {found.name} has no other.")


def as_json(line: Line) -> str:
    """The line as one JSON object."""
    facts = ("at", "attempt", "node", "host", "rank", "level", "text")
    return json.dumps({name: getattr(line, name) for name in facts})


def as_text(line: Line, *, has_time: bool, is_coloured: bool) -> str:
    """`[n1 rank 0] step 1`; of later attempts `[n1 rank 0 attempt 1]`; of the launchers `[node 0]`."""
    attempt = f" attempt {line.attempt}" if line.attempt else ""
    whose = "job" if line.node < 0 else f"node {line.node}" if line.rank is None else f"{line.host} rank {line.rank}"
    title, text = f"[{whose}{attempt}]", _CONTROL.sub("", line.text)
    if has_time:
        title = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(line.at))} {title}"
    if is_coloured:
        title = f"\033[{_COLOURS[(line.rank or 0) % len(_COLOURS)]}m{title}\033[0m"
        text = f"\033[{_OF_LEVEL[line.level]}m{text}\033[0m" if line.level in _OF_LEVEL else text
    return f"{title} {text}"
