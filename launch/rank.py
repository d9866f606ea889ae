"""Around one rank: starts the script, passes signals on, and writes down how it ended.

torchrun and DeepSpeed start this file once per rank. It reads the script and its arguments from job.json, so that no
launcher's parser touches them; it sends the output straight to `logs/<attempt>/rank-<rank>.log`; it exits with the
script's code (128 + N for death by signal N), or 0 where the script was asked to stop and says that it has saved.
Standard library only.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

if __name__ == "__main__":
    # Started by its path: `launch` is found from here, and no module of it by a bare name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.env_file import secrets_of
from launch.errors import OK, OUT_OF_MEMORY, PEER_LOST, STOPPED, LaunchError, reason_of
from launch.forking import VARIABLE as FORK_SERVER
from launch.forking import ForkedScript, start_forked
from launch.logs import TAIL_LINES, error_in, read_tail
from launch.memory_limit import MemoryLimit, memory_limit
from launch.options import without_options
from launch.processes import as_shell, before_exec, die_with_parent
from launch.records import read_json, telling_failure, write_json
from node_board import VARIABLE, NodeBoard, Slot

STOP_GRACE_S = 2.5
"""From SIGTERM to SIGKILL where a rank is ended because another one is gone. Where the board says that the run is to
stop, the agent ends whoever takes too long; it knows how long there is to save."""
OWN_SCRIPT = Path(__file__).resolve().parent.parent / "sft" / "train.py"
"""The trainer, which takes settings."""
_LOOK_S = 1.0
_FORWARDED = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_IGNORED = (signal.SIGUSR1, signal.SIGUSR2)
"""Slurm may send them to every process of a step; a script that has no use for them must not die of them."""


def main() -> int:
    """Runs the script of this rank to its end; its exit code."""
    die_with_parent(signal.SIGKILL)
    run_dir = Path(os.environ["CLEANSFT_RUN_DIR"])
    attempt = os.environ["CLEANSFT_ATTEMPT"]
    rank = int(os.environ["RANK"])
    job = read_json(run_dir / "job.json")
    if job is None:
        raise SystemExit(f"{run_dir}/job.json is missing; it must be readable on every node.")
    record = _first_record(rank)
    path = run_dir / "exit" / attempt / f"rank-{rank}.json"
    log = run_dir / "logs" / attempt / f"rank-{rank}.log"
    write_json(path, record)
    board = NodeBoard.attach(Path(os.environ[VARIABLE])) if os.environ.get(VARIABLE) else None
    words = [*job["script_args"], *job.get("resume_args", ())]
    if Path(job["script"]).resolve() == OWN_SCRIPT and (read_json(path.with_name("attempt.json")) or {}).get("goes_on"):
        # What was asked for was meant for the first attempt.
        words = [*without_options(words, ("resume_from_checkpoint",)), "--resume_from_checkpoint=auto"]
    argv = [job["python"], "-u", job["script"], *words]
    supervisor = _Supervisor(argv, log, board)
    is_ours = Path(job["script"]).resolve().parent == OWN_SCRIPT.parent
    try:
        code = supervisor.run(secrets_of(job, os.environ))
    except LaunchError as error:
        code, is_ours = error.exit_code, True
        log.write_text(f"{error.prefix}{error}\n", encoding="utf-8")
    text = read_tail(log)
    end = end_of(code, supervisor, own_slot(board, record["local_rank"]), rank, text, is_ours=is_ours)
    with telling_failure():
        write_json(path, record | end | {"tail": text.splitlines()[-TAIL_LINES:], "ended_at": time.time()})
    if code == STOPPED and (supervisor.stopped or (board is not None and board.stop_reason is not None)):
        return OK  # the first one that has saved must not make the launcher end the others, which may still be at it
    # Where a rank has left as if all were done, torchrun and DeepSpeed must hear that it is not.
    return int(end["code"]) if code == OK else code


def own_slot(board: NodeBoard | None, local_rank: int) -> Slot | None:
    """What the script of this rank has told; None where it knows no board."""
    slot = board.slots()[local_rank] if board is not None else None
    return slot if slot is not None and slot.pid else None


def end_of(code: int, child: _Supervisor, slot: Slot | None, rank: int, text: str, *, is_ours: bool) -> dict[str, Any]:
    """How a rank ended, for its record.

    Args:
        code: of its script, 128 + N for death by signal N.
        child: what was seen of it.
        slot: what it has told.
        rank: its number.
        text: the end of its log.
        is_ours: whether the script's codes are those of docs/exit-codes.md, even where it has told nothing.
    """
    number = code - 128 if child.killed else None
    told = {
        "signal": number,
        "stopped": child.stopped,
        "step": slot.step if slot is not None else None,
        "last_checkpoint": slot.last_checkpoint if slot is not None else None,
    }
    if code == OK and slot is not None and slot.phase != "end":
        total = f" of {slot.num_steps}" if slot.num_steps else ""
        error = f"rank {rank} exited 0 at step {slot.step}{total}; it must stay until the end"
        return {"code": PEER_LOST, "reason": "exited_early", "error": error, **told}
    if child.ran_out_of_time and number == signal.SIGKILL:
        error = f"rank {rank} was ended {STOP_GRACE_S} s after a SIGTERM, which comes where another rank is gone"
        return {"code": PEER_LOST, "reason": reason_of(PEER_LOST), "error": error, **told}
    if number is None or child.stopped:
        reason = (slot.reason if slot is not None and code != OK else "") or reason_of(
            code, is_ours=is_ours or slot is not None or child.stopped
        )
        return {"code": code, "reason": reason, "error": describe_end(text, code, child.killed), **told}
    name = signal.Signals(number).name
    if child.num_oom_kills:
        limit = child.memory.limit_bytes if child.memory is not None else None
        of = f", limit {limit / 2**20:,.0f} MiB" if limit is not None else ""
        error = f"rank {rank} was killed for lack of memory (cgroup oom_kill={child.num_oom_kills}{of})"
        return {"code": OUT_OF_MEMORY, "reason": reason_of(OUT_OF_MEMORY), "error": error, **told}
    error = f"rank {rank} on {socket.gethostname()} died ({name})"
    said = error_in(text) if "Traceback (most recent call last):" in text else None
    return {"code": PEER_LOST, "reason": "rank_died", "error": f"{error}: {said}" if said else error, **told}


def _first_record(rank: int) -> dict[str, Any]:
    return {
        "rank": rank,
        "local_rank": int(os.environ["LOCAL_RANK"]),
        "node": int(os.environ["CLEANSFT_NODE_RANK"]),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started_at": time.time(),
        "code": None,
    }


class _Supervisor:
    """The script as a child, with the signals of its wrapper."""

    def __init__(self, argv: list[str], log: Path, board: NodeBoard | None = None) -> None:
        self.stopped = False
        """Whether it was told to end: then its failure is somebody else's consequence."""
        self.killed = False
        self.ran_out_of_time = False
        """Whether it was ended here, as it had not ended in time where another rank is gone."""
        self.memory: MemoryLimit | None = None
        """Of the cgroup that the script was in last."""
        self.num_oom_kills = 0
        self._board = board
        self._child: subprocess.Popen[bytes] | ForkedScript | None = None
        self._early: list[int] = []
        """Signals for the script that came before it was known here."""
        self._argv = argv
        self._log = log

    def run(self, secrets: Mapping[str, str]) -> int:
        """The script's exit code, as a shell has it.

        Args:
            secrets: variables that only the script is to have.
        """
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGALRM, self._kill)
        for number in _FORWARDED:
            signal.signal(number, self._forward)
        with self._log.open("ab") as output:
            try:
                child = self._start({**script_environment(os.environ), **secrets}, output)
            except OSError as error:
                output.write(f"{type(error).__name__}: {error}\n".encode(errors="replace"))
                return 127
        if child is None:
            return STOPPED
        self._child = child
        for early in self._early:
            child.send_signal(early)
        if self.stopped:
            child.terminate()
        code = self._wait(child)
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.killed = code < 0
        return as_shell(code)

    def _start(self, environment: dict[str, str], output: BinaryIO) -> subprocess.Popen[bytes] | ForkedScript | None:
        """The script, forked where the node has a fork server; None if it is told to stop while that one imports."""
        server = os.environ.get(FORK_SERVER)
        if server:
            child = start_forked(self._argv, environment, output.fileno(), server, lambda: self.stopped)
            if isinstance(child, ForkedScript):
                return child
            if self.stopped:
                return None
            print(f"rank {os.environ['RANK']} imports for itself: {child}", flush=True)
        return subprocess.Popen(
            self._argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            preexec_fn=before_exec(signal.SIGKILL, _IGNORED),  # noqa: PLW1509 - one thread only
        )

    def _wait(self, child: subprocess.Popen[bytes] | ForkedScript) -> int:
        """Waits for the end; meanwhile looks under which memory limit the script is, which its end would not tell."""
        before = memory_limit(child.pid)
        while True:
            try:
                code = child.wait(timeout=_LOOK_S)
                break
            except subprocess.TimeoutExpired:
                found = memory_limit(child.pid)
                if found is not None and (before is None or found.path != before.path):
                    before = found
        if code == -signal.SIGKILL and before is not None:
            self.memory = before.again()
            self.num_oom_kills = self.memory.num_kills - before.num_kills if self.memory is not None else 0
        return code

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        if self._child is not None and self._child.returncode is not None:
            return  # it had already ended by itself
        if not self.stopped:
            self.stopped = True
            signal.setitimer(signal.ITIMER_REAL, STOP_GRACE_S)
            if self._child is not None:
                self._child.terminate()

    def _kill(self, _number: int, _frame: FrameType | None) -> None:
        if self._board is not None and self._board.stop_reason is not None:
            signal.setitimer(signal.ITIMER_REAL, STOP_GRACE_S)  # it saves; the agent knows how long it may
        elif self._child is not None:
            self.ran_out_of_time = True
            self._child.kill()

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if self._child is not None:
            self._child.send_signal(number)
        else:
            self._early.append(number)


def script_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The wrapper's environment, with CUDA_VISIBLE_DEVICES as it was before DeepSpeed's launcher numbered it anew."""
    environment = dict(environ)
    environment.pop(FORK_SERVER, None)
    saved = environment.pop("CLEANSFT_CUDA_VISIBLE_DEVICES", None)
    if saved is not None:
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        if saved.startswith("="):
            environment["CUDA_VISIBLE_DEVICES"] = saved[1:]
    return environment


def describe_end(text: str, code: int, killed: bool) -> str | None:
    """The first line of a failure report; None for a good end. A signal leaves no words of its own in the log."""
    if code == 0:
        return None
    if killed and "Traceback (most recent call last):" not in text:
        number = signal.Signals(code - 128)
        return f"killed by {number.name}" + (", often for lack of memory" if number == signal.SIGKILL else "")
    return error_in(text)


if __name__ == "__main__":
    sys.exit(main())
