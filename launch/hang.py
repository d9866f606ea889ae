"""Why ranks of this node stand still: their stacks, from themselves, py-spy or the kernel, and whom to blame."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from launch import processes
from launch.peers import silent_hosts
from node_board import STACKS_SIGNAL

ANSWER_S = 1.5
PY_SPY_S = 3.0
CERTAIN, LIKELY, UNKNOWN, WAITS = 3, 2, 1, 0
"""How surely a rank itself hangs: it cannot run Python at all; it is not in a collective; it may compute or wait for
others; it waits for others."""
_STOPPED = "it is stopped (SIGSTOP, or a debugger)"
_CERTAIN_STATES = {"T": _STOPPED, "t": _STOPPED, "D": "it waits in the kernel, for a disk or a driver"}
_KERNEL_FILES = ("wchan", "syscall", "stack", "status")
_FRAME = re.compile(r'^  File "(?P<file>.*)", line \d+ in (?P<function>.*)$')
_COLLECTIVE = re.compile(r"torch/distributed/|torch_distributed|deepspeed/comm/")
_MAY_WAIT = re.compile(r"torch/autograd/|torch/cuda/|torch/_ops|torch/nn/parallel/|sft/world\.py|torch/_tensor")


@dataclass(frozen=True)
class Finding:
    """What was found of one rank."""

    blame: int
    """CERTAIN, LIKELY, UNKNOWN or WAITS."""
    what: str
    """In words, after `rank 1 hangs: `."""
    silent_hosts: Mapping[str, int] = field(default_factory=dict)
    """Addresses that do not acknowledge what it sends, where it waits for others: the network is the cause."""


def examine(pids: Mapping[int, int], logs: Mapping[int, Path], python: str) -> dict[int, Finding]:
    """Writes the stacks of every rank to its log; what each says of itself.

    Args:
        pids: rank → its process.
        logs: rank → its log.
        python: of the job; py-spy is looked for beside it.
    """
    states = {rank: processes.state(pid) for rank, pid in pids.items()}
    sizes = {rank: _size(path) for rank, path in logs.items()}
    processes.send([pid for rank, pid in pids.items() if states[rank] not in ("T", "t", None)], STACKS_SIGNAL)
    answers = _answers(logs, sizes, {rank for rank, state in states.items() if state not in ("T", "t", None)})
    findings = {}
    for rank, pid in pids.items():
        answer = answers.get(rank)
        findings[rank] = judge(states[rank], answer)
        if findings[rank].blame <= UNKNOWN and (silent := silent_hosts(pid)):
            findings[rank] = replace(findings[rank], blame=CERTAIN, silent_hosts=silent)
        if answer is None and states[rank] is not None:
            with contextlib.suppress(OSError), logs[rank].open("a", encoding="utf-8", errors="replace") as log:
                log.write(f"\n{findings[rank].what}; it did not write its stacks. {_from_outside(pid, python)}\n")
    return findings


def judge(state: str | None, stacks: str | None) -> Finding:
    """Whom to blame.

    Args:
        state: of the process, by the kernel's letter (`processes.state`); None: it is gone.
        stacks: what the rank wrote of itself; None where it could not.
    """
    if state is None or state in _CERTAIN_STATES:
        return Finding(CERTAIN, _CERTAIN_STATES.get(state or "", "its process is gone"))
    if stacks is None:
        return Finding(CERTAIN, "it does not answer, not even with its stacks")
    frames = _main_frames(stacks)
    where = f"{frames[0][1]} ({os.path.basename(frames[0][0])})" if frames else "an unknown place"
    if any(_COLLECTIVE.search(file) for file, _ in frames[:4]):
        return Finding(WAITS, f"it waits for another rank in {where}")
    if not frames or any(_MAY_WAIT.search(file) for file, _ in frames[:2]):
        return Finding(UNKNOWN, f"it is in {where}, where it computes or waits for another rank")
    return Finding(LIKELY, f"it is in {where}")


def _main_frames(stacks: str) -> list[tuple[str, str]]:
    """(file, function) of the main thread, innermost first: of all threads the one that faulthandler writes last."""
    threads: list[list[tuple[str, str]]] = []
    for line in stacks.splitlines():
        if line.startswith(("Thread 0x", "Current thread 0x")):
            threads.append([])
        elif threads and (match := _FRAME.match(line)):
            threads[-1].append((match["file"], match["function"]))
    return next((frames for frames in reversed(threads) if frames), [])


def _answers(logs: Mapping[int, Path], sizes: Mapping[int, int], asked: set[int]) -> dict[int, str]:
    """What each asked rank has added to its log within the time for it: the stacks of its threads."""
    deadline = time.monotonic() + ANSWER_S
    found: dict[int, str] = {}
    while time.monotonic() < deadline and found.keys() != asked:
        time.sleep(0.05)
        for rank in asked:
            with contextlib.suppress(OSError):
                added = logs[rank].read_bytes()[sizes[rank] :].decode("utf-8", errors="replace")
                if "hread 0x" in added:
                    found[rank] = added
    time.sleep(0.05 if found else 0.0)  # the last lines of the last one
    return found


def _from_outside(pid: int, python: str) -> str:
    """The stacks as py-spy sees them where it is installed, else what the kernel tells."""
    found = _run_py_spy(pid, python)
    if found is not None:
        return f"py-spy:\n{found}"
    lines = []
    for name in _KERNEL_FILES:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace").strip()
            if name == "status":
                text = "; ".join(line for line in text.splitlines() if line.startswith(("State", "SigQ", "VmRSS")))
            lines.append(f"/proc/{pid}/{name}: {text}")
    return "py-spy is not installed; the kernel says:\n" + "\n".join(lines)


def _run_py_spy(pid: int, python: str) -> str | None:
    for program in (str(Path(python).with_name("py-spy")), "py-spy"):
        argv: Sequence[str] = (program, "dump", "--nonblocking", "--pid", str(pid))
        try:
            done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=PY_SPY_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return done.stdout.strip()
    return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
