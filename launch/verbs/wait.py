"""`launch wait`: until the run ends, silently; with its exit code."""

from __future__ import annotations

import argparse

from launch.verbs.common import find, wait_silently


def run(arguments: argparse.Namespace) -> int:
    """Waits; prints how it ended."""
    return wait_silently("wait", find(arguments), is_json=arguments.json)
