"""A node's board: how far its ranks are, for whoever watches them, and whether they are to stop, for them to see.

A small file in shared memory. The agent of the node makes it; each rank writes its own slot, with a beat at every
micro-batch and step; the agent writes the request to stop. Nothing waits: a slot has one writer, a field is
one aligned word, and a reader that sees a beat's time before its phase looks again a moment later. Standard library
only, as the trainer attaches to it before it imports anything heavy.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import signal
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

VARIABLE = "CLEANSFT_BOARD"
"""Environment variable with the path of the node's board."""
STACKS_SIGNAL = signal.SIGRTMIN + 7
"""At which a rank that beats writes the stacks of its threads to its log: no launcher and no library uses it."""

Phase = Literal["start", "data", "step", "evaluation", "checkpoint", "end"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""Loading; preparing data; training; evaluating; saving; writing the final model. Each has a limit of its own."""

_MAGIC = 0x4452_414F_424E_5333
_HEADER_WORDS = 16
_SLOT_WORDS = 13
_REASON = slice(32, 128)
_WORD_BYTES = 8
_OWN_REASON = slice(9 * _WORD_BYTES, 12 * _WORD_BYTES)
"""Of a slot."""
_SLOW_PHASES = ("", "data", "forward")
_PREFIX = "cleansft-board-"
_NEW_S = 60.0
"""A board that is younger than this may be one whose maker has not locked it yet."""


@dataclass(frozen=True)
class Slot:
    """What one rank has told of itself."""

    local_rank: int
    pid: int
    """0 where the rank has not come to the board: a script that knows nothing of it, or one that has not begun."""
    phase: Phase
    step: int
    """The optimizer step that it computes, or the last one that it has done, in the other phases."""
    num_beats: int
    beat_at: float
    """time.monotonic() of its last beat."""
    last_checkpoint: int | None
    """Step of the last checkpoint that is complete."""
    num_steps: int
    """Optimizer steps of the whole run; 0 where they are not known yet."""
    slowness: float
    """This rank's own computing time in proportion to the median rank's where it is slow; 0 where it is not."""
    reason: str = ""
    """The word for why it ends, where its exit code does not say it alone; empty otherwise."""
    slow_phase: str = ""
    """In which phase of a step it loses most, where it is slow: data or forward."""


class NodeBoard:
    """The board of a node, as its maker, as a rank of it, or as a reader."""

    def __init__(self, path: Path, memory: mmap.mmap, local_rank: int | None = None) -> None:
        self.path = path
        self._memory = memory
        self._bytes = memoryview(memory)
        self._words = self._bytes.cast("q")
        self._numbers = self._bytes.cast("d")
        self._own = _HEADER_WORDS + _SLOT_WORDS * (local_rank or 0)
        self._lock: int | None = None
        """Of the maker: the open file, locked for as long as the process lives."""

    @classmethod
    def create(cls, num_ranks: int) -> NodeBoard:
        """A new board, readable by its owner alone, in memory where there is a disk of memory. `close` removes it; this
        removes those of makers that were killed."""
        import tempfile  # not by each rank, which attaches: it takes a tenth of the time in which settings are checked

        folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()
        remove_abandoned(Path(folder))
        descriptor, name = tempfile.mkstemp(prefix=_PREFIX, dir=folder)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, (_HEADER_WORDS + _SLOT_WORDS * num_ranks) * _WORD_BYTES)
            board = cls(Path(name), mmap.mmap(descriptor, 0))
        except BaseException:
            os.close(descriptor)
            raise
        board._words[1] = num_ranks
        board._words[0] = _MAGIC
        board._lock = descriptor
        return board

    @classmethod
    def attach(cls, path: Path, local_rank: int | None = None) -> NodeBoard | None:
        """The board at a path, to read it or, with a local rank, to write that rank's slot; None if there is none."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            memory = mmap.mmap(descriptor, 0)
        except ValueError:  # an empty file
            return None
        finally:
            os.close(descriptor)
        board = cls(path, memory, local_rank)
        if board._words[0] != _MAGIC or not 0 <= (local_rank or 0) < board._words[1]:
            board.close()
            return None
        return board

    @classmethod
    def attach_from(cls, environ: Mapping[str, str], local_rank: int) -> NodeBoard | None:
        """The board that the environment names, with this slot taken; None without one, as under plain torchrun."""
        board = cls.attach(Path(environ[VARIABLE]), local_rank) if environ.get(VARIABLE) else None
        if board is not None:
            board._words[board._own + 5] = 0
            board._words[board._own + 6] = -1
            board._words[board._own + 8] = 0
            board.beat("start", 0)
            board._words[board._own] = os.getpid()
        return board

    def request_stop(self, reason: str) -> None:
        """Asks the ranks to save and stop at their next step boundary. The first reason stays."""
        if self._words[2]:
            return
        text = reason.encode("utf-8", errors="replace")[: _REASON.stop - _REASON.start]
        self._bytes[_REASON.start : _REASON.start + len(text)] = text
        self._words[3] = len(text)
        self._words[2] = 1

    @property
    def stop_reason(self) -> str | None:
        """Why the ranks are to stop; None while they are not."""
        if not self._words[2]:
            return None
        return bytes(self._bytes[_REASON.start : _REASON.start + self._words[3]]).decode("utf-8", errors="replace")

    def beat(self, phase: Phase, step: int) -> None:
        """Tells that this rank is alive, and where. Some hundred nanoseconds."""
        own, words = self._own, self._words
        words[own + 4] = time.monotonic_ns()
        words[own + 2] = step
        words[own + 1] = PHASES.index(phase)
        words[own + 3] += 1

    def plan(self, num_steps: int) -> None:
        """Tells how many optimizer steps the whole run has."""
        self._words[self._own + 5] = num_steps

    def checkpointed(self, step: int) -> None:
        """Tells that the checkpoint of a step is complete."""
        self._words[self._own + 6] = step

    def tell_slowness(self, ratio: float, phase: str = "") -> None:
        """Tells this rank's own computing time in proportion to the median rank's, and the phase in which it loses
        most; 0 and "" where it is not slow."""
        self._words[self._own + 12] = _SLOW_PHASES.index(phase)
        self._numbers[self._own + 7] = ratio

    def tell_reason(self, reason: str) -> None:
        """Tells in one word why this rank is about to end."""
        first = self._own * _WORD_BYTES + _OWN_REASON.start
        text = reason.encode("ascii")[: _OWN_REASON.stop - _OWN_REASON.start]
        self._bytes[first : first + len(text)] = text
        self._words[self._own + 8] = len(text)

    def slots(self) -> list[Slot]:
        """What each local rank has told, in their order."""
        return [self._slot(number) for number in range(self._words[1])]

    def _slot(self, number: int) -> Slot:
        first = _HEADER_WORDS + _SLOT_WORDS * number
        pid, phase, step, num_beats, beat_ns, num_steps, saved, _, length = self._words[first : first + 9]
        last_checkpoint = saved if pid and saved >= 0 else None
        place = PHASES[phase] if 0 <= phase < len(PHASES) else "start"
        slowness, told = self._numbers[first + 7], first * _WORD_BYTES + _OWN_REASON.start
        reason = bytes(self._bytes[told : told + length]).decode("ascii", errors="replace")
        slow_phase = _SLOW_PHASES[self._words[first + 12]]
        return Slot(
            number, pid, place, step, num_beats, beat_ns / 1e9, last_checkpoint, num_steps, slowness, reason, slow_phase
        )

    def close(self) -> None:
        """Lets go of the memory; the maker also removes the file. Ranks that are still attached go on."""
        for view in (self._words, self._numbers, self._bytes):
            view.release()
        self._memory.close()
        if self._lock is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None


def remove_abandoned(folder: Path) -> None:
    """Removes this user's boards whose makers are gone, as agents that were killed: their lock went with them. Where a
    maker is in another container it holds its lock too."""
    for path in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's; or another agent was faster
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                facts = os.fstat(descriptor)
                is_ours = stat.S_ISREG(facts.st_mode) and facts.st_uid == os.geteuid()
                if is_ours and time.time() - facts.st_mtime > _NEW_S:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
            finally:
                os.close(descriptor)
