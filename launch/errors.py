"""The launcher's exit codes and the errors that carry them."""

from __future__ import annotations

OK = 0
DRILL_FAILED = EXAMINATION_FAILED = STILL_RUNS = 1
REFUSED = 2
STOPPED = 10
PEER_LOST = 11
HANG = 12
STORAGE = 13
LOCKED = 16
RENDEZVOUS_FAILED = 17
OUT_OF_MEMORY = 18
NO_PROGRESS = 93
INTERRUPTED = 130
KILLED = 137
TERMINATED = 143

EXIT_CODES = {
    OK: "done",
    DRILL_FAILED: "the run is lost: its processes are gone and left no record; of `drill`: a row has failed; of "
    "`doctor`: a node is wrong; of `cancel`: it still runs",
    REFUSED: "the request is refused, nothing was submitted (also: a RUN that does not exist)",
    STOPPED: "stopped before its end (signal, time limit, preemption), with its state saved; `launch resume` goes on",
    PEER_LOST: "a rank died by a signal or left before the end, or its node is gone",
    HANG: "a rank did not move within its limit; the watchdog ended the job",
    STORAGE: "no room, or no right to write, where records are kept; of the training script: in its output directory",
    LOCKED: "the run directory belongs to another job, which still waits or runs",
    RENDEZVOUS_FAILED: "a node did not start or did not learn the address of node 0, or that found no address or port",
    OUT_OF_MEMORY: "a rank was killed by the kernel as the memory of its cgroup was used up",
    NO_PROGRESS: "several attempts in a row brought no newer checkpoint; the run is not started again by itself",
    INTERRUPTED: "Ctrl-C while waiting; the job goes on",
    TERMINATED: "cancelled, or stopped by Slurm, and nothing was saved (128 + 15)",
}
"""Every other code is the training script's own."""

REASONS = {
    OK: "done",
    REFUSED: "settings",
    3: "data",
    STOPPED: "stopped",
    PEER_LOST: "peer_lost",
    HANG: "hang",
    STORAGE: "storage",
    14: "no_checkpoint",
    15: "non_finite",
    16: "fenced",
    RENDEZVOUS_FAILED: "rendezvous",
    OUT_OF_MEMORY: "out_of_memory",
    NO_PROGRESS: "no_progress",
    KILLED: "killed",
    TERMINATED: "terminated",
}
"""Exit code → the word for it in records and in the last line; `error` for any other."""


def reason_of(code: int, *, is_ours: bool = True) -> str:
    """The word for an exit code; the codes of other scripts than ours mean what they want, but for signals and 0."""
    return REASONS.get(code, "error") if is_ours or code > 128 or code == OK else "error"


class LaunchError(Exception):
    """A request that can't be carried out. `str(error)` says what to do about it."""

    exit_code = REFUSED
    prefix = "error: "


class RendezvousError(LaunchError):
    """The nodes of one job did not find each other."""

    exit_code = RENDEZVOUS_FAILED


class LockedError(LaunchError):
    """The run directory belongs to another job."""

    exit_code = LOCKED
