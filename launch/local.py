"""Slurm's part on one machine: N agents with Slurm's variables; when one fails, all are stopped.

`python -m launch.local RUN_DIR` is what submit.sh of a local run executes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

from launch import attempts, executor, processes, runs
from launch.chain import Decision
from launch.errors import OK, TERMINATED, LaunchError
from launch.notify import notify
from launch.records import read_json
from launch.spec import JobSpec
from strict_settings import Problem

AGENT_MARGIN_S = 5.0
"""How much longer than its ranks an agent may take until it gets a SIGKILL."""
PAUSE_S = 0.2
"""Between an attempt and the next."""
FOLLOW_POLL_S = 1.0
_POLL_S = 0.1


def slurm_variables(spec: JobSpec, job_id: str, node: int) -> dict[str, str]:
    """What Slurm would set for the one task of this node."""
    nodes = spec.resources.nodes
    return {
        "SLURM_JOB_ID": job_id,
        "SLURM_JOB_NAME": spec.name,
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_JOB_NODELIST": f"local[0-{nodes - 1}]" if nodes > 1 else "local0",
        "SLURM_NODEID": str(node),
        "SLURM_PROCID": str(node),
        "SLURM_LOCALID": "0",
        "SLURM_NTASKS": str(nodes),
        "SLURM_CPUS_PER_TASK": str(spec.cpus_per_task),
        "SLURMD_NODENAME": f"local{node}",
    }


def request_problems(spec: JobSpec, num_gpus: int | None) -> Iterator[Problem]:
    """What the job asks for and this machine can't give.

    Args:
        spec: the job.
        num_gpus: GPUs of this machine; None where their number can't be told.
    """
    wanted = spec.resources.gpus_per_node
    if num_gpus is not None and wanted > num_gpus:
        rule = f"be at most {num_gpus}, the GPUs that this machine shows"
        remedy = f"Give --gpus-per-node {num_gpus}, and --procs-per-node for the ranks; or --executor slurm."
        yield Problem("gpus_per_node", wanted, rule, remedy)


class Supervisor:
    """The agents of a local run, attempt after attempt."""

    def __init__(self, run_dir: Path, environ: Mapping[str, str]) -> None:
        job = read_json(run_dir / "job.json")
        if job is None:
            raise LaunchError(f"{run_dir}/job.json is missing; submit the run again.")
        self._job = job
        self._spec = JobSpec.from_json(job)
        self._run_dir = run_dir
        self._environ = environ
        self._stopped = False
        self._attempt: int | None = None
        """The one that runs; None before the first, and between two."""
        self._agents: list[subprocess.Popen[bytes]] = []

    def run(self) -> int:
        """Runs attempts until none follows; the job's exit code."""
        for telling in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(telling, self._on_stop)
        signal.signal(signal.SIGUSR1, self._on_signal)
        processes.adopt_orphans()
        if not self._may_begin():
            return TERMINATED
        while True:
            number = attempts.begin(self._run_dir, self._environ["CLEANSFT_JOB_ID"], self._environ)
            self._attempt = number
            notify(self._run_dir, self._job, "began", attempt=number)
            code = self._run_attempt(number)
            decision = attempts.end(self._run_dir, number, self._job, code)
            self._attempt = None
            if decision.again and self._stopped:
                decision = Decision(False, decision.code, "the supervisor was told to end")
                attempts.amend_end(self._run_dir, number, again=False, reason=decision.reason)
            print(f"attempt {number} ended with code {decision.code}: {decision.reason}", flush=True)
            event = "goes_on" if decision.again else "ended"
            notify(self._run_dir, self._job, event, attempt=number, code=decision.code, reason=decision.reason)
            if not decision.again:
                return decision.code
            time.sleep(PAUSE_S)

    def _may_begin(self) -> bool:
        """Waits for the runs that this one is to follow; False where one failed, or this one is told to end."""
        return all(self._has_completed(before) for before in runs.Run(self._run_dir).follows)

    def _has_completed(self, before: runs.Run) -> bool:
        while not self._stopped:
            status = runs.status_of(before, lambda: executor.view(before))
            if status.state == runs.COMPLETED:
                return True
            if status.has_ended and status.state != runs.LOST:
                runs.note_cancelled(self._run_dir, f"{before.name}, which it was to follow, is {status.state}")
                print(f"{before.name} is {status.state}: this run, which was to follow it, does not begin.", flush=True)
                return False
            time.sleep(FOLLOW_POLL_S)
        return False

    def _run_attempt(self, attempt: int) -> int:
        """Starts the agents and waits for the last; the code of the attempt, as far as the agents tell it."""
        self._agents = [self._start(attempt, node) for node in range(self._spec.resources.nodes)]
        while not self._stopped and any(agent.poll() is None for agent in self._agents):
            if any(agent.poll() for agent in self._agents):
                break
            time.sleep(_POLL_S)
        self._end_agents(attempt)
        codes = [agent.wait() for agent in self._agents]
        processes.kill_descendants()
        return next((code if code > 0 else 128 - code for code in codes if code), TERMINATED if self._stopped else OK)

    def _start(self, attempt: int, node: int) -> subprocess.Popen[bytes]:
        own = {"CLEANSFT_ATTEMPT": str(attempt)}
        isolated = ["-P"] if self._spec.code_root is not None else []
        return subprocess.Popen(
            [self._spec.python, "-u", *isolated, "-m", "launch.agent", str(self._run_dir)],
            stdin=subprocess.DEVNULL,
            env={**self._environ, **slurm_variables(self._spec, self._environ["CLEANSFT_JOB_ID"], node), **own},
            preexec_fn=processes.before_exec(signal.SIGTERM),  # noqa: PLW1509 - one thread only
        )

    def _on_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopped = True

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """The ranks are asked to save and to end; where none run, what would start them ends."""
        if self._attempt is None:
            self._stopped = True
        else:
            attempts.request_stop(self._run_dir, self._attempt, "signal")

    def _end_agents(self, attempt: int) -> None:
        """What Slurm does: SIGTERM, a grace, SIGKILL. Nothing where all have ended."""
        if self._stopped:
            is_cancelled = (self._run_dir / "cancelled.json").exists()
            attempts.request_stop(self._run_dir, attempt, "cancelled" if is_cancelled else "terminated")
        processes.send([agent.pid for agent in self._agents if agent.poll() is None], signal.SIGTERM)
        # An agent gives its ranks this long to save, and less where another node has failed.
        deadline = time.monotonic() + self._spec.stop_grace_s + AGENT_MARGIN_S
        while time.monotonic() < deadline and any(agent.poll() is None for agent in self._agents):
            time.sleep(_POLL_S)
        for agent in self._agents:
            if agent.poll() is None:
                agent.kill()


if __name__ == "__main__":
    os.umask(0o077)
    try:
        sys.exit(Supervisor(Path(sys.argv[1]), os.environ.copy()).run())
    except LaunchError as error:
        print(f"{error.prefix}{error}", file=sys.stderr)
        sys.exit(error.exit_code)
