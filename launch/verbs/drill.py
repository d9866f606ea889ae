"""`launch drill`: makes short runs with faults, and shows whether each goes on as if nothing had been."""

from __future__ import annotations

import argparse
from pathlib import Path

from launch import drill as rows
from launch.errors import DRILL_FAILED, OK
from launch.verbs.common import find


def run(arguments: argparse.Namespace) -> int:
    """Runs the rows of the drill."""
    if arguments.run is None:
        return OK if rows.drill(arguments, Path.cwd()) else DRILL_FAILED
    run = find(arguments)
    with rows.settings_of(arguments, run) as settings:
        return OK if rows.drill(settings, Path(run.job["working_dir"])) else DRILL_FAILED
