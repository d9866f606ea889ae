"""`launch drill`: makes short runs with faults, and shows whether each goes on as if nothing had been."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from launch import drill
from launch.errors import DRILL_FAILED, OK
from launch.verbs.common import find, print_json


def run(arguments: argparse.Namespace) -> int:
    """Runs the rows of the drill."""
    out = sys.stderr if arguments.json else sys.stdout
    if arguments.run is None:
        results = drill.drill(arguments, Path.cwd(), out)
    else:
        found = find(arguments)
        with drill.settings_of(arguments, found) as settings:
            results = drill.drill(settings, Path(found.job["working_dir"]), out)
    num_failed = sum(not result.passed for result in results)
    if arguments.json:
        print_json("drill", rows=[dataclasses.asdict(result) for result in results], num_failed=num_failed)
    return DRILL_FAILED if num_failed else OK
