"""`launch status`: how one run stands, in depth."""

from __future__ import annotations

import argparse

from launch import report
from launch.errors import OK
from launch.verbs.common import Watch, find, print_json, print_status


def run(arguments: argparse.Namespace) -> int:
    """Prints how the run stands."""
    found = find(arguments)
    status = Watch(found).now()
    if arguments.json:
        print_json("status", **report.status_facts(found, status))
    else:
        print_status(found, status)
    return OK
