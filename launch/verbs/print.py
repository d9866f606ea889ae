"""`launch print`: what `submit` would run, to the byte; nothing is submitted."""

from __future__ import annotations

import argparse

from launch.verbs.submit import prepared, show


def run(arguments: argparse.Namespace) -> int:
    """Prints the plan."""
    return show("print", *prepared(arguments), is_json=arguments.json, is_copied=arguments.snapshot)
