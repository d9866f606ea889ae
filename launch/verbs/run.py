"""`launch run`: a job on this machine, in the foreground. Ctrl-C saves and stops it."""

from __future__ import annotations

import argparse
import signal
import sys
from types import FrameType

from launch import processes, runs
from launch.errors import TERMINATED, LaunchError
from launch.executor import is_running
from launch.logs import follow_raw
from launch.runs import Run
from launch.verbs.common import Watch, tell_end
from launch.verbs.submission import submitted
from launch.verbs.submit import prepared, show


def run(arguments: argparse.Namespace) -> int:
    """Runs the job to its end, with what rank 0 says on the terminal; the job's exit code."""
    if arguments.executor not in (None, "local"):
        raise LaunchError(f"executor is {arguments.executor!r}; `run` must run here. Use `submit` for a cluster.")
    arguments.executor = "local"
    spec, plan = prepared(arguments)
    if arguments.dry_run:
        return show("run", spec, plan, is_json=arguments.json, is_copied=arguments.snapshot)
    stopper = _Stopper()
    found = submitted(spec, plan, arguments)
    stopper.watch(found)
    out = sys.stderr.buffer if arguments.json else sys.stdout.buffer
    print(f"{found.name} runs in {found.path}; Ctrl-C saves and stops it", file=sys.stderr, flush=True)
    watch = Watch(found)
    follow_raw(lambda: found.logs / "rank-0.log", lambda: watch.has_ended() and not is_running(found), out)
    if stopper.was_asked and watch.now().code == TERMINATED:  # it has ended as it was asked to, without a save
        runs.note_cancelled(found.path, "run")
    if not arguments.json:
        print()
    return tell_end("run", found, watch.now(), is_json=arguments.json)


class _Stopper:
    """Ctrl-C, a closed terminal and SIGTERM ask the run to save and to end; whoever asks again is told that it does."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self.was_asked = False

    def watch(self, run: Run) -> None:
        """Takes the signals over for a run that has been started."""
        self._pid = int(run.submission["pid"])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        sys.stderr.write("\nit still saves\n" if self.was_asked else "\nit saves and stops\n")
        self.was_asked = True
        if self._pid is not None:
            processes.send([self._pid], signal.SIGTERM)
