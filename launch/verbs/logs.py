"""`launch logs`: what the ranks print, of all nodes and attempts, in the order of time."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

from launch.errors import OK, LaunchError
from launch.merged_logs import LEVELS, Choice, Line, merged_lines
from launch.verbs.common import Watch, find

_COLOURS = (36, 35, 34, 32, 33, 96, 95, 94, 92, 93)
_OF_LEVEL = {"error": 31, "warning": 33}


def run(arguments: argparse.Namespace) -> int:
    """Prints the lines, each with its node and rank; with `--follow` until the run has ended."""
    if arguments.level is not None and arguments.level not in LEVELS:
        raise LaunchError(f"--level is {arguments.level!r}; it must be one of {', '.join(LEVELS)}.")
    found = find(arguments)
    choice = Choice(arguments.rank, arguments.node, arguments.attempt, arguments.level or LEVELS[0])
    is_coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    lines = merged_lines(found, choice, Watch(found).has_ended if arguments.follow else None)
    for line in lines:
        if arguments.json:
            print(as_json(line), flush=arguments.follow)
        else:
            print(as_text(line, has_time=arguments.times, is_coloured=is_coloured), flush=arguments.follow)
    return OK


def as_json(line: Line) -> str:
    """The line as one JSON object."""
    facts = ("at", "attempt", "node", "host", "rank", "level", "text")
    return json.dumps({name: getattr(line, name) for name in facts})


def as_text(line: Line, *, has_time: bool, is_coloured: bool) -> str:
    """`[n1 rank 0] step 1`; of later attempts `[n1 rank 0 attempt 1]`; of the launchers `[node 0]`."""
    attempt = f" attempt {line.attempt}" if line.attempt else ""
    whose = "job" if line.node < 0 else f"node {line.node}" if line.rank is None else f"{line.host} rank {line.rank}"
    title, text = f"[{whose}{attempt}]", line.text
    if has_time:
        title = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(line.at))} {title}"
    if is_coloured:
        title = f"\033[{_COLOURS[(line.rank or 0) % len(_COLOURS)]}m{title}\033[0m"
        text = f"\033[{_OF_LEVEL[line.level]}m{text}\033[0m" if line.level in _OF_LEVEL else text
    return f"{title} {text}"
