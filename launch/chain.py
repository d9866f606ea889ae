"""Whether an attempt that has ended is followed by another. Pure: the attempts of a run in, a decision out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from launch.errors import HANG, NO_PROGRESS, OK, PEER_LOST, RENDEZVOUS_FAILED, STOPPED, STORAGE, TERMINATED

Chain = Literal["requeue", "singleton", "none"]

RETRYABLE = (STOPPED, PEER_LOST, HANG, RENDEZVOUS_FAILED)
"""Codes of ends that another attempt may outlive; STORAGE once, and death by a signal as PEER_LOST."""
MAX_WITHOUT_PROGRESS = 3


@dataclass(frozen=True)
class Attempt:
    """One attempt, as far as it counts for what follows."""

    number: int
    code: int | None
    """Exit code of the root cause; None where it left no record: its node is lost, or it was killed whole."""
    step_before: int
    """The newest checkpoint's step when it began; 0 without a checkpoint."""
    step_after: int
    """The same when it had ended."""
    was_killed: bool = False
    """Whether the root cause died by a signal that nobody of ours sent."""
    was_stopped: bool = False
    """Whether it was told to end from outside: time limit, preemption, requeue."""

    @property
    def made_progress(self) -> bool:
        return self.step_after > self.step_before

    @property
    def is_retryable(self) -> bool:
        return self.code is None or self.code in RETRYABLE or self.was_killed or self.was_stopped

    @property
    def is_failure(self) -> bool:
        """Whether it uses up a restart: a stop with progress is how long runs are meant to go on."""
        return not (self.code == STOPPED or self.was_stopped)


@dataclass(frozen=True)
class Decision:
    """What follows an attempt."""

    again: bool
    code: int
    """The exit code of the attempt; of the whole run where no other follows."""
    reason: str


def decide(attempts: Sequence[Attempt], chain: Chain, max_restarts: int, *, is_cancelled: bool) -> Decision:
    """What follows the last of `attempts`.

    Args:
        attempts: those since the run was submitted or resumed, oldest first; at least one.
        chain: whether the run may go on by itself at all.
        max_restarts: how many failures may be followed by another attempt. Stops from outside are not counted.
        is_cancelled: somebody has cancelled the run.
    """
    last = attempts[-1]
    code = TERMINATED if last.code is None else last.code
    if code == OK:
        return Decision(False, OK, "done")
    for applies, code_of_run, reason in (
        (is_cancelled, code, "cancelled"),
        (chain == "none", code, "launch.chain is none"),
        (not _is_curable(attempts), code, f"another attempt would not cure an end with code {code}"),
        (
            num_idle_attempts(attempts) >= MAX_WITHOUT_PROGRESS,
            NO_PROGRESS,
            f"{MAX_WITHOUT_PROGRESS} attempts in a row brought no newer checkpoint than step {last.step_after}",
        ),
        (
            sum(attempt.is_failure for attempt in attempts) > max_restarts,
            code,
            f"{max_restarts} restarts after failures are used up (launch.max_restarts)",
        ),
    ):
        if applies:
            return Decision(False, code_of_run, reason)
    return Decision(True, code, f"attempt {last.number + 1} goes on from step {last.step_after}")


def _is_curable(attempts: Sequence[Attempt]) -> bool:
    is_first_of_storage = [attempt.code for attempt in attempts].count(STORAGE) == 1 and attempts[-1].code == STORAGE
    return attempts[-1].is_retryable or is_first_of_storage


def num_idle_attempts(attempts: Sequence[Attempt]) -> int:
    """How many of the last attempts, without a gap, brought no newer checkpoint."""
    count = 0
    for attempt in reversed(attempts):
        if attempt.made_progress:
            break
        count += 1
    return count
