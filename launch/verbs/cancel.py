"""`launch cancel`: stops a run and waits until it has stopped."""

from __future__ import annotations

import argparse
import time

from launch import executor
from launch.errors import OK
from launch.verbs.common import POLL_S, Watch, find, print_json

CANCEL_MARGIN_S = 30.0
"""How much longer than the ranks may take to save it waits for the end."""


def run(arguments: argparse.Namespace) -> int:
    """Stops the run; prints its state."""
    found = find(arguments)
    watch = Watch(found)
    if not watch.has_ended():
        executor.cancel(found)
        deadline = time.monotonic() + CANCEL_MARGIN_S + float(found.job.get("stop_grace_s", 0.0))
        # The last record of a rank comes before the end of what wrote it: the nodes are free a little later.
        while (not watch.has_ended() or executor.is_running(found)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
    state = watch.now().state
    if arguments.json:
        print_json("cancel", run=found.name, path=str(found.path), state=state)
    else:
        print(f"{found.name}: {state}")
    return OK
