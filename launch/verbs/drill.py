"""`launch drill`: makes short runs with faults, and shows whether each goes on as if nothing had been."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch import drill as rows
from launch.errors import DRILL_FAILED, OK


def run(arguments: argparse.Namespace) -> int:
    """Runs the rows of the drill."""
    return OK if rows.drill(arguments, Path.cwd()) else DRILL_FAILED
