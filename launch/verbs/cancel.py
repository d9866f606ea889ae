"""`launch cancel`: stops a run, a sweep or stages, and waits until it has stopped."""

from __future__ import annotations

import argparse
import time

from launch import executor
from launch.errors import OK
from launch.verbs.common import POLL_S, Watch, find_all, print_json

CANCEL_MARGIN_S = 30.0
"""How much longer than the ranks may take to save it waits for the end."""


def run(arguments: argparse.Namespace) -> int:
    """Stops the run, or all of a sweep or of stages; prints the state."""
    found = find_all(arguments)
    watches = [(one, Watch(one)) for one in found]
    living = [(one, watch) for one, watch in watches if not watch.has_ended()]
    # The last first: those that wait are not started when others end.
    for one, _ in reversed(living):
        executor.cancel(one)
    grace_s = max((float(one.job.get("stop_grace_s", 0.0)) for one, _ in living), default=0.0)
    deadline = time.monotonic() + CANCEL_MARGIN_S + grace_s
    for one, watch in living:
        # The last record of a rank comes before the end of what wrote it: the nodes are free a little later.
        while (not watch.has_ended() or executor.is_running(one)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
    for one, watch in watches:
        state = watch.now().state
        if arguments.json:
            print_json("cancel", run=one.name, path=str(one.path), state=state)
        else:
            print(f"{one.name}: {state}")
    return OK
