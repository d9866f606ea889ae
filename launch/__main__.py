"""`python -m launch`: submit, resume, drill, status, logs, cancel, wait."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launch import options
from launch.errors import DRILL_FAILED, INTERRUPTED, OK, LaunchError

if TYPE_CHECKING:
    from launch import settings
    from launch.runs import Run, Status

SQUEUE_INTERVAL_S = 2.0
POLL_S = 0.3
CANCEL_MARGIN_S = 30.0
"""How much longer than the ranks may take to save `cancel` waits for the end."""


def main(words: Sequence[str] | None = None) -> int:
    """Runs one subcommand; its exit code."""
    os.umask(0o077)  # of all that is made here and in the job
    commands = {
        "submit": submit, "resume": resume, "drill": drill,
        "status": status, "logs": logs, "cancel": cancel, "wait": wait,
    }  # fmt: skip
    try:
        arguments = options.parse(sys.argv[1:] if words is None else words)
        return commands[arguments.command](arguments)
    except LaunchError as error:
        print(f"{error.prefix}{error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except KeyboardInterrupt:
        return INTERRUPTED
    except ValueError as error:
        code = getattr(error, "exit_code", None)  # SettingsError, which is imported only where settings are read
        if code is None:
            raise
        print(f"error: {error}", file=sys.stderr)
        return int(code)


def submit(arguments: argparse.Namespace) -> int:
    """Checks everything, then prints the plan or starts the job."""
    from launch import cluster, devices, local, resuming, script, settings
    from launch import submit as effects
    from strict_settings import SettingsError

    working_dir = Path.cwd()
    draft = settings.read(_request(arguments), working_dir, Path.home())
    executor, note = cluster.choose_executor(draft.settings.executor)
    if note:
        print(note, file=sys.stderr)
    spec = settings.resolve(draft, executor, working_dir)
    if executor == "slurm" and (problems := list(cluster.request_problems(spec, cluster.read_partitions()))):
        raise SettingsError(draft.placed(problems))
    if executor == "slurm":
        spec = replace(spec, kill_wait_s=cluster.kill_wait_s())
    if executor == "local" and (problems := list(local.request_problems(spec, devices.num_gpus(os.environ)))):
        raise SettingsError(draft.placed(problems))
    plan = script.plan_text(spec, cluster.without_outer_job(os.environ))
    if arguments.dry_run:
        effects.check_script(spec, os.environ)
        # The very bytes of plan.txt, whatever the terminal's encoding.
        sys.stdout.buffer.write(plan.encode("utf-8", errors="surrogateescape"))
        return OK
    # Claimed before the checks, which take seconds: a second submission is told at once.
    with resuming.claimed(Path(spec.run_dir)) as claim:
        effects.check_script(spec, os.environ)
        if not arguments.skip_audit and (said := effects.audit_data(spec, os.environ)):
            print(said, file=sys.stderr)
        run = effects.submit(spec, claim, script.script_text(spec), plan, os.environ)
    return _started(run, executor, arguments.wait)


def _started(run: Run, executor: str, waits: bool) -> int:
    print(f"run      {run.name}\nfolder   {run.path}\njob      {run.job_id} ({executor})")
    print(f"follow   python -m launch logs -f {run.name}")
    print(f"curves   tensorboard --logdir {run.path.parent}", flush=True)
    return _follow(run) if waits else OK


def resume(arguments: argparse.Namespace) -> int:
    """Submits a run that has stopped or failed once more, in its directory."""
    from launch import attempts, cluster, resuming, script
    from launch import submit as effects
    from launch.spec import JobSpec

    run = _find(arguments)
    changes = {name: getattr(arguments, name.replace("-", "_")) for name, _, _ in options.RESUME_OPTIONS}
    spec = resuming.changed(
        JobSpec.from_json(run.job), changes, arguments.override, accepts_data=arguments.accept_data_change
    )
    if spec.executor == "slurm" and (problems := list(cluster.request_problems(spec, cluster.read_partitions()))):
        from strict_settings import SettingsError

        raise SettingsError(problems)
    plan = script.plan_text(spec, cluster.without_outer_job(os.environ))
    with resuming.claimed_again(run) as claim:
        effects.check_script(spec, os.environ)
        step = attempts.newest_step(run.path)
        print(f"goes on from step {step}" if step else "there is no checkpoint: it begins again")
        effects.submit(spec, claim, script.script_text(spec), plan, os.environ)
    return _started(run, spec.executor, arguments.wait)


def _request(arguments: argparse.Namespace) -> settings.Request:
    from launch import settings

    given = {name: getattr(arguments, name.replace("-", "_")) for name, _, _ in options.OPTIONS}
    words = [f"--{name}={value}" for name, value in given.items() if value is not None]
    if arguments.fsdp:
        words.append("--fsdp=true")
    return settings.Request(
        config=arguments.config,
        profile=arguments.profile,
        name=arguments.name,
        options=tuple(words),
        env=tuple(arguments.env),
        script_args=tuple(arguments.script_args),
    )


def drill(arguments: argparse.Namespace) -> int:
    """Makes short runs with faults, and shows whether each goes on as if nothing had been."""
    from launch import drill as rows

    return OK if rows.drill(arguments, Path.cwd()) else DRILL_FAILED


def status(arguments: argparse.Namespace) -> int:
    """Prints how the run stands."""
    run = _find(arguments)
    _print_status(run, _Watch(run).now())
    return OK


def wait(arguments: argparse.Namespace) -> int:
    """Waits for the end, silently; prints how it ended; exits with the job's code."""
    run = _find(arguments)
    watch = _Watch(run)
    try:
        while not watch.has_ended():
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        return _interrupted(run)
    _print_status(run, watch.now())
    return watch.now().code


def logs(arguments: argparse.Namespace) -> int:
    """Prints all ranks' logs, each line with its node and rank."""
    from launch.logs import print_logs

    run = _find(arguments)
    print_logs(run, arguments.rank, arguments.node, _Watch(run).has_ended if arguments.follow else None)
    return OK


def cancel(arguments: argparse.Namespace) -> int:
    """Stops the run and waits until it has stopped."""
    from launch import submit as effects

    run = _find(arguments)
    watch = _Watch(run)
    if not watch.has_ended():
        effects.cancel(run)
        deadline = time.monotonic() + CANCEL_MARGIN_S + float(run.job.get("stop_grace_s", 0.0))
        # The last record of a rank comes before the end of what wrote it: the nodes are free a little later.
        while (not watch.has_ended() or effects.is_running(run)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
    state = watch.now().state
    print(f"{run.name}: {state}")
    return OK


def _follow(run: Run) -> int:
    """Shows rank 0 as it speaks, until the job ends."""
    from launch.logs import follow_raw

    watch = _Watch(run)
    try:
        follow_raw(lambda: run.logs / "rank-0.log", watch.has_ended, sys.stdout.buffer)
    except KeyboardInterrupt:
        return _interrupted(run)
    print()
    _print_status(run, watch.now())
    return watch.now().code


def _interrupted(run: Run) -> int:
    print(f"\n{run.name} goes on.\nfollow   python -m launch logs -f {run.name}")
    print(f"stop     python -m launch cancel {run.name}")
    return INTERRUPTED


def _find(arguments: argparse.Namespace) -> Run:
    from launch import runs

    return runs.find(arguments.run, runs.registry_path(os.environ), Path.cwd())


class _Watch:
    """The status of a run, without asking Slurm more often than it likes."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._asked_at = float("-inf")
        self._has_warned = False

    def now(self) -> Status:
        """The status; LOST only after a second look, as records may still be on their way."""
        from launch import runs
        from launch import submit as effects

        status = runs.status_of(self._run, lambda: effects.executor_view(self._run))
        if status.state == runs.LOST:
            time.sleep(SQUEUE_INTERVAL_S)
            status = runs.status_of(self._run, lambda: effects.executor_view(self._run))
        return status

    def has_ended(self) -> bool:
        """Whether the run has ended, at most SQUEUE_INTERVAL_S late."""
        if not self._run.is_settled and time.monotonic() - self._asked_at < SQUEUE_INTERVAL_S:
            return False
        self._asked_at = time.monotonic()
        status = self.now()
        if status.is_guess and not status.has_ended and not self._has_warned:
            self._has_warned = True
            print(f"{status.reason}: only the run's own records tell how it stands.", file=sys.stderr)
        return status.has_ended


def _print_status(run: Run, status: Status) -> None:
    from launch import report

    print(report.status_text(run, status), end="")


if __name__ == "__main__":
    sys.exit(main())
