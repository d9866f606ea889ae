"""One per node: finds the other nodes, starts the launcher, watches it, and leaves with the job's exit code.

On Slurm submitit calls `run_node` in a task of its own on each node; locally `launch.local` starts
`python -m launch.agent RUN_DIR`, with the same variables.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from launch import network, processes
from launch.command import NodeFacts, hostfile_path, hostfile_text, launcher_argv, node_environment
from launch.devices import has_gpu
from launch.errors import KILLED, OK, TERMINATED, LaunchError, RendezvousError
from launch.outcome import read_outcome
from launch.rank import TAIL_LINES, error_in, read_tail
from launch.records import make_directory, read_json, write_json, write_text
from launch.rendezvous import Allocation, Rendezvous, allocation_from, candidate_ports
from launch.spec import JobSpec

RENDEZVOUS_TIMEOUT_S = 60.0
STOP_GRACE_S = 3.5
"""From SIGTERM to the ranks until everything on the node is killed. Slurm's KillWait is 30 s by default."""
PEER_RECORDS_S = 3.0
"""How long to wait for another node's record where this node's ranks are victims only."""
_POLL_S = 0.1
_LEFT_OVER = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run_node(run_dir: str) -> NoReturn:
    """Runs this node's part of the job in `run_dir`, then exits with the job's code (submitit's callable).

    SystemExit passes through submitit, which would turn any other exception into code 1.
    """
    sys.exit(Agent(Path(run_dir), allocation_from(os.environ)).run())


class Agent:
    """The part of a job on one node."""

    def __init__(self, run_dir: Path, allocation: Allocation) -> None:
        self.allocation = allocation
        self.node = allocation.node_rank
        self.attempt = str(allocation.attempt)
        self.logs = run_dir / "logs" / self.attempt
        self.records = run_dir / "exit" / self.attempt
        self.log = self.logs / f"node-{self.node}.log"
        self.stop_signal: int | None = None
        job = read_json(run_dir / "job.json")
        if job is None:
            raise LaunchError(f"{run_dir}/job.json is missing; the run directory must be on a disk that nodes share.")
        self.spec = JobSpec.from_json(job)

    def run(self) -> int:
        """The job's exit code, as far as this node can tell."""
        started_at = time.time()
        self._take_over_signals()
        processes.adopt_orphans()
        make_directory(self.logs)
        make_directory(self.records)
        self._redirect_output()
        own_code, error = OK, None
        try:
            rendezvous = self._rendezvous()
            own_code = self._run_launcher(rendezvous)
        except LaunchError as failure:
            own_code, error = failure.exit_code, str(failure)
            print(f"error: {error}", flush=True)
        finally:
            processes.kill_descendants()
        if own_code:
            error = error or error_in(read_tail(self.log))
        return self._write_end(own_code, error, started_at)

    def _take_over_signals(self) -> None:
        """Submitit ignores SIGTERM and requeues on SIGUSR2; here SIGTERM stops the ranks."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        for number in (signal.SIGCONT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, lambda *_: None)

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        self.stop_signal = self.stop_signal or number

    def _redirect_output(self) -> None:
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)

    # --- finding each other

    def _rendezvous(self) -> Rendezvous:
        path = self.records / "rendezvous.json"
        if self.node == 0:
            port = network.first_free_port(
                candidate_ports(self.allocation.rendezvous_id, network.ephemeral_ports()),
            )
            write_json(path, {"address": self._address(), "port": port, "job_id": self.allocation.job_id})
        meeting = self._published(path)
        return Rendezvous(
            self.allocation.rendezvous_id,
            meeting["address"],
            str(meeting["port"]),
            self.node,
            self.allocation.hosts,
        )

    def _address(self) -> str:
        if self.spec.executor == "local" or len(self.allocation.hosts) == 1:
            return "127.0.0.1"
        return network.published_address(self.allocation.hosts)

    def _published(self, path: Path) -> dict[str, Any]:
        deadline = time.monotonic() + RENDEZVOUS_TIMEOUT_S
        while time.monotonic() < deadline and self.stop_signal is None:
            os.listdir(path.parent)  # makes NFS look again
            if (meeting := read_json(path)) is not None:
                return meeting
            time.sleep(_POLL_S)
        if self.stop_signal is not None:
            raise RendezvousError("stopped while waiting for node 0.")
        raise RendezvousError(
            f"{path} did not appear within {RENDEZVOUS_TIMEOUT_S:.0f} s; node 0 ({self.allocation.hosts[0]}) must "
            "write it. Look at its log, and whether both nodes share the run directory's disk."
        )

    # --- the launcher

    def _run_launcher(self, rendezvous: Rendezvous) -> int:
        """Starts the launcher, waits, and ends what it leaves; 0, or the code of a failure that no rank recorded."""
        inherited = {name: value for name, value in os.environ.items() if name not in _LEFT_OVER}
        facts = NodeFacts(
            inherited=frozenset(inherited),
            interface=network.interface_towards(rendezvous.address),
            accelerator=None if has_gpu(inherited) else "cpu",
            visible_devices=inherited.get("CUDA_VISIBLE_DEVICES"),
        )
        if self.spec.launcher == "deepspeed":
            write_text(Path(hostfile_path(str(self.logs), self.node)), hostfile_text(self.spec, rendezvous))
        argv = launcher_argv(self.spec, rendezvous, str(self.logs))
        environment = inherited | node_environment(self.spec, rendezvous, self.attempt, facts)
        print(f"node {self.node} on {socket.gethostname()} starts: {json.dumps(argv)}", flush=True)
        launcher = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            env=environment,
            preexec_fn=processes.before_exec(signal.SIGKILL),  # noqa: PLW1509 - one thread only
        )
        while launcher.poll() is None and self.stop_signal is None:
            time.sleep(_POLL_S)
        if self.stop_signal is not None:
            self._stop_ranks(launcher)
        else:
            self._await_wrappers()
        processes.kill_descendants()
        return self._settle(launcher.wait())

    def _stop_ranks(self, launcher: subprocess.Popen[bytes]) -> None:
        """SIGTERM to the wrappers, which pass it on, once; then a grace. Without ranks yet, to the launcher."""
        print(f"node {self.node} was told to stop by {signal.Signals(self.stop_signal or 0).name}", flush=True)
        below = set(processes.descendants(os.getpid()))
        wrappers = [record["pid"] for record in self._own_records() if record["code"] is None]
        living = [pid for pid in wrappers if pid in below]
        processes.send(living or [launcher.pid], signal.SIGTERM)
        deadline = time.monotonic() + STOP_GRACE_S
        while time.monotonic() < deadline and any(processes.start_ticks(pid) for pid in living or [launcher.pid]):
            time.sleep(_POLL_S)

    def _await_wrappers(self) -> None:
        """The launcher is gone; its wrappers are about to be. Lets those that still write their record do so."""
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline and any(
            record["code"] is None and processes.start_ticks(record["pid"]) for record in self._own_records()
        ):
            time.sleep(0.02)

    def _own_records(self) -> list[dict[str, Any]]:
        first = self.node * self.spec.procs_per_node
        paths = (self.records / f"rank-{first + index}.json" for index in range(self.spec.procs_per_node))
        return [record for path in paths if (record := read_json(path)) is not None]

    # --- the end

    def _settle(self, launcher_code: int) -> int:
        """Completes the records of ranks that were killed with their wrapper; the code that no rank accounts for."""
        records = self._own_records()
        for record in records:
            if record["code"] is None:
                self._write_killed(record)
        if any(record["code"] != OK for record in records):
            return OK  # a rank accounts for it
        if self.stop_signal is not None:
            return TERMINATED
        if launcher_code == OK and len(records) < self.spec.procs_per_node:
            print(f"error: {self.spec.launcher} ended well but started only {len(records)} ranks.", flush=True)
            return 1
        return 128 - launcher_code if launcher_code < 0 else launcher_code

    def _write_killed(self, record: dict[str, Any]) -> None:
        text = read_tail(self.logs / f"rank-{record['rank']}.log")
        end = {
            "code": KILLED,
            "signal": int(signal.SIGKILL),
            "stopped": self.stop_signal is not None,
            "error": "killed together with its wrapper or launcher, often for lack of memory",
            "tail": text.splitlines()[-TAIL_LINES:],
            "ended_at": time.time(),
        }
        write_json(self.records / f"rank-{record['rank']}.json", record | end)

    def _write_end(self, own_code: int, error: str | None, started_at: float) -> int:
        """Writes node-<i>.json; returns the root cause's code over all nodes."""
        stopped = self.stop_signal is not None
        record = {
            "node": self.node,
            "host": socket.gethostname(),
            "own_code": own_code,
            "code": own_code,
            "stopped": stopped,
            "signal": self.stop_signal,
            "error": error,
            "tail": read_tail(self.log).splitlines()[-TAIL_LINES:] if own_code else [],
            "started_at": started_at,
            "ended_at": time.time(),
        }
        code = self._root_code(own_code)
        write_json(self.records / f"node-{self.node}.json", record | {"code": code})
        print(f"node {self.node} ends with code {code}", flush=True)
        return code

    def _root_code(self, own_code: int) -> int:
        num_nodes = self.spec.resources.nodes
        deadline = time.monotonic() + (PEER_RECORDS_S if num_nodes > 1 and self.stop_signal is None else 0.0)
        while True:
            cause = read_outcome(self.records, num_nodes).root_cause
            if cause is None or not cause.is_victim or time.monotonic() >= deadline:
                return cause.code if cause is not None else own_code
            time.sleep(_POLL_S)


if __name__ == "__main__":
    run_node(sys.argv[1])
