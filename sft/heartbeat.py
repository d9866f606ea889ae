"""This process's part in the watch over a run: it tells where it is, and it hears that it is to stop.

A request to stop comes as a signal, or from the board of the node. It is only noted: the ranks agree on it in the
collective that each step does anyway, save, and leave with code 10. Standard library only, as it begins before torch.
"""

from __future__ import annotations

import _thread
import contextlib
import faulthandler
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Mapping
from types import FrameType

from node_board import STACKS_SIGNAL, NodeBoard, Phase
from sft.errors import StoppedError

SECOND_SIGNAL_S = 1.0
"""A signal so much later than the first one ends the process at once. Sooner, it is the same one: a terminal and
torchrun both pass on a Ctrl-C, Slurm and the launcher both a SIGTERM."""
LOADING_GRACE_S = 5.0
"""Until a process that is told to stop while it loads is ended, where it does not come back to Python."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_LOADING = ("start", "data")
_POLL_S = 0.5


class Heartbeat:
    """Beats, and the request to stop. Without a board and without `listen` it does nothing."""

    def __init__(self, board: NodeBoard | None = None) -> None:
        """
        Args:
            board: the node's, with this rank's slot; None where no launcher of ours has made one.
        """
        self._board = board
        self._phase: Phase = "start"
        self._step = 0
        self._signal: int | None = None
        self._signalled_at = 0.0

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Heartbeat:
        """That of this rank."""
        return cls(NodeBoard.attach_from(environ, int(environ.get("LOCAL_RANK", "0"))))

    @property
    def stop_reason(self) -> str | None:
        """Why the run is to stop: a signal's name, or what the board says; None while it is not."""
        if self._signal is not None:
            return signal.Signals(self._signal).name
        return None if self._board is None else self._board.stop_reason

    def plan(self, num_steps: int) -> None:
        """Tells how many optimizer steps the whole run has."""
        if self._board is not None:
            self._board.plan(num_steps)

    def beat(self, phase: Phase, step: int) -> None:
        """Tells where this rank is: at every micro-batch, and where a phase begins."""
        self._phase, self._step = phase, step
        if self._board is not None:
            self._board.beat(phase, step)

    def again(self) -> None:
        """Tells that this rank is alive, where it was: at each part of what takes long."""
        if self._board is not None:
            self._board.beat(self._phase, self._step)

    def checkpointed(self, step: int) -> None:
        """Tells that the checkpoint of a step is complete."""
        if self._board is not None:
            self._board.checkpointed(step)

    def tell_slowness(self, ratio: float, phase: str = "") -> None:
        """Tells this rank's own computing time in proportion to the median rank's, and the phase in which it loses
        most; 0 and "" where it is not slow."""
        if self._board is not None:
            self._board.tell_slowness(ratio, phase)

    def tell_reason(self, reason: str) -> None:
        """Tells in one word why this rank is about to end."""
        if self._board is not None:
            self._board.tell_reason(reason)

    def listen(self) -> None:
        """From now on signals ask for a stop instead of ending this process. For the main thread, once.

        While the run loads, the first one raises StoppedError: there is nothing to save. Later it is noted. A second
        one ends the process at once, also where the main thread waits in a collective that never ends; SIGTERM does not
        once the board asks for a stop, as the node's agent then ends ranks in time.
        """
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN or number != signal.SIGINT:
                signal.signal(number, self._on_signal)
        # Python runs a handler when the main thread is back in Python; this byte is written at once.
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        faulthandler.enable()
        faulthandler.register(STACKS_SIGNAL)
        threading.Thread(target=self._hear, args=(reader,), name="signals", daemon=True).start()

    def close(self) -> None:
        """The run is over and its exit code stands: what torchrun or Slurm sends from now on changes nothing."""
        self._phase = "end"
        if signal.getsignal(signal.SIGTERM) == self._on_signal:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._note(number)
        if self._phase in _LOADING:
            raise StoppedError(self._loading_message())

    def _note(self, number: int) -> None:
        if self._signal is None:
            self._signal, self._signalled_at = number, time.monotonic()

    def _loading_message(self) -> str:
        reason = (self._board.stop_reason if self._board is not None else None) or self.stop_reason
        return f"stopped by {reason} while loading; nothing was trained since the last checkpoint."

    def _hear(self, reader: int) -> None:
        """The thread that hears signals, and the board while the main thread loads."""
        interrupted_at = None
        while True:
            ready, _, _ = select.select([reader], [], [], _POLL_S if self._phase in _LOADING else None)
            for number in os.read(reader, 64) if ready else b"":
                if number in _SIGNALS:
                    self._heed(number)
            if self._phase not in _LOADING or self.stop_reason is None:
                continue
            if interrupted_at is None:
                interrupted_at = time.monotonic()
                _thread.interrupt_main(signal.SIGUSR1)
            elif time.monotonic() - interrupted_at > LOADING_GRACE_S:
                _leave(self._loading_message(), StoppedError.exit_code)

    def _heed(self, number: int) -> None:
        self._note(number)
        if number == signal.SIGTERM and self._board is not None and self._board.stop_reason is not None:
            return  # Slurm's second one, at the end of its GraceTime: the agent knows how long ranks may save
        if time.monotonic() - self._signalled_at > SECOND_SIGNAL_S:
            _leave(f"a second signal ({signal.Signals(number).name}): ended at once; nothing was saved.", 128 + number)


def _leave(message: str, code: int) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(code)
