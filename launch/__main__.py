"""`python -m launch`: submit, status, logs, cancel, wait."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.errors import EXIT_CODES, INTERRUPTED, OK, REFUSED, LaunchError

if TYPE_CHECKING:
    from launch import settings
    from launch.runs import Run, Status

SQUEUE_INTERVAL_S = 2.0
POLL_S = 0.3
CANCEL_TIMEOUT_S = 30.0
_OPTIONS = (
    # option, placeholder, help: each is a LaunchSettings field of the same name
    ("nodes", "N", "number of nodes (default 1)"),
    ("procs-per-node", "N", "ranks per node (default: the GPUs of a node, or 1)"),
    ("launcher", "NAME", "torchrun (default) or deepspeed"),
    ("zero", "STAGE", "DeepSpeed ZeRO stage 0, 1, 2 or 3, from ds_configs/"),
    ("executor", "NAME", "auto (default), slurm, or local: N agents on this machine"),
    ("script", "PATH", "training script (default: sft/train.py of this package)"),
    ("gpus-per-node", "N", "GPUs per node (default 0)"),
    ("cpus-per-task", "N", "CPUs per node (default: one per rank; locally an equal share)"),
    ("mem-gb", "N", "memory per node in GiB"),
    ("time-min", "N", "time limit in minutes"),
    ("partition", "NAME", "Slurm partition"),
    ("account", "NAME", "Slurm account"),
    ("qos", "NAME", "Slurm quality of service"),
    ("constraint", "TEXT", "node features, as in sbatch"),
    ("exclude", "NODES", "nodes to avoid, as in sbatch"),
    ("runs-dir", "PATH", "where run directories are made (default runs)"),
    ("python", "PATH", "Python of the job (default: this one)"),
)


def main(words: Sequence[str] | None = None) -> int:
    """Runs one subcommand; its exit code."""
    given = list(sys.argv[1:] if words is None else words)
    # Split here and not by argparse: whatever stands after `--` belongs to the script, to the letter.
    own, dashes, script_args = _split(given)
    arguments = _parser().parse_args(own)
    if dashes and arguments.command is not submit:
        print("ERROR: `--` is given; only `submit` passes arguments on to a script.", file=sys.stderr)
        return REFUSED
    arguments.script_args = script_args
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
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
        print(error, file=sys.stderr)
        return int(code)


def _split(words: list[str]) -> tuple[list[str], bool, list[str]]:
    """(the words before the first `--`, whether there is one, the words after it)."""
    if "--" not in words:
        return words, False, []
    index = words.index("--")
    return words[:index], True, words[index + 1 :]


def _parser() -> argparse.ArgumentParser:
    codes = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())
    parser = argparse.ArgumentParser(
        prog="python -m launch",
        description="Runs a training script on several nodes, by Slurm or on this machine.",
        epilog=f"exit codes:\n{codes}\n  all others are the training script's own; 128 + N is death by signal N",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_submit(commands.add_parser("submit", help="start a job", allow_abbrev=False))
    for name, command, text in (
        ("status", status, "how a run stands, and what failed first"),
        ("logs", logs, "what the ranks print"),
        ("cancel", cancel, "stop a run"),
        ("wait", wait, "until the run ends; exits with its code"),
    ):
        parser_of_command = commands.add_parser(name, help=text, allow_abbrev=False)
        parser_of_command.set_defaults(command=command)
        parser_of_command.add_argument("run", nargs="?", metavar="RUN", help="name, job id or directory (latest)")
        if name == "logs":
            parser_of_command.add_argument("-f", "--follow", action="store_true", help="go on until the job ends")
            parser_of_command.add_argument("--rank", type=int, metavar="R", help="only this rank")
            parser_of_command.add_argument("--node", type=int, metavar="I", help="only this node, with its launcher")
    return parser


def _add_submit(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=submit)
    parser.usage = "python -m launch submit [options] [-- arguments for the training script]"
    for option, metavar, text in _OPTIONS:
        parser.add_argument(f"--{option}", metavar=metavar, help=text)
    parser.add_argument("--fsdp", action="store_true", help="PyTorch FSDP2")
    parser.add_argument("--config", metavar="PATH", help="settings file (default: the quick start's)")
    parser.add_argument("--profile", metavar="NAME", help="file of launch settings, or its name in slurm/profiles/")
    parser.add_argument("--name", metavar="NAME", help="name of the run (default: settings file and time)")
    parser.add_argument("--env", metavar="K=V", action="append", default=[], help="variable for the ranks; repeatable")
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted, and submit nothing")
    parser.add_argument("--skip-audit", action="store_true", help="submit without looking at the data first")
    parser.add_argument("--wait", action="store_true", help="follow rank 0 and exit with the job's code")


def submit(arguments: argparse.Namespace) -> int:
    """Checks everything, then prints the plan or starts the job."""
    from launch import cluster, script, settings
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
    effects.check_script(spec, os.environ)
    plan = script.plan_text(spec, cluster.without_outer_job(os.environ))
    if arguments.dry_run:
        # The very bytes of plan.txt, whatever the terminal's encoding.
        sys.stdout.buffer.write(plan.encode("utf-8", errors="surrogateescape"))
        return OK
    if not arguments.skip_audit and (said := effects.audit_data(spec, os.environ)):
        print(said, file=sys.stderr)
    run = effects.submit(spec, script.script_text(spec), plan, os.environ)
    print(f"run      {run.name}\nfolder   {run.path}\njob      {run.job_id} ({executor})")
    print(f"follow   python -m launch logs -f {run.name}")
    print(f"curves   tensorboard --logdir {run.path.parent}", flush=True)
    return _follow(run) if arguments.wait else OK


def _request(arguments: argparse.Namespace) -> settings.Request:
    from launch import settings

    given = {name: getattr(arguments, name.replace("-", "_")) for name, _, _ in _OPTIONS}
    options = [f"--{name}={value}" for name, value in given.items() if value is not None]
    if arguments.fsdp:
        options.append("--fsdp=true")
    return settings.Request(
        config=arguments.config,
        profile=arguments.profile,
        name=arguments.name,
        options=tuple(options),
        env=tuple(arguments.env),
        script_args=tuple(arguments.script_args),
    )


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
        deadline = time.monotonic() + CANCEL_TIMEOUT_S
        while not watch.has_ended() and time.monotonic() < deadline:
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
        complete = self._run.outcome().is_complete
        if not complete and time.monotonic() - self._asked_at < SQUEUE_INTERVAL_S:
            return False
        self._asked_at = time.monotonic()
        return self.now().has_ended


def _print_status(run: Run, status: Status) -> None:
    from launch import report

    print(report.status_text(run, status), end="")


if __name__ == "__main__":
    sys.exit(main())
