"""Slurm, through its own commands and submitit, of which this is the only import."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launch import jobs
from launch.claims import CLAIM, Claim
from launch.errors import LaunchError
from launch.profiles import minutes
from launch.site import num_gpus
from launch.spec import JobSpec
from strict_settings import Problem, with_suggestion

SBATCH_TIMEOUT_S = 60
_TIMEOUT = ("timeout", "--kill-after=5", str(SBATCH_TIMEOUT_S))
MAX_SHOWN = 8
_IN_DOUBT = r"tim(ed|e) ?out|communicat|contact|connect|socket|zero bytes"
"""In what sbatch says where the controller may have taken the job all the same."""
_LEAKING_PREFIXES = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_", "PMI", "TORCHELASTIC_", "CLEANSFT_")
_LEAKING = {"RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
_KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SBATCH_RESERVATION", "SBATCH_WCKEY"}
"""Where Slurm is, and a user's own defaults of which no setting speaks; for others see `profiles.sbatch_defaults`."""


class InDoubtError(LaunchError):
    """A submission of which nobody knows whether it succeeded."""


def leaking(environ: Mapping[str, str]) -> list[str]:
    """The variables of an outer job, step or rank, which would change a job that is submitted from inside it."""
    return sorted(
        name for name in environ if (name in _LEAKING or name.startswith(_LEAKING_PREFIXES)) and name not in _KEPT
    )


def without_outer_job(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without them."""
    outer = set(leaking(environ))
    return {name: value for name, value in environ.items() if name not in outer}


def choose_executor(wanted: Literal["auto", "slurm", "local"]) -> tuple[Literal["slurm", "local"], str]:
    """(executor, why). With auto, slurm where sbatch is installed and the controller answers.

    Raises:
        LaunchError: slurm was asked for and does not answer.
    """
    if wanted == "local":
        return "local", ""
    problem = _slurm_problem()
    if problem and wanted == "slurm":
        raise LaunchError(f"executor is 'slurm'; it must answer: {problem}. Use --executor local to run here.")
    if problem:
        return "local", f"No Slurm here ({problem}): the nodes run as agents on this machine."
    return "slurm", ""


def _slurm_problem() -> str:
    if shutil.which("sbatch") is None:
        return "sbatch is not on PATH"
    try:
        result = jobs.command("sinfo", "-h", "-o", "%R")
    except LaunchError as error:
        return str(error)
    return "" if result.returncode == 0 else f"sinfo says: {jobs.last_line(result.stderr)}"


@dataclass(frozen=True)
class Partition:
    """A partition, as far as a request can exceed it."""

    name: str
    is_default: bool
    num_nodes: int
    num_gpus: int
    """The most GPUs that a node of it has."""
    num_cpus: int
    """The most CPUs that a node of it has."""
    max_time_min: int | None


def read_partitions() -> dict[str, Partition]:
    """Name → partition, from sinfo."""
    result = jobs.command("sinfo", "-h", "-e", "-o", "%R|%P|%D|%G|%c|%l")
    return parse_partitions(result.stdout) if result.returncode == 0 else {}


def parse_partitions(text: str) -> dict[str, Partition]:
    """Partitions from `sinfo -h -e -o '%R|%P|%D|%G|%c|%l'`, which has a line for each kind of node. Without `-e` unlike
    nodes share a line, with the fewest CPUs that one of them has."""
    partitions: dict[str, Partition] = {}
    for line in text.splitlines():
        name, title, nodes, gres, cpus, limit = line.strip().split("|")
        before = partitions.get(name)
        partitions[name] = Partition(
            name,
            title.endswith("*"),
            int(nodes) + (before.num_nodes if before else 0),
            max(num_gpus(gres), before.num_gpus if before else 0),
            max(int(cpus.rstrip("+")), before.num_cpus if before else 0),
            minutes(limit),
        )
    return partitions


def kill_wait_s() -> float | None:
    """Slurm's KillWait: from its SIGTERM to its SIGKILL; None where it can't be read."""
    found = _configured_number("KillWait")
    return None if found is None else float(found)


def _configured_number(name: str) -> int | None:
    """The number that a parameter of Slurm's configuration begins with; None where it can't be read."""
    try:
        result = jobs.command("scontrol", "show", "config")
    except LaunchError:
        return None
    found = re.search(rf"^{name}\s*=\s*(\d+)", result.stdout, re.MULTILINE)
    return int(found[1]) if found else None


def request_problems(spec: JobSpec, partitions: Mapping[str, Partition]) -> Iterator[Problem]:
    """What the job asks for and its partition can't give: Slurm would refuse it, or let it wait for ever. Of several
    partitions (`a,b`), one that can give it is enough."""
    default = [partition.name for partition in partitions.values() if partition.is_default][:1]
    names = [name for name in spec.resources.partition.split(",") if name] if spec.resources.partition else default
    if not partitions or not names:
        return
    unknown = [name for name in names if name not in partitions]
    for name in unknown:
        remedy = f"Known: {', '.join(sorted(partitions))}. {with_suggestion(name, partitions)}"
        remedy = remedy if "Did you mean" in remedy else f"Known: {', '.join(sorted(partitions))}."
        yield Problem("partition", name, "be a partition of this cluster", remedy)
    if not unknown:
        found = [list(_problems_in(partitions[name], spec, partitions)) for name in names]
        if all(found):
            yield from (problem for problems in found for problem in problems)


def _problems_in(partition: Partition, spec: JobSpec, partitions: Mapping[str, Partition]) -> Iterator[Problem]:
    resources, here = spec.resources, f"partition {partition.name!r}"
    if resources.nodes > partition.num_nodes:
        yield Problem("nodes", resources.nodes, f"be at most {partition.num_nodes}, the nodes of {here}")
    if resources.gpus_per_node > partition.num_gpus:
        with_gpus = sorted(other.name for other in partitions.values() if other.num_gpus >= resources.gpus_per_node)
        remedy = f"These have: {', '.join(with_gpus)}." if with_gpus else "No partition has as many."
        rule = f"be at most {partition.num_gpus}, the GPUs of a node in {here}"
        yield Problem("gpus_per_node", resources.gpus_per_node, rule, remedy)
    follows = resources.gpus_per_node > partition.num_gpus and spec.cpus_per_task == resources.gpus_per_node
    if spec.cpus_per_task > partition.num_cpus and not follows:
        rule = f"be at most {partition.num_cpus}, the CPUs of a node in {here}"
        yield Problem("cpus_per_task", spec.cpus_per_task, rule, "Without it there is one CPU per process.")
    limit = partition.max_time_min
    if limit is not None and resources.time_min is not None and resources.time_min > limit:
        yield Problem("time_min", resources.time_min, f"be at most {limit}, the limit of {here}")


def exclude_problems(spec: JobSpec) -> Iterator[Problem]:
    """Nodes to avoid that this cluster does not have: sbatch would refuse the whole list."""
    given = spec.resources.exclude
    if given is None or "/" in given:  # a file of names
        return
    try:
        said = jobs.command("scontrol", "show", "node", given, "--oneliner").stdout
    except LaunchError:
        return
    if unknown := re.findall(r"^Node (\S+) not found", said, re.MULTILINE):
        shown = ", ".join(unknown[:MAX_SHOWN]) + (", …" if len(unknown) > MAX_SHOWN else "")
        yield Problem("exclude", given, "name nodes of this cluster", f"Unknown: {shown}.")


# --- one job


def submit(
    spec: JobSpec, text: str, environ: Mapping[str, str], claim: Claim, *, dependency: str | None = None
) -> tuple[str, list[str]]:
    """Gives `text` to sbatch through submitit, which pickles the agent's call; (job id, the command).

    Where sbatch fails, hangs, or says something that is no job id, the job may exist all the same: it is looked for by
    the claim's token, and taken if it is there.

    Raises:
        LaunchError: sbatch refuses, in its own words.
        InDoubtError: nor can the queue be asked.
    """
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from launch.agent import run_node

    # sbatch's own environment becomes the job's: nothing of an outer job may be in it.
    clean = [word for name in leaking(environ) for word in ("-u", name)]
    command: list[str] = []

    class Executor(submitit.SlurmExecutor):  # type: ignore[misc]
        """Submitit's plumbing around our own script."""

        def _make_submission_file_text(self, command: str, uid: str) -> str:
            return text

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            # Outside the script, which is the same for every claim. sbatch's environment becomes the job's.
            own = ["env", *clean, f"{CLAIM}={claim.number}", *_TIMEOUT, "sbatch", f"--comment={claim.token}"]
            if dependency:
                # One that can't come true any more would let the job wait for ever.
                own += [f"--dependency={dependency}", "--kill-on-invalid-dep=yes"]
            command[:] = [*own, str(submission_file_path)]
            return command

    executor = Executor(f"{spec.run_dir}/submitit")
    executor.update_parameters(nodes=spec.resources.nodes, ntasks_per_node=1)
    try:
        # submitit prints what sbatch says, and raises it too: once is enough.
        with contextlib.redirect_stderr(io.StringIO()):
            job = executor.submit(run_node, spec.run_dir)
    except (FailedJobError, FailedSubmissionError) as error:
        job_id = _found_again(claim, str(error).strip())
        _adopt_pickle(Path(spec.run_dir, "submitit"), job_id)
        return job_id, command
    return str(job.job_id), command


def submit_array(path: Path, array: str, token: str, environ: Mapping[str, str]) -> tuple[str, list[str]]:
    """Gives an array's script to sbatch; (the array's id, the command).

    Where sbatch fails although the job was made, that is found by its comment.

    Args:
        path: of the script.
        array: which tasks, as in sbatch --array.
        token: for the comment.
        environ: the environment of the submission.

    Raises:
        LaunchError: sbatch refuses, in its own words.
        InDoubtError: nor can the queue be asked.
    """
    own = {**without_outer_job(environ), CLAIM: "0"}
    command = [*_TIMEOUT, "sbatch", "--parsable", f"--array={array}", f"--comment={token}", str(path)]
    result = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
    job_id = result.stdout.strip().partition(";")[0]
    if result.returncode != 0 or not job_id.isdigit():
        said = (result.stderr.strip() or result.stdout.strip()) or f"code {result.returncode}"
        job_id = _found_again(Claim(path, 0, {"token": token}), said).partition("_")[0]
    return job_id, command


def max_array_size() -> int | None:
    """Slurm's MaxArraySize: indices of arrays are below it; None where it can't be read."""
    return _configured_number("MaxArraySize")


def _found_again(claim: Claim, said: str) -> str:
    """The job that sbatch has submitted although it ended with `said`."""
    is_clear = "sbatch: error:" in said and not re.search(_IN_DOUBT, said, re.IGNORECASE)
    try:
        job_id = None if is_clear else jobs.find(claim.token)
    except LaunchError as error:
        raise InDoubtError(
            f"sbatch ended with: {said}. Whether the job exists is unknown, as {error}. "
            "Submit again when Slurm answers: a job that exists is found by its comment, and none is submitted twice."
        ) from error
    if job_id is None:
        raise LaunchError(f"sbatch refused the job: {said}")
    return job_id


def _adopt_pickle(folder: Path, job_id: str) -> None:
    """Names the agent's call as the job expects it, which submitit does only once it knows the job's id."""
    expected = folder / f"{job_id}_submitted.pkl"
    unnamed = [path for path in folder.glob("*.pkl") if not path.stem.endswith(("_submitted", "_result"))]
    if unnamed and not expected.exists():
        max(unnamed, key=lambda path: path.stat().st_mtime).rename(expected)


def find_array(token: str) -> str | None:
    """The array of a sweep whose submission ended in the middle; None where there is none.

    Raises:
        LaunchError: the queue can't be asked.
    """
    job_id = jobs.find(token)
    return None if job_id is None else job_id.partition("_")[0]


def adopt(spec_run_dir: str, claim: Claim) -> str | None:
    """The job of a submission whose process ended in the middle of it; None where there is none.

    Raises:
        LaunchError: the queue can't be asked.
    """
    job_id = jobs.find(claim.token)
    if job_id is not None:
        _adopt_pickle(Path(spec_run_dir, "submitit"), job_id)
    return job_id
