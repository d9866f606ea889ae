"""The runs of a sweep on this machine, one after another or a few at a time.

`python -m launch.sweep_runner SWEEP_DIR` is started by `launch sweep`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from launch import processes, sweep
from launch.claims import latest_claim
from launch.errors import LaunchError
from launch.records import read_json
from launch.runs import Run, note_cancelled
from launch.spec import JobSpec, python_path
from launch.submit import local_job_id, start_detached, start_here, write_submission

START_TIMEOUT_S, END_TIMEOUT_S = 30.0, 5.0
_POLL_S = 0.2


def start(folder: Path, run_dirs: Sequence[Path], environ: Mapping[str, str]) -> str:
    """Starts the runner of a sweep, and waits until it has noted itself in each run; its id.

    Raises:
        LaunchError: it does not begin.
    """
    job_id = local_job_id()
    own = {"CLEANSFT_JOB_ID": job_id, "PYTHONPATH": python_path(environ)}
    log = folder / "sweep.log"
    command = [sys.executable, "-u", "-m", "launch.sweep_runner", str(folder)]
    runner = start_detached(command, log, {**environ, **own}, ["CLEANSFT_JOB_ID"])
    deadline = time.monotonic() + START_TIMEOUT_S
    while not all((run_dir / "submission.json").exists() for run_dir in run_dirs):
        if time.monotonic() > deadline:
            _end(runner["pid"], run_dirs)
            raise LaunchError(f"the sweep's runner did not begin within {START_TIMEOUT_S:.0f} s; {log} says why.")
        time.sleep(0.05)
    return job_id


def _end(pid: int, run_dirs: Sequence[Path]) -> None:
    """Ends a runner that was too slow, with what it has started meanwhile: the folders of its runs are taken back."""
    processes.send([pid], signal.SIGTERM)
    deadline = time.monotonic() + END_TIMEOUT_S
    while processes.start_ticks(pid) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    processes.send([pid], signal.SIGKILL)
    for run_dir in run_dirs:
        if submission := Run(run_dir).submission:
            note_cancelled(run_dir, "its sweep did not begin in time")
            if not submission.get("waits"):
                processes.send([submission["pid"]], signal.SIGTERM)


class Runner:
    """Starts runs in their order while fewer than `parallel` go on."""

    def __init__(self, folder: Path, parallel: int) -> None:
        self._waiting = [run for run, _ in sweep.runs_of(folder)]
        self._parallel = parallel
        self._going: dict[int, int] = {}
        self._is_told_to_end = False

    def run(self) -> None:
        """Notes in each run that it waits; then runs them until all have ended.

        After a SIGTERM those that go on are left to themselves, and no other is started.
        """
        signal.signal(signal.SIGTERM, self._on_signal)
        facts = {"pid": os.getpid(), "start_ticks": processes.start_ticks(os.getpid()), "waits": True}
        for run in self._waiting:
            if (claim := latest_claim(run.path)) is not None:
                submission = {
                    "executor": "local",
                    "job_id": os.environ["CLEANSFT_JOB_ID"],
                    "command": sys.argv,
                    **facts,
                }
                write_submission(run, claim, submission, os.environ)
        while (self._waiting or self._going) and not self._is_told_to_end:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            self._going = {pid: ticks for pid, ticks in self._going.items() if processes.start_ticks(pid) == ticks}
            while self._waiting and len(self._going) < self._parallel:
                self._start(self._waiting.pop(0))
            time.sleep(_POLL_S)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._is_told_to_end = True

    def _start(self, run: Run) -> None:
        claim = latest_claim(run.path)
        if run.is_cancelled or claim is None or claim.number != 0:
            return  # cancelled, or resumed by somebody meanwhile
        submission = start_here(JobSpec.from_json(run.job), claim, os.environ)
        write_submission(run, claim, submission, os.environ)
        self._going[submission["pid"]] = submission["start_ticks"]


if __name__ == "__main__":
    os.umask(0o077)
    folder = Path(sys.argv[1])
    Runner(folder, int((read_json(folder / "sweep.json") or {}).get("parallel") or 1)).run()
