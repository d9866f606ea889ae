"""One per node: finds the other nodes, starts the launcher, watches it, and leaves with the job's exit code.

On Slurm submitit calls `run_node` in a task of its own on each node; locally `launch.local` starts
`python -m launch.agent RUN_DIR`, with the same variables.
"""

from __future__ import annotations

import contextlib
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
from launch.attempts import earlier_jobs
from launch.command import NodeFacts, hostfile_path, hostfile_text, launcher_argv, node_environment
from launch.devices import has_gpu
from launch.errors import HANG, KILLED, OK, PEER_LOST, RENDEZVOUS_FAILED, STOPPED, TERMINATED, LaunchError, reason_of
from launch.forking import start_server
from launch.logs import TAIL_LINES, error_in, read_tail
from launch.meeting import Meeting
from launch.outcome import exit_line, have_ended_early, read_outcome
from launch.records import make_directory, read_json, telling_failure, write_json, write_text
from launch.rendezvous import Allocation, Rendezvous, allocation_from
from launch.site import make_private
from launch.spec import JobSpec
from launch.watch import NodeWatch
from node_board import VARIABLE
from node_board.standard_output import tolerate_full_disks

FAILED_GRACE_S = 3.5
"""From SIGTERM to the ranks until everything on the node is killed, where another node has failed: nothing can be saved
then."""
KILL_MARGIN_S = 3.0
"""How long before Slurm's SIGKILL the agent ends its ranks itself, to write their records."""
PEER_RECORDS_S = 3.0
"""How long to wait for another node's record where this node's ranks are victims only."""
PEER_STACKS_S = 7.0
"""The same where a rank hangs: its node asks for stacks, and waits for the other nodes', before it records that."""
_IGNORED = (signal.SIGUSR1, signal.SIGUSR2)
"""Slurm may send these to every process of a step: torchrun and DeepSpeed's launcher would die of them."""
_URGENT = (signal.SIGTERM, signal.SIGINT)
_POLL_S = 0.1
_LEFT_OVER = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run_node(run_dir: str) -> NoReturn:
    """Runs this node's part of the job in `run_dir`, then exits with the job's code (submitit's callable).

    SystemExit passes through submitit, which would turn any other exception into code 1. A stop with saved state is
    told by the records alone: a code other than 0 would make srun end the nodes that still save.
    """
    os.umask(0o077)
    try:
        agent = Agent(Path(run_dir), allocation_from(os.environ))
    except LaunchError as error:
        print(f"{error.prefix}{error}", file=sys.stderr, flush=True)
        sys.exit(RENDEZVOUS_FAILED)
    code = agent.run()
    sys.exit(OK if code == STOPPED else code)


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
        self.was_told = False
        """To stop, by a signal or by `stop.json`."""
        self.ended: dict[int, tuple[int, str]] = {}
        """Wrapper's pid → the code and the error of its rank, of those that this agent has ended."""
        self.last_words = os.dup(2)
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
            executor = "hosts" if self.spec.hosts else self.spec.executor
            rendezvous = Meeting(self.allocation, self.records, executor, lambda: self.stop_signal is not None).hold()
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
        """Submitit ignores SIGTERM and requeues on SIGUSR2; here both ask the ranks to save and stop. SIGTERM has a
        SIGKILL behind it."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCONT, lambda *_: None)

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        if self.stop_signal is None or number in _URGENT:
            self.stop_signal = number

    def _redirect_output(self) -> None:
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)
        tolerate_full_disks()

    # --- the launcher

    def _run_launcher(self, rendezvous: Rendezvous) -> int:
        """Starts the launcher, waits, and ends what it leaves; 0, or the code of a failure that no rank recorded."""
        inherited = {name: value for name, value in os.environ.items() if name not in _LEFT_OVER}
        facts = NodeFacts(
            inherited=frozenset(inherited),
            interface=self._interface_towards(rendezvous.address),
            accelerator=None if has_gpu(inherited) else "cpu",
            visible_devices=inherited.get("CUDA_VISIBLE_DEVICES"),
        )
        if self.spec.launcher == "deepspeed":
            write_text(Path(hostfile_path(str(self.logs), self.node)), hostfile_text(self.spec, rendezvous))
        argv = launcher_argv(self.spec, rendezvous, str(self.logs))
        if self.spec.cache_dir is not None:
            make_private(Path(self.spec.cache_dir))
        watch = NodeWatch(self.spec, self.node, self.records, self.logs)
        environment = inherited | node_environment(self.spec, rendezvous, self.attempt, facts)
        environment[VARIABLE] = str(watch.board.path)
        environment["CLEANSFT_NONCE"] = rendezvous.nonce
        environment["CLEANSFT_ENDED_JOBS"] = ",".join(earlier_jobs(self.records.parent, self.allocation.job_id))
        print(f"node {self.node} on {socket.gethostname()} starts: {json.dumps(argv)}", flush=True)
        if self.spec.import_once:
            start_server(self.spec.python, self.spec.script, environment)
        launcher = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            env=environment,
            preexec_fn=processes.before_exec(signal.SIGKILL, ignored=_IGNORED),  # noqa: PLW1509 - one thread only
        )
        try:
            self._oversee(launcher, watch)
        finally:
            processes.kill_descendants()
            watch.close()
        return self._settle(launcher.wait())

    def _interface_towards(self, address: str) -> str | None:
        if self.spec.interface is not None and self.spec.resources.nodes > 1 and self.spec.is_elsewhere:
            return self.spec.interface
        return network.interface_towards(address)

    def _oversee(self, launcher: subprocess.Popen[bytes], watch: NodeWatch) -> None:
        """Waits for the launcher; stops the ranks where that is asked for, and ends them where they hang."""
        while launcher.poll() is None:
            watch.look()
            if watch.hangs:
                watch.end_hanging_ranks(lambda: self.stop_signal in _URGENT)
                return
            if self.stop_signal is not None or watch.requested_stop is not None:
                self._stop_ranks(launcher, watch)
                return
            if watch.ranks_are_gone and have_ended_early(self._own_records(), self.spec.procs_per_node):
                return  # torchrun would take seconds to end, with all of torch that it has loaded
            time.sleep(_POLL_S)
        self._await_wrappers()

    def _stop_ranks(self, launcher: subprocess.Popen[bytes], watch: NodeWatch) -> None:
        """Asks the ranks to save and stop, and waits for them as long as there is time and they move.

        Our own script sees the request on the board; others are told by SIGTERM through their wrappers, once. Without
        ranks yet, the launcher is told.
        """
        self.was_told = True
        reason = self._stop_reason(watch)
        print(f"node {self.node} was told to stop: {reason}", flush=True)
        fails = watch.is_failing_elsewhere()
        if not fails:
            watch.board.request_stop(reason)
        below = set(processes.descendants(os.getpid()))
        wrappers = [record["pid"] for record in self._own_records() if record["code"] is None]
        living = [pid for pid in wrappers if pid in below] or [launcher.pid]
        if fails or not watch.knows_ranks:
            processes.send(living, signal.SIGTERM)
        began, urgent_at = time.monotonic(), None
        while any(processes.start_ticks(pid) for pid in living):
            watch.look()
            # On preemption SIGTERM comes at once, and to the batch script, which then says so, after the GraceTime.
            if urgent_at is None and self.stop_signal in _URGENT and watch.requested_stop != "signal":
                urgent_at = time.monotonic()
            is_over = time.monotonic() > self._deadline(began, urgent_at, fails=fails)
            has_failed_since = not fails and watch.is_failing_elsewhere()
            if is_over or has_failed_since or not watch.moves():
                code = PEER_LOST if fails or has_failed_since else KILLED
                why = (
                    "another node has failed" if code == PEER_LOST else "time is over" if is_over else "it stands still"
                )
                error = f"ended by its node {time.monotonic() - began:.1f} s after it was told to stop: {why}"
                print(f"node {self.node}: ranks are {error}")
                self.ended = {pid: (code, error) for pid in living if processes.start_ticks(pid)}
                return
            time.sleep(_POLL_S)

    def _stop_reason(self, watch: NodeWatch) -> str:
        if (self.records.parent.parent / "cancelled.json").exists():
            return "cancelled"
        return watch.requested_stop or signal.Signals(self.stop_signal or signal.SIGTERM).name

    def _deadline(self, began: float, urgent_at: float | None, *, fails: bool) -> float:
        """Until when ranks may take to stop (time.monotonic())."""
        if fails:
            return began + FAILED_GRACE_S
        deadline = began + self.spec.stop_grace_s
        if urgent_at is not None and self.spec.kill_wait_s is not None:
            deadline = min(
                deadline, urgent_at + max(self.spec.kill_wait_s - KILL_MARGIN_S, 0.5 * self.spec.kill_wait_s)
            )
        return deadline

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
        if len(records) == self.spec.procs_per_node:
            return OK  # they are done, however their launcher was ended
        if self._is_stopped:
            return TERMINATED
        if launcher_code == OK and len(records) < self.spec.procs_per_node:
            print(f"error: {self.spec.launcher} ended well but started only {len(records)} ranks.", flush=True)
            return 1
        return processes.as_shell(launcher_code)

    @property
    def _is_stopped(self) -> bool:
        return self.was_told or self.stop_signal is not None

    def _write_killed(self, record: dict[str, Any]) -> None:
        text = read_tail(self.logs / f"rank-{record['rank']}.log")
        unknown = (KILLED, "killed with its wrapper or launcher, often for lack of memory")
        code, error = self.ended.get(record["pid"], unknown)
        end = {
            "code": code,
            "reason": reason_of(code),
            "signal": int(signal.SIGKILL),
            "stopped": self._is_stopped,
            "error": error,
            "tail": text.splitlines()[-TAIL_LINES:],
            "ended_at": time.time(),
        }
        with telling_failure():
            write_json(self.records / f"rank-{record['rank']}.json", record | end)

    def _write_end(self, own_code: int, error: str | None, started_at: float) -> int:
        """Writes node-<i>.json; returns the root cause's code over all nodes."""
        record = {
            "node": self.node,
            "host": socket.gethostname(),
            "own_code": own_code,
            "code": own_code,
            "stopped": self._is_stopped,
            "signal": self.stop_signal,
            "error": error,
            "tail": read_tail(self.log).splitlines()[-TAIL_LINES:] if own_code else [],
            "started_at": started_at,
            "ended_at": time.time(),
        }
        code = self._root_code(own_code)
        path = self.records / f"node-{self.node}.json"
        with telling_failure():
            if not path.exists():  # else the supervisor has lost this host, and says so
                write_json(path, record | {"code": code})
        print(f"node {self.node} ends with code {code}", flush=True)
        self._say_last_words()
        return code

    def _root_code(self, own_code: int) -> int:
        """The root cause's code, as soon as the records tell it for good, or will not."""
        num_nodes = self.spec.resources.nodes
        started = time.monotonic()
        while True:
            outcome = read_outcome(self.records, num_nodes)
            cause = outcome.root_cause
            hangs = cause is not None and cause.code == HANG
            is_known = (
                cause is None or not (cause.is_victim or hangs) or outcome.num_ranks_ended == self.spec.world_size
            )
            patience_s = PEER_RECORDS_S if self.stop_signal is None else 0.0
            if hangs or (patience_s and (self.records / "hang.json").exists()):
                patience_s = PEER_STACKS_S
            if num_nodes == 1 or is_known or time.monotonic() - started >= patience_s:
                return cause.code if cause is not None else own_code
            time.sleep(_POLL_S)

    def _say_last_words(self) -> None:
        """The line that says how the job ended, by the first node alone, on the job's own stderr."""
        outcome = read_outcome(self.records, self.spec.resources.nodes)
        line = exit_line(outcome, self.spec.name)
        print(line, flush=True)
        if self.node == 0:
            with contextlib.suppress(OSError):
                os.write(self.last_words, f"{line}\n".encode(errors="replace"))


if __name__ == "__main__":
    run_node(sys.argv[1])
