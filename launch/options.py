"""All commands of `python -m launch`, and the options of each. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

JSON_VERSION = 1
"""Of what `--json` prints; docs/launcher.md describes it. A field may be added without a new number."""

OPTIONS = (
    # option, placeholder, help: each is a LaunchSettings field of the same name
    ("nodes", "N", "number of nodes (default 1)"),
    ("procs-per-node", "N", "ranks per node (default: the GPUs of a node, or 1)"),
    ("launcher", "NAME", "torchrun (default), deepspeed, or direct: no program between"),
    ("zero", "STAGE", "DeepSpeed ZeRO stage 0, 1, 2 or 3, from ds_configs/"),
    ("executor", "NAME", "auto (default), slurm, or local: N agents on this machine"),
    ("hosts", "A,B", "machines without a scheduler, by ssh: a node on each"),
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
    ("chain", "NAME", "how a stopped run goes on: requeue, singleton or none"),
    ("max-restarts", "N", "how many failures may be followed by another attempt (default 10)"),
    ("signal-lead-s", "N", "seconds before the time limit at which the state is saved (default 120)"),
    ("env-file", "PATH", "NAME=VALUE lines with secrets for the ranks, of mode 0600"),
    ("python", "PATH", "Python of the job (default: this one)"),
)

RESUME_OPTIONS = tuple(
    option
    for option in OPTIONS
    if option[0]
    in ("nodes", "hosts", "time-min", "partition", "account", "qos", "constraint", "exclude", "signal-lead-s")
)
"""What may be different when a run is resumed."""

STAGES_OPTIONS = tuple(
    option for option in OPTIONS if option[0] in ("executor", "runs-dir", "partition", "account", "qos", "exclude")
)
"""What can be said of all stages at once."""


def without_options(words: Sequence[str], names: Collection[str]) -> tuple[str, ...]:
    """`--name value` and `--name=value` taken out: each may be given once."""
    kept: list[str] = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        name, equals, _ = word.partition("=")
        if name.startswith("--") and name[2:].replace("-", "_") in names:
            if not equals and remaining and not remaining[0].startswith("--"):
                remaining.pop(0)
            continue
        kept.append(word)
    return tuple(kept)


# --- the options of each command


def _count(word: str) -> int:
    """A whole number from 0 up."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"it is {word!r}; it must be a whole number, at least 0.")
    return int(word)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    for option, metavar, text in OPTIONS:
        parser.add_argument(f"--{option}", metavar=metavar, help=text)
    parser.add_argument("--fsdp", action="store_true", help="PyTorch FSDP2")
    parser.add_argument("--preflight", action="store_true", help="the job examines its nodes first, as `doctor` does")
    parser.add_argument("--config", metavar="PATH", help="settings file (default: the quick start's)")
    parser.add_argument("--profile", metavar="NAME", help="file of launch settings, or its name in slurm/profiles/")
    parser.add_argument("--name", metavar="NAME", help="name of the run (default: settings file and time)")
    parser.add_argument("--env", metavar="K=V", action="append", default=[], help="variable for the ranks; repeatable")


def _add_skip_audit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--skip-audit", action="store_true", help="submit without looking at the data first")


def _add_job(parser: argparse.ArgumentParser) -> None:
    """The settings, and how one job of them is submitted."""
    _add_settings(parser)
    _add_skip_audit(parser)
    parser.add_argument("--snapshot", action="store_true", help="the job runs from a copy of the code as it is now")


def _add_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="follow rank 0 and exit with the job's code")


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted, and submit nothing")


def _add_run_here(parser: argparse.ArgumentParser) -> None:
    _add_job(parser)
    _add_dry_run(parser)


def _add_submit(parser: argparse.ArgumentParser) -> None:
    _add_job(parser)
    parser.add_argument("--attach", action="store_true", help="where the same was submitted before, go to that run")
    _add_dry_run(parser)
    parser.add_argument("--after", metavar="RUN", help="begin when this run is complete; never, if it fails")
    _add_wait(parser)


def _add_drill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", metavar="RUN", help="take the settings of this run, which is left as it is")
    _add_job(parser)
    parser.add_argument("--steps", type=int, default=9, metavar="N", help="optimizer steps of each run (default 9)")
    parser.add_argument(
        "--row-timeout-s", type=float, default=1800.0, metavar="S", help="a run is cancelled after this (default 1800)"
    )


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    _add_settings(parser)
    parser.add_argument("--port", metavar="N", type=int, action="append", default=[], help="must be free; repeatable")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", metavar="RUN", help="name, job id or directory (latest)")


def _add_resume(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    for option, metavar, text in RESUME_OPTIONS:
        parser.add_argument(f"--{option}", metavar=metavar, help=text)
    parser.add_argument(
        "--override", metavar="KEY=VALUE", action="append", default=[], help="setting with a new value; repeatable"
    )
    parser.add_argument("--accept-data-change", action="store_true", help="go on although the data has changed")
    _add_wait(parser)


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs-dir", metavar="PATH", help="only the runs in this folder (default: all of yours)")
    parser.add_argument("--state", metavar="STATES", help="only these, with commas: RUNNING,PENDING,FAILED, …")
    parser.add_argument("--sweep", metavar="NAME", help="the runs of a sweep with their values, the best one first")
    parser.add_argument("--html", metavar="PATH", help="with --sweep: also a page with plots")
    parser.add_argument("-n", "--last", type=_count, default=20, metavar="N", help="the newest N (default 20; 0: all)")


def _add_logs(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")
    parser.add_argument("--rank", type=int, metavar="R", help="only this rank")
    parser.add_argument("--node", type=int, metavar="I", help="only this node, with its launcher")
    parser.add_argument("--attempt", type=int, metavar="N", help="only this attempt")
    parser.add_argument("--level", metavar="NAME", help="only lines of this level or above: info, warning or error")
    parser.add_argument("-t", "--times", action="store_true", help="begin each line with the time at which it came")


def _add_top(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--once", action="store_true", help="print one picture and end")
    parser.add_argument("--interval-s", type=float, default=1.0, metavar="S", help="between pictures (default 1)")


def _add_resubmit(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    for option, metavar, text in RESUME_OPTIONS:
        parser.add_argument(f"--{option}", metavar=metavar, help=text)
    parser.add_argument("--name", metavar="NAME", help="name of the new run (default: the old one's and a number)")
    _add_skip_audit(parser)
    _add_dry_run(parser)
    _add_wait(parser)


def _add_runs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help="names, job ids or directories")


def _add_tensorboard(parser: argparse.ArgumentParser) -> None:
    _add_runs(parser)
    parser.add_argument("--port", type=int, metavar="N", help="port on this machine (default: a free one)")


def _add_attach(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--node", type=int, default=0, metavar="I", help="number of the node (default 0)")


def _add_clean(parser: argparse.ArgumentParser) -> None:
    _add_runs(parser)
    parser.add_argument("--older-than", type=float, metavar="DAYS", help="runs that ended so many days ago")
    parser.add_argument("--state", metavar="STATES", help="runs of these states, with commas: FAILED,CANCELLED, …")
    parser.add_argument(
        "--checkpoints", action="store_true", help="only checkpoints; of runs that can go on, the newest stays"
    )
    parser.add_argument("--yes", action="store_true", help="remove without asking")


def _add_completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish", "words"), help="words: what could stand there")


def _add_profiles(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("init", "list", "show"), help="make one by what Slurm says; all; one")
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the profile (init: default the cluster's name)")
    parser.add_argument("--partition", metavar="NAME", help="init: the partition (default: that with the most GPUs)")
    parser.add_argument("--project", action="store_true", help="init: into slurm/profiles/, not ~/.config/cleansft/")
    parser.add_argument("--force", action="store_true", help="init: overwrite a profile of the name")


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("axes", nargs="*", metavar="[FILE] KEY=V,V…", help="settings file, and values of each setting")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="so many at a time (default 1)")
    _add_dry_run(parser)
    _add_job(parser)


def _add_stages(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the stages: docs/launcher.md shows one")
    parser.add_argument("--name", metavar="NAME", help="of their folder (default: the file's name and time)")
    for option, metavar, text in STAGES_OPTIONS:
        parser.add_argument(f"--{option}", metavar=metavar, help=text)
    parser.add_argument("--profile", metavar="NAME", help="file of launch settings, or its name in slurm/profiles/")
    _add_skip_audit(parser)
    parser.add_argument("--snapshot", action="store_true", help="each runs from a copy of the code as it is now")
    _add_dry_run(parser)
    parser.add_argument("--wait", action="store_true", help="until all have ended; exits with the first bad code")


class Verb(NamedTuple):
    """A command: what it does in a few words, what may be typed, which options it has."""

    help: str
    examples: Sequence[str]
    add: Callable[[argparse.ArgumentParser], None]
    passes_on: str = ""
    """What the words after `--` are, where there may be any."""


_SCRIPT = "arguments for the training script"
VERBS: Mapping[str, Verb] = {
    "submit": Verb("start a job", ["--nodes 2 --config run.yaml"], _add_submit, _SCRIPT),
    "run": Verb(
        "run here, in the foreground; Ctrl-C saves and stops", ["--config run.yaml --nodes 2"], _add_run_here, _SCRIPT
    ),
    "print": Verb("show what would be submitted", ["--nodes 2 --config run.yaml"], _add_job, _SCRIPT),
    "list": Verb("all runs and how they stand", ["", "--state RUNNING,PENDING"], _add_list),
    "status": Verb("how a run stands: progress, attempts, what failed first", ["", "my-run --json"], _add_run),
    "logs": Verb("what the ranks print, in order", ["-f", "my-run --rank 3 --level warning"], _add_logs),
    "top": Verb("a live picture of a run: progress, curves, ranks", ["", "my-run"], _add_top),
    "cancel": Verb("stop a run, a sweep or stages", ["my-run"], _add_run),
    "wait": Verb("until the run ends; exits with its code", ["my-run && echo done"], _add_run),
    "resume": Verb("go on with a run that stopped or failed", ["my-run --time-min 600"], _add_resume),
    "resubmit": Verb(
        "a run once more from its beginning",
        ["my-run", "my-run --nodes 4 -- --learning_rate 2e-5"],
        _add_resubmit,
        f"{_SCRIPT}, in place of those of the same name",
    ),
    "attach": Verb("a shell on a node of a run", ["my-run --node 1", "my-run -- nvidia-smi"], _add_attach, "a command"),
    "tensorboard": Verb("curves in a browser, on this machine only", ["", "run-a run-b"], _add_tensorboard),
    "clean": Verb(
        "remove runs that have ended, or their checkpoints", ["--older-than 30 --checkpoints", "my-run"], _add_clean
    ),
    "sweep": Verb(
        "a run for each combination of values",
        ["run.yaml learning_rate=1e-5,2e-5 seed=1,2,3 --parallel 2"],
        _add_sweep,
        _SCRIPT,
    ),
    "stages": Verb(
        "jobs of one file, each after others: train, evaluate, export", ["stages.yaml --dry-run"], _add_stages
    ),
    "profiles": Verb("settings of your cluster in a file: make, list, show", ["init", "show mycluster"], _add_profiles),
    "drill": Verb(
        "prove that runs survive stops, deaths and hangs",
        ["--nodes 2 --config run.yaml", "demo"],
        _add_drill,
        _SCRIPT,
    ),
    "doctor": Verb("examine nodes: what is slow or wrong there", ["--nodes 2 --partition gpu"], _add_doctor),
    "completion": Verb(
        "completion of the word `launch` in your shell", ["bash >> ~/.bashrc"], _add_completion, "words"
    ),
}
"""All commands, in the order of the help. The module of each is `launch/verbs/<name>.py`."""
