"""`python -m launch drill`: proof, where you train, that runs go on after stops, deaths and hangs.

A short run of your settings is made once undisturbed and once for each fault, by the very `submit` that you would use.
Each must end well, after the attempts that its fault asks for, with the same losses and weights to the last bit.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from launch import attempts, options, runs
from launch.errors import HANG, OK, PEER_LOST, STOPPED, LaunchError
from launch.records import write_json
from launch.settings import LaunchSettings
from launch.spec import JobSpec, python_path

MIN_STEPS = 3
RECORDS_S = 10.0
_WEIGHTS = ("model*.safetensors", "adapter_model*.safetensors")


@dataclass(frozen=True)
class Row:
    """A fault, and what must come of it."""

    name: str
    fault: str
    """For SFT_FAULT, with the numbers of the drill in braces; empty for none."""
    codes: tuple[int, ...]
    """The exit code of each attempt."""
    proves: str


ROWS = (
    Row("undisturbed", "", (OK,), "the run itself"),
    Row("stop", "term@0:{step}", (STOPPED, OK), "a signal: all ranks save, and the run goes on"),
    Row("kill", "kill@{last}:{step}", (PEER_LOST, OK), "a dead rank ends the job at once, and the run goes on"),
    Row("hang", "stop@{last}:{step}", (HANG, OK), "the watchdog ends a rank that stands still, and the run goes on"),
    Row(
        "save", "kill@0:{saved}:save_commit", (PEER_LOST, OK), "death in the middle of a save: the save before is used"
    ),
    Row("disk", "enospc@0:{saved}:save_part", (OK,), "a checkpoint that finds no room is tried again; nothing is lost"),
)


@dataclass(frozen=True)
class Evidence:
    """What a run of the drill has left behind."""

    codes: tuple[int | None, ...] = ()
    """The exit code of each attempt."""
    pauses_s: tuple[float, ...] = ()
    """From the end of an attempt to the beginning of the next."""
    losses: dict[int, float] = field(default_factory=dict)
    """Step → loss, as logged."""
    weights: dict[str, str] = field(default_factory=dict)
    """File of the final model → sha256."""
    said: str = ""
    """The last that was decided, or `submit`'s last line."""


def problems(row: Row, found: Evidence, undisturbed: Evidence) -> Iterator[str]:
    """What is not as it must be; nothing where the row passes. Pure."""
    if found.codes != row.codes:
        expected, seen = (" then ".join(map(str, codes)) or "none" for codes in (row.codes, found.codes))
        yield f"its attempts ended with {seen}; they must with {expected} ({found.said})"
    if not found.weights:
        yield "there is no final model"
        return
    steps = sorted(undisturbed.losses.keys() | found.losses.keys())
    other = [step for step in steps if found.losses.get(step) != undisturbed.losses.get(step)]
    if other:
        pair = found.losses.get(other[0]), undisturbed.losses.get(other[0])
        yield f"the loss of step {other[0]} is {pair[0]}; undisturbed it is {pair[1]}"
    if found.weights != undisturbed.weights:
        yield "the final weights are others than undisturbed"


def gather(path: Path, said: str = "") -> Evidence:
    """The evidence in a run directory."""
    numbers = attempts.numbers(path)
    begun = [attempts.read_begin(path, number) for number in numbers]
    ended = [attempts.read_end(path, number) or {} for number in numbers]
    pauses = [
        later["began_at"] - earlier["ended_at"]
        for earlier, later in zip(ended, begun[1:], strict=False)
        if "ended_at" in earlier and "began_at" in later
    ]
    weights = sorted(file for pattern in _WEIGHTS for file in path.glob(pattern))
    return Evidence(
        tuple(end.get("own_code") for end in ended),
        tuple(pauses),
        _losses(path / "training_log.json"),
        {file.name: _hash_of(file) for file in weights},
        str(ended[-1].get("reason", said)) if ended else said,
    )


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _losses(log: Path) -> dict[int, float]:
    try:
        records: list[dict[str, Any]] = json.loads(log.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {record["step"]: record["loss"] for record in records if record["type"] == "train"}


def words_of(arguments: argparse.Namespace, row: Row, name: str, num_ranks: int) -> list[str]:
    """The words of `launch submit` for a row: those of the drill, with a name, a fault, and few steps."""
    every = max(1, arguments.steps // 3)
    given = {option: getattr(arguments, option.replace("-", "_")) for option, _, _ in options.OPTIONS}
    given |= {"config": arguments.config, "profile": arguments.profile, "name": name}
    words = [f"--{option}={value}" for option, value in given.items() if value is not None]
    words += [f"--{switch}" for switch in ("fsdp", "preflight", "snapshot") if getattr(arguments, switch)]
    words += [f"--env={pair}" for pair in arguments.env]
    if row.fault:
        fault = row.fault.format(last=num_ranks - 1, step=2 * every + 1, saved=2 * every)
        words.append(f"--env=SFT_FAULT={fault}")
    words += ["--skip-audit"] if row.fault or arguments.skip_audit else []
    short = [f"--max_steps={arguments.steps}", f"--save_steps={every}", "--logging_steps=1", "--report_to=none"]
    return ["submit", *words, "--wait", "--", *arguments.script_args, *short, "--resume_from_checkpoint=auto"]


@contextlib.contextmanager
def settings_of(arguments: argparse.Namespace, run: runs.Run) -> Iterator[argparse.Namespace]:
    """The drill of a run's settings, as it was submitted or resumed last; what is given beside the run wins.

    The run directory is read and not written; the drill's own ones are made beside it. What has no option of its own is
    handed over in a file, for as long as this is open.

    Raises:
        LaunchError: settings are given twice, or the run's settings file is gone.
    """
    job = JobSpec.from_json(run.job)
    if arguments.config is not None or arguments.profile is not None:
        raise LaunchError(
            "RUN is given with --config or --profile; only one of them can have the settings. Leave one out."
        )
    if job.config is not None and not Path(job.config).is_file():
        raise LaunchError(f"{run.name} was submitted with {job.config}; it must be there for a drill. Use --config.")
    fields = {**dataclasses.asdict(job), **dataclasses.asdict(job.resources), "runs_dir": str(Path(job.run_dir).parent)}
    fields["hosts"] = ",".join(job.hosts) or None
    if job.is_our_trainer:
        del fields["script"]
    settings = argparse.Namespace(**vars(arguments))
    for option, _, _ in options.OPTIONS:
        name = option.replace("-", "_")
        if getattr(settings, name) is None:
            setattr(settings, name, fields.get(name))
    settings.preflight = arguments.preflight or job.preflight
    settings.config = job.config
    settings.env = [*(f"{name}={value}" for name, value in job.env.items() if name != "SFT_FAULT"), *arguments.env]
    resumed_with = options.without_options(job.resume_args, ("resume_override", "accept_data_change"))
    own = (
        options.without_options(job.script_args, ("config", "output_dir"))
        if "script" not in fields
        else job.script_args
    )
    settings.script_args = [*own, *resumed_with, *arguments.script_args]
    with tempfile.TemporaryDirectory(prefix="cleansft-drill-") as folder:
        settings.profile = str(Path(folder, "launch.yaml"))
        write_json(Path(settings.profile), {name: fields[name] for name in _without_option() if name in fields})
        yield settings


def _without_option() -> list[str]:
    """The launch settings that no option gives."""
    given = {option.replace("-", "_") for option, _, _ in options.OPTIONS} | {"fsdp", "preflight", "env"}
    given |= {"notify", "mail_user", "mail_type"}  # nobody is to be told of faults on purpose
    return [field.name for field in dataclasses.fields(LaunchSettings) if field.name not in given]


@dataclass(frozen=True)
class Result:
    """How a row of the drill went."""

    row: str
    proves: str
    run: str
    path: str | None
    """None where the submission was refused."""
    passed: bool
    problems: tuple[str, ...]
    codes: tuple[int | None, ...]
    pauses_s: tuple[float, ...]
    duration_s: float


class UndisturbedError(LaunchError):
    """The run without a fault did not end well: there is nothing to compare the others with."""

    def __init__(self, result: Result) -> None:
        super().__init__(
            f"the undisturbed run did not end well; look at it with `python -m launch status {result.run}`."
        )
        self.facts = {"rows": [dataclasses.asdict(result)]}


def drill(arguments: argparse.Namespace, working_dir: Path, out: TextIO) -> list[Result]:
    """Runs the rows; how each went, which is also told on `out` as they go.

    Raises:
        LaunchError: too few steps are asked for; or the undisturbed run does not end well.
    """
    if arguments.steps < MIN_STEPS:
        rule = f"be {MIN_STEPS} or more: two saves, and a step after them"
        raise LaunchError(f"--steps is {arguments.steps}; it must {rule}.")
    name = arguments.name or f"drill-{time.strftime('%Y%m%d-%H%M%S')}"
    undisturbed, num_ranks = Evidence(), 1
    results: list[Result] = []
    for row in ROWS:
        run_name = f"{name}-{row.name}"
        print(f"{row.name:12}{row.proves} … ", end="", file=out, flush=True)
        started = time.monotonic()
        said = _submit(words_of(arguments, row, run_name, num_ranks), arguments.row_timeout_s, run_name, working_dir)
        path = _path_of(run_name, working_dir)
        _await_records(path)
        found = gather(path, said) if path is not None else Evidence(said=said)
        undisturbed = undisturbed if row.fault else found
        wrong = tuple(problems(row, found, undisturbed))
        where = None if path is None else str(path)
        facts = (not wrong, wrong, found.codes, found.pauses_s, round(time.monotonic() - started, 1))
        results.append(Result(row.name, row.proves, run_name, where, *facts))
        _tell(results[-1], out)
        if path is None and not row.fault:
            raise LaunchError(f"the undisturbed run was not submitted: {said.removeprefix('error: ')}")
        if wrong and not row.fault:
            raise UndisturbedError(results[-1])
        if path is not None and not row.fault:
            num_ranks = JobSpec.from_json(runs.Run(path).job).world_size
    num_passed = sum(result.passed for result in results)
    print(f"\n{num_passed} of {len(ROWS)} rows passed. Their run directories are named {name}-….", file=out)
    return results


def _tell(result: Result, out: TextIO) -> None:
    pauses = "".join(f", went on after {pause:.1f} s" for pause in result.pauses_s)
    word = "passed" if result.passed else "FAILED"
    print(f"{word} in {result.duration_s:.0f} s{pauses}", file=out, flush=True)
    for problem in result.problems:
        print(f"{'':12}{problem}", file=out, flush=True)


def _submit(words: Sequence[str], timeout_s: float, name: str, working_dir: Path) -> str:
    """Runs one `launch submit --wait` to its end, or cancels it; the last line that it said."""
    command = [sys.executable, "-m", "launch"]
    environment = {**os.environ, "PYTHONPATH": python_path(os.environ)}
    try:
        result = subprocess.run(
            [*command, *words],
            cwd=working_dir,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        subprocess.run([*command, "cancel", name], cwd=working_dir, env=environment, capture_output=True, check=False)
        return f"it had not ended after {timeout_s:g} s, and was cancelled"
    lines = [line for line in f"{result.stdout}\n{result.stderr}".splitlines() if line.strip()]
    return lines[-1] if lines else f"submit ended with {result.returncode}"


def _await_records(path: Path | None) -> None:
    """What follows an attempt is written a moment after its ranks have ended, at which `submit --wait` returns."""
    deadline = time.monotonic() + RECORDS_S
    while path is not None and time.monotonic() < deadline:
        if all(attempts.read_end(path, number) for number in attempts.numbers(path)):
            return
        time.sleep(0.1)


def _path_of(name: str, working_dir: Path) -> Path | None:
    try:
        return runs.find(name, runs.registry_path(os.environ), working_dir).path
    except LaunchError:
        return None
