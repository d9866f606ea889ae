"""What `submit` looks at before it submits, as one table: errors refuse the job, warnings stand."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from launch import checks, cluster, host_checks, input_checks, request_checks
from launch import submit as effects
from launch.checks import Check
from launch.spec import JobSpec


def checked(
    spec: JobSpec, script: str, environ: Mapping[str, str], known: Sequence[Check] = (), *, audits: bool
) -> list[Check]:
    """All checks, after their table is printed on stderr; none of them is an error.

    Slurm or the hosts are asked, and the memory estimated, while the script looks at its settings and data.

    Args:
        spec: the job.
        script: the text of submit.sh.
        environ: the environment of this process.
        known: rows that are known already; with an error among them nothing else is looked at.
        audits: whether to look at the first rows of the data.

    Raises:
        ScriptRefusedError: the script refuses its settings or its data, in its own words.
        ChecksFailedError: one of the other checks has failed.
    """
    if checks.worst(known) == "error":
        checks.tell(known, environ)
        raise checks.ChecksFailedError(known, "Nothing was submitted.")
    with ThreadPoolExecutor(3) as pool:
        slurm = pool.submit(request_checks.of_slurm, spec, script, environ) if spec.executor == "slurm" else None
        reached = pool.submit(host_checks.of_hosts, spec, cluster.without_outer_job(environ)) if spec.hosts else None
        memory = pool.submit(input_checks.memory, spec, environ)
        effects.check_script(spec, environ)
        found = input_checks.of_disks(spec)
        refusal, said = None, ""
        if audits:
            try:
                said = effects.audit_data(spec, environ)
            except effects.ScriptRefusedError as error:
                refusal = error
    found = [
        *known,
        *_result(slurm),
        *_result(reached),
        *found,
        *audit(said, refusal is not None),
        *filter(None, [memory.result()]),
    ]
    checks.tell(found, environ)
    if refusal is not None:
        raise refusal
    if said.count("\n"):
        print(said, file=sys.stderr)
    if checks.worst(found) == "error":
        raise checks.ChecksFailedError(found, "Nothing was submitted.")
    return found


def _result(future: Future[list[Check]] | None) -> list[Check]:
    return future.result() if future is not None else []


def audit(said: str, is_refused: bool) -> list[Check]:
    """What the audit of the data says, in a line; none where nothing was looked at. Pure."""
    if is_refused:
        return [Check("audit", "refused, as told below", "error", "Mend the rows, or see docs/inspect-and-audit.md.")]
    line = next((line for line in said.splitlines() if line.startswith("audit of")), said.partition("\n")[0])
    return [Check("audit", line.removeprefix("audit of "))] if said else []
