"""The launcher's exit codes and the errors that carry them."""

from __future__ import annotations

OK = 0
REFUSED = 2
RENDEZVOUS_FAILED = 17
INTERRUPTED = 130
KILLED = 137
TERMINATED = 143

EXIT_CODES = {
    OK: "done",
    1: "the run is lost: its processes are gone and left no record",
    REFUSED: "the request is refused, nothing was submitted (also: a RUN that does not exist)",
    RENDEZVOUS_FAILED: "a node did not learn the address of node 0, or node 0 found no address or port to offer",
    INTERRUPTED: "Ctrl-C while waiting; the job goes on",
    KILLED: "a rank was killed by SIGKILL, often for lack of memory (128 + 9)",
    TERMINATED: "cancelled, or stopped by Slurm (128 + 15)",
}
"""Every other code is the training script's own; a death by signal N is 128 + N."""


class LaunchError(Exception):
    """A request that can't be carried out. `str(error)` says what to do about it."""

    exit_code = REFUSED
    prefix = "error: "


class RendezvousError(LaunchError):
    """The nodes of one job did not find each other."""

    exit_code = RENDEZVOUS_FAILED
