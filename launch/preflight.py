"""`submit --preflight`, in the job: `python -m launch.preflight RUN_DIR` examines its nodes before ranks start.

Where one is wrong, the attempt ends, and the job goes back into the queue with that node among those it avoids. What
was found is kept as `exit/<attempt>/preflight.json`; the avoided nodes in job.json and submit.sh, for what comes later.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from launch import attempts, diagnosis, doctor, jobs, limits, node_report, script
from launch.chain import Attempt, Decision
from launch.errors import OK, RENDEZVOUS_FAILED, LaunchError
from launch.examination import Answers
from launch.records import read_json, write_json, write_text
from launch.spec import JobSpec

MAX_EXCLUSIONS = 5
"""So many attempts of a run may be given up for their nodes; then something else is wrong."""


def main(run_dir: Path, environ: Mapping[str, str]) -> int:
    """OK where the ranks may start; else the code with which the job ends, whether it comes back or not."""
    job, number = read_json(run_dir / "job.json"), int(environ["CLEANSFT_ATTEMPT"])
    if job is None:
        raise LaunchError(f"{run_dir}/job.json is missing; the run directory must be on a disk that nodes share.")
    spec, records = JobSpec.from_json(job), run_dir / "exit" / str(number)
    python = [*script.outside_words(spec), spec.python, *script.isolation(spec)]
    own = {**environ, **doctor.probe_variables(spec)}
    answers = doctor.on_slurm(python, records, spec.cpus_per_task, own, (), doctor.tell_on_terminal)
    findings = diagnosis.diagnose(answers)
    write_json(records / "preflight.json", node_report.report_facts(answers, findings))
    print(node_report.report_text(answers, findings), end="", flush=True)
    wrong = [answers.hosts[node] for node in diagnosis.wrong_nodes(findings)]
    if not wrong:
        return OK
    # The job is ended when it is requeued: what is noted below is short.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    return _go_elsewhere(run_dir, number, spec, wrong, _reasons(answers, findings), jobs.own_id(environ))


def _reasons(answers: Answers, findings: Sequence[diagnosis.Finding]) -> str:
    errors = [finding for finding in findings if finding.verdict == "error"]
    return "; ".join(f"{' and '.join(answers.hosts[node] for node in each.nodes)} {each.what}" for each in errors[:3])


def _go_elsewhere(run_dir: Path, number: int, spec: JobSpec, wrong: Sequence[str], reasons: str, job_id: str) -> int:
    """Gives up the attempt; sends the job, or its successor, back without the wrong nodes."""
    avoided = ",".join(filter(None, (spec.resources.exclude, *wrong)))
    spec = replace(spec, resources=replace(spec.resources, exclude=avoided))
    write_json(run_dir / "job.json", spec.to_json())
    write_text(run_dir / "submit.sh", script.script_text(spec))
    decision = Decision(True, RENDEZVOUS_FAILED, f"{', '.join(wrong)} excluded: {reasons}")
    if obstacle := _obstacle(run_dir, spec, wrong):
        decision = Decision(False, RENDEZVOUS_FAILED, f"{reasons}; {obstacle}")
    attempt = Attempt(number, RENDEZVOUS_FAILED, 0, attempts.newest_step(run_dir), was_stopped=True)
    attempts.write_end(run_dir, attempt, decision, excluded=list(wrong))
    if decision.again:
        try:
            _requeue(run_dir, number, spec, job_id, avoided)
        except LaunchError as error:
            decision = Decision(
                False, decision.code, f"{reasons}; {error}; `python -m launch resume` goes on elsewhere"
            )
            attempts.amend_end(run_dir, number, again=False, reason=decision.reason)
    print(f"attempt {number} ended with code {decision.code}: {decision.reason}", flush=True)
    return decision.code


def _obstacle(run_dir: Path, spec: JobSpec, wrong: Sequence[str]) -> str:
    """Why the job would not, or should not, start again without these nodes; empty where it should."""
    ended = (attempts.read_end(run_dir, number) or {} for number in attempts.numbers(run_dir))
    before = [end for end in ended if end.get("excluded")]
    if len(before) >= MAX_EXCLUSIONS:
        return f"{MAX_EXCLUSIONS} attempts were given up for their nodes already"
    found = limits.read_limits(spec.resources.partition)
    num_avoided = len({node for end in before for node in end["excluded"]} | {*wrong})
    if found and all(each.num_nodes - num_avoided < spec.resources.nodes for each in found):
        names = " and ".join(repr(each.partition) for each in found)
        return f"partition {names} has no {spec.resources.nodes} nodes without {', '.join(wrong)}"
    return ""


def _requeue(run_dir: Path, number: int, spec: JobSpec, job_id: str, avoided: str) -> None:
    """
    Raises:
        LaunchError: Slurm refuses.
    """
    successor = attempts.read_begin(run_dir, number).get("successor")
    if spec.chain == "singleton" and successor:
        jobs.exclude(str(successor), avoided)
        return
    # Slurm lets a requeued job wait for its credential to expire: there is time for the second call.
    jobs.requeue(job_id)
    jobs.exclude(job_id, avoided)


if __name__ == "__main__":
    os.umask(0o077)
    try:
        sys.exit(main(Path(sys.argv[1]), os.environ))
    except LaunchError as error:
        print(f"{error.prefix}{error}", file=sys.stderr)
        sys.exit(error.exit_code)
