"""Why a job waits: Slurm's word for it, in a sentence that says what to do. Pure; nothing is guessed."""

from __future__ import annotations

_NEVER = "it will not start as it is: cancel it, and submit again with"
_WORDS = {
    "Resources": "it is next in the queue, and waits for nodes to become free",
    "Priority": "other jobs stand before it in the queue",
    "BeginTime": "its begin time is to come; after a requeue Slurm waits for a while (two minutes by default)",
    "Dependency": "a job that it is to follow has not ended yet",
    "Singleton": "an earlier job of this run has not ended yet",
    "DependencyNeverSatisfied": "the job that it was to follow has failed: it will never start; cancel it",
    "PartitionTimeLimit": f"its time limit is above that of the partition: {_NEVER} a lower --time-min",
    "PartitionNodeLimit": f"it asks for more nodes than the partition gives one job: {_NEVER} fewer --nodes",
    "PartitionDown": "its partition is down: it starts when the administrators bring it up",
    "PartitionInactive": "its partition starts no jobs at the moment",
    "BadConstraints": f"no node has what it asks for: {_NEVER} another --constraint, or fewer GPUs, CPUs or memory",
    "NodeDown": "a node that it needs is down",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "JobHeldUser": "it is held by you; `scontrol release` lets it go",
    "JobHeldAdmin": "it is held by an administrator; only they can let it go",
    "InvalidAccount": f"its account is not valid any more: {_NEVER} another --account",
    "InvalidQOS": f"its QoS is not valid any more: {_NEVER} another --qos",
    "Licenses": "it waits for a licence",
    "Reservation": "it waits for its reservation to begin",
    "JobArrayTaskLimit": "as many tasks of its sweep run as may at a time",
    "JobLaunchFailure": "a node failed to start it; `scontrol release` tries again",
    "FrontEndDown": "the machine that starts its jobs is down",
    "Cleaning": "its last attempt is still being cleared away",
}


def explanation(reason: str) -> str:
    """A sentence for squeue's word; empty for a word that is not known.

    Args:
        reason: `Resources`, `PartitionTimeLimit`, `ReqNodeNotAvail, UnavailableNodes:n[1-2]`, …
    """
    word = reason.strip().strip("()").partition(",")[0].strip()
    if word in _WORDS:
        return _WORDS[word]
    if word.startswith("QOS"):
        return f"a limit of its QoS is reached ({word}): it starts when other jobs of it have ended"
    if word.startswith("Assoc"):
        return f"a limit of its account is reached ({word}): it starts when other jobs of it have ended"
    return ""
