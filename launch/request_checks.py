"""Before submission: the request against what the cluster allows, and when Slurm would start it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from launch import cluster, jobs, limits
from launch.checks import Check, worst
from launch.limits import Limits, Qos
from launch.settings import EARLY_SIGNAL_S
from launch.spec import JobSpec
from strict_settings import Problem

_REMEDIES = {
    "invalid feature": "Change --constraint: `sinfo -o '%f %D %N'` shows what nodes have.",
    "node configuration is not available": (
        "No node is left that has all of it: ask for less, or change --constraint or --exclude. "
        "`sinfo -N -o '%N %c %m %G %f'` shows what nodes have."
    ),
    "invalid account": "Change --account: `sacctmgr show assoc user=$USER format=account,partition,qos` lists yours.",
    "invalid qos": "Change --qos: `sacctmgr show assoc user=$USER format=account,partition,qos` lists yours.",
    "time limit is invalid": "Lower --time-min: `sinfo -o '%P %l'` shows the limits.",
}
"""Words of sbatch's refusals → what to do."""
SHORT_WORK_S = 60.0
"""An attempt that is stopped so soon may have done no step."""


def of_slurm(spec: JobSpec, script: str, environ: Mapping[str, str]) -> list[Check]:
    """What Slurm says of the request: three or four of its commands."""
    found = limits.read_limits(spec.resources.partition)
    asks_for_qos = spec.resources.qos is not None or any(each.qos is not None for each in found)
    qualities = limits.read_qos() if asks_for_qos else {}
    starts_at, problem = jobs.expected_start(script, cluster.without_outer_job(environ))
    return [*of_partitions(spec, found, qualities), start(starts_at, problem, time.time())]


def other_problems(spec: JobSpec, known: Sequence[Problem]) -> list[Problem]:
    """What else the first of its partitions, or a quality of service, refuses: a request that is wrong twice is told so
    once. Two or three of Slurm's commands."""
    first = next(iter(limits.read_limits(spec.resources.partition)), Limits(spec.resources.partition or "the default"))
    found = limits.limit_problems(spec, first, limits.read_qos())
    told = {problem.field for problem in known}
    return [problem for problem in found if problem.field not in told]


def of_partitions(spec: JobSpec, found: Sequence[Limits], qualities: Mapping[str, Qos]) -> list[Check]:
    """The request against what its partitions allow: one that allows it is enough, and of the others the first row
    tells why not. Pure."""
    tables = [of_limits(spec, each, qualities) for each in found] or [of_limits(spec, None, qualities)]
    best = min(tables, key=lambda rows: sum(row.verdict == "error" for row in rows))
    first = [rows[0] if rows is best or worst(rows) != "error" else _passed_over(rows) for rows in tables]
    return [*first, *best[1:]]


def _passed_over(rows: Sequence[Check]) -> Check:
    """The row of a partition that does not allow the request, beside another one."""
    reasons = "\n".join(f"{row.name}: {row.remedy}" for row in rows if row.verdict == "error")
    return replace(rows[0], verdict="warning", remedy=f"The job will not start here.\n{reasons}")


def of_limits(spec: JobSpec, found: Limits | None, qualities: Mapping[str, Qos]) -> list[Check]:
    """The request against what its partition allows. Pure."""
    if found is None:
        remedy = "`scontrol show partition` does not tell; sbatch will."
        return [Check("partition", spec.resources.partition or "the default one", "warning", remedy)]
    problems = list(limits.limit_problems(spec, found, dict(qualities)))
    return [
        _partition(found, problems),
        _told("nodes", f"{spec.resources.nodes} of {found.num_nodes}", problems, _waits_for_nodes(spec, found)),
        _told("CPUs per node", str(spec.cpus_per_task), problems, None, "cpus_per_task"),
        _told("memory per node", _memory_words(spec, found), problems, None, "mem_gb"),
        _told("GPUs per node", _gpu_words(spec, found), problems, None, "gpus_per_node"),
        _told("time", _time_words(spec, found), problems, _stops_early(spec), "time_min"),
        *(
            _told(name, str(given), problems, None)
            for name, given in (("account", spec.resources.account), ("qos", spec.resources.qos))
            if given is not None
        ),
    ]


def _partition(found: Limits, problems: Sequence[Problem]) -> Check:
    counts = ", ".join(f"{count} {state}" for state, count in sorted(found.nodes_by_state.items()))
    is_down = found.state not in ("UP", "INACTIVE", "DRAIN")
    note = f"It is {found.state}: the job waits until it is up." if is_down else None
    return _told("partition", f"{found.partition} ({counts})", problems, note)


def _waits_for_nodes(spec: JobSpec, found: Limits) -> str | None:
    if found.num_usable >= spec.resources.nodes:
        return None
    return f"{found.num_usable} are in service now; the job waits for more. `sinfo -R` says what the others have."


def _told(name: str, value: str, problems: Sequence[Problem], note: str | None, field: str | None = None) -> Check:
    """An error where there is a problem with that field, a warning where there is a note."""
    own = [
        f"It must {problem.rule}. {problem.remedy}".rstrip() for problem in problems if problem.field == (field or name)
    ]
    if own:
        return Check(name, value, "error", "\n".join(own))
    return Check(name, value, "warning" if note else "ok", note or "")


def _memory_words(spec: JobSpec, found: Limits) -> str:
    of_node = f" of {found.node_mem_mb / 1024:.0f} GiB" if found.node_mem_mb else ""
    wanted = spec.resources.mem_gb
    return f"{wanted}{of_node or ' GiB'}" if wanted is not None else f"the partition's default{of_node}"


def _gpu_words(spec: JobSpec, found: Limits) -> str:
    return f"{spec.resources.gpus_per_node} {'/'.join(found.gpu_kinds)}".rstrip()


def _time_words(spec: JobSpec, found: Limits) -> str:
    limit = f" of {found.max_time_min} min" if found.max_time_min is not None else " min"
    if spec.resources.time_min is not None:
        return f"{spec.resources.time_min}{limit}"
    default = found.default_time_min if found.default_time_min is not None else found.max_time_min
    return "no limit" if default is None else f"the partition's default, {default}{limit}"


def _stops_early(spec: JobSpec) -> str | None:
    """What is to be known of a time limit that leaves little between the begin and the signal for the last save."""
    if spec.resources.time_min is None:
        return None
    worked_s = 60 * spec.resources.time_min - spec.signal_lead_s - EARLY_SIGNAL_S
    if worked_s >= SHORT_WORK_S:
        return None
    when = f"after {worked_s:.0f} s" if worked_s > 0 else "at once"
    return (
        f"The signal for the last save, {spec.signal_lead_s} s before the end, may come {when}: Slurm sends it up to a "
        "minute early. Most of each attempt would be its start. Ask for more time."
    )


def _remedy(refusal: str) -> str:
    """What to change, by what sbatch says; empty for words that are not known here."""
    return next((remedy for words, remedy in _REMEDIES.items() if words in refusal.lower()), "")


def start(starts_at: str | None, problem: str, now: float) -> Check:
    """When Slurm expects to start the job. Pure.

    Args:
        starts_at: as `2026-11-21T15:50:00`; None where it would refuse the job.
        problem: why it would.
        now: in seconds since the epoch.
    """
    if starts_at is None:
        is_refused = not re.search(
            r"did not (answer|tell)|not on PATH|contact|connect|timed? ?out", problem, re.IGNORECASE
        )
        remedy = f"sbatch would refuse the job. {_remedy(problem)}" if is_refused else "Nothing is known of the queue."
        return Check("start", problem or "unknown", "error" if is_refused else "warning", remedy.rstrip())
    try:
        wait_s = time.mktime(time.strptime(starts_at, "%Y-%m-%dT%H:%M:%S")) - now
    except ValueError:
        return Check("start", starts_at)
    if wait_s < 60:
        return Check("start", "at once, as the queue stands")
    wait = f"{wait_s / 60:.0f} min" if wait_s < 7200 else f"{wait_s / 3600:.1f} h"
    return Check("start", f"{starts_at.replace('T', ' ')}, in {wait}, as the queue stands")
