"""Slurm's part where there is none: N agents with Slurm's variables, on this machine or on hosts; when one fails, all
are stopped.

`python -m launch.local RUN_DIR` is what submit.sh of such a run executes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from launch import attempts, executor, hosts, processes, runs
from launch.agents import Agent, HostAgent, LocalAgent
from launch.chain import Decision
from launch.devices import VISIBLE, node_devices
from launch.errors import OK, PEER_LOST, RENDEZVOUS_FAILED, TERMINATED, LaunchError
from launch.notify import notify
from launch.outcome import HOST_LOST, exit_line, read_outcome
from launch.records import read_json
from launch.spec import JobSpec

AGENT_MARGIN_S = 5.0
"""How much longer than its ranks an agent may take until it gets a SIGKILL."""
PAUSE_S = 0.2
"""Between an attempt and the next."""
LOST_HOST_PAUSE_S = 30.0
"""The same where a host was lost: one that starts anew takes that long."""
FOLLOW_POLL_S = 1.0
_POLL_S = 0.1


def slurm_variables(spec: JobSpec, job_id: str, node: int) -> dict[str, str]:
    """What Slurm would set for the one task of this node."""
    nodes = spec.resources.nodes
    names = [hosts.node_name(host) for host in spec.hosts] or [f"local{number}" for number in range(nodes)]
    nodelist = f"local[0-{nodes - 1}]" if nodes > 1 and not spec.hosts else ",".join(names)
    return {
        "SLURM_JOB_ID": job_id,
        "SLURM_JOB_NAME": spec.name,
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_JOB_NODELIST": nodelist,
        "SLURM_NODEID": str(node),
        "SLURM_PROCID": str(node),
        "SLURM_LOCALID": "0",
        "SLURM_NTASKS": str(nodes),
        "SLURM_CPUS_PER_TASK": str(spec.cpus_per_task),
        "SLURMD_NODENAME": names[node],
    }


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
        self._has_lost_hosts = False
        """Whether the last attempt has."""
        self._attempt: int | None = None
        """The one that runs; None before the first, and between two."""
        self._agents: list[Agent] = []

    def run(self) -> int:
        """Runs attempts until none follows; the job's exit code."""
        for telling in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(telling, self._on_stop)
        signal.signal(signal.SIGUSR1, self._on_signal)
        processes.adopt_orphans()
        if not self._may_begin():
            if not (self._run_dir / "cancelled.json").exists():
                attempts.note_not_begun(self._run_dir, self._environ, TERMINATED)
            return TERMINATED
        while True:
            number = attempts.begin(self._run_dir, self._environ["CLEANSFT_JOB_ID"], self._environ)
            self._attempt = number
            notify(self._run_dir, self._job, "began", attempt=number)
            code = self._run_attempt(number)
            decision = attempts.end(self._run_dir, number, self._job, code)
            self._attempt = None
            if decision.again:
                self._pause(LOST_HOST_PAUSE_S if self._has_lost_hosts else PAUSE_S)
            if decision.again and self._stopped:
                decision = Decision(False, decision.code, "it was told to end")
                attempts.amend_end(self._run_dir, number, again=False, reason=decision.reason)
            print(f"attempt {number} ended with code {decision.code}: {decision.reason}", flush=True)
            event = "goes_on" if decision.again else "ended"
            notify(self._run_dir, self._job, event, attempt=number, code=decision.code, reason=decision.reason)
            if not decision.again:
                return decision.code

    def _may_begin(self) -> bool:
        """Waits for the runs that this one is to follow; False where one failed, or this one is told to end."""
        return all(self._has_completed(before) for before in runs.Run(self._run_dir).follows)

    def _has_completed(self, before: runs.Run) -> bool:
        num_lost = 0
        while not self._stopped:
            status = runs.status_of(before, lambda: executor.view(before))
            if status.state == runs.COMPLETED:
                return True
            # LOST only at a second look, as records may still be on their way.
            num_lost = num_lost + 1 if status.state == runs.LOST else 0
            if status.has_ended and num_lost != 1:
                runs.note_cancelled(self._run_dir, f"{before.name}, which it was to follow, is {status.state}")
                print(f"{before.name} is {status.state}: this run, which was to follow it, does not begin.", flush=True)
                return False
            time.sleep(FOLLOW_POLL_S)
        return False

    def _run_attempt(self, attempt: int) -> int:
        """Starts the agents and waits for the last; the code of the attempt, as far as the agents tell it."""
        self._agents = [self._start(attempt, node) for node in range(self._spec.resources.nodes)]
        while not self._stopped and None in (codes := self._codes()):
            if any(codes):
                break
            time.sleep(_POLL_S)
        lost = self._note_lost_nodes(attempt)
        self._end_agents(attempt)
        codes = [agent.wait() for agent in self._agents]
        processes.kill_descendants()
        if lost:
            self._say_last_words(attempt, lost)
        return next((processes.as_shell(code) for code in codes if code), TERMINATED if self._stopped else OK)

    def _start(self, attempt: int, node: int) -> Agent:
        own = {"CLEANSFT_ATTEMPT": str(attempt), **node_devices(self._spec, node, self._environ.get(VISIBLE))}
        environ = {**self._environ, **slurm_variables(self._spec, self._environ["CLEANSFT_JOB_ID"], node), **own}
        return HostAgent(self._spec, node, attempt, environ) if self._spec.hosts else LocalAgent(self._spec, environ)

    def _codes(self) -> list[int | None]:
        """The exit code of each agent; all are asked, as that keeps those on hosts alive."""
        return [agent.poll() for agent in self._agents]

    def _note_lost_nodes(self, attempt: int) -> list[int]:
        """Records the hosts that were not reached, or are not reached any more, as nobody there can; their numbers."""
        folder = self._run_dir / "exit" / str(attempt)
        names = os.listdir(folder)  # also makes NFS look again
        self._has_lost_hosts, noted = False, []
        for node, agent in enumerate(self._agents):
            if not isinstance(agent, HostAgent) or not agent.poll():
                continue
            is_lost, has_begun = agent.is_lost, f"here-{node}.json" in names
            own = read_json(folder / f"node-{node}.json")
            if own is not None and not (is_lost and own["stopped"]):
                continue  # it has ended by itself; else the loss of its supervisor is what it was stopped by
            self._has_lost_hosts |= is_lost
            if is_lost or not has_begun:  # one that has begun and was killed is told of by `attempts.end`
                code, reason = (PEER_LOST, HOST_LOST) if has_begun else (RENDEZVOUS_FAILED, "rendezvous")
                error = f"node {node} ({agent.host}) {agent.what_happened(has_begun=has_begun)}"
                attempts.note_lost_node(folder, node, hosts.node_name(agent.host), code, error, reason=reason)
                noted.append(node)
        return noted

    def _say_last_words(self, attempt: int, lost: Sequence[int]) -> None:
        """The line that says how the attempt ended, where node 0's agent did not come to say it."""
        folder = self._run_dir / "exit" / str(attempt)
        if 0 in lost or not (folder / "node-0.json").exists():
            print(exit_line(read_outcome(folder, self._spec.resources.nodes), self._spec.name), flush=True)

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._stopped:
            time.sleep(_POLL_S)

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
        for agent in self._agents:
            if agent.poll() is None:
                agent.stop()
        # An agent gives its ranks this long to save, and less where another node has failed.
        deadline = time.monotonic() + self._spec.stop_grace_s + AGENT_MARGIN_S
        while time.monotonic() < deadline and None in self._codes():
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
        attempts.note_not_begun(Path(sys.argv[1]), os.environ, error.exit_code)
        sys.exit(error.exit_code)
