"""`launch wait`: until the run, or all of a sweep or of stages, has ended; silently; with its exit code."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from launch.errors import INTERRUPTED, OK
from launch.runs import Run
from launch.verbs.common import find_all, wait_silently


def run(arguments: argparse.Namespace) -> int:
    """Waits; prints how it ended."""
    return wait_for_all("wait", find_all(arguments), is_json=arguments.json)


def wait_for_all(verb: str, found: Sequence[Run], *, is_json: bool) -> int:
    """Waits for one after another and says how each ended; the exit code of the first that did not end well."""
    code = OK
    for one in found:
        own = wait_silently(verb, one, is_json=is_json)
        if own == INTERRUPTED:
            return own
        code = code or own
    return code
