"""What the benchmarks of training share: processes in the same conditions, rounds in turn, and what they came to.

Each side runs in a process of its own, on the same cores and with the same number of threads. What a process measured
is kept in the working folder as `<round>-<side>.json`: a benchmark that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parent.parent
Courses: TypeAlias = tuple[Sequence[float], Sequence[float]]
"""(loss, gradient norm) of each optimizer step."""
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-3, 1e-2
"""By how much, relative, sides may differ that train the same."""
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**31 - 1), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""What `sft/allocator.py` tells malloc, for other programs: keep freed memory from step to step."""


class Unmeasured(SystemExit):
    """A side failed, or did something else than the others; what else was measured stands."""


@dataclass(frozen=True)
class Measured:
    """What one process measured."""

    losses: list[float]
    """Of each optimizer step."""
    grad_norms: list[float]
    """Before clipping, of each step."""
    ends_s: list[float]
    """When each step was over, on a clock of the process."""
    cpu_s: list[float]
    """CPU seconds that the process had used by then."""
    num_tokens: list[int]
    """Tokens of documents in each step, without padding."""
    num_trained_tokens: list[int]

    def rate(self, num_warmup: int) -> float:
        """Tokens per second after the warm-up steps."""
        return sum(self.num_tokens[num_warmup:]) / (self.ends_s[-1] - self.ends_s[num_warmup - 1])

    def trained_rate(self, num_warmup: int) -> float:
        """Trained tokens per second, likewise."""
        return sum(self.num_trained_tokens[num_warmup:]) / (self.ends_s[-1] - self.ends_s[num_warmup - 1])

    def cpu_per_1000_tokens(self, num_warmup: int) -> float:
        """CPU seconds per 1,000 tokens: neighbours on the machine hardly change it."""
        return 1000 * (self.cpu_s[-1] - self.cpu_s[num_warmup - 1]) / sum(self.num_tokens[num_warmup:])

    def write(self, path: Path) -> None:
        """Keeps it as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


@dataclass(frozen=True)
class Conditions:
    """What all sides have in common."""

    threads: int
    wrap: tuple[str, ...] = ()
    """Words before every command, such as `taskset -c 0,1`."""

    def run(self, command: Sequence[str | Path], environment: Mapping[str, str]) -> str:
        """Runs a command to its end; returns what it said.

        Raises:
            Unmeasured: it failed.
        """
        process = self.start(command, environment)
        try:
            said, _ = process.communicate()
        except BaseException:  # this one is told to end: so must that one be
            process.kill()
            process.wait()
            raise
        if process.returncode:
            raise Unmeasured(f"{shlex.join(map(str, command))}\nended with {process.returncode}\n{said}")
        return said

    def start(self, command: Sequence[str | Path], environment: Mapping[str, str]) -> subprocess.Popen[str]:
        """The command as a process; what it says on either stream is its standard output."""
        return subprocess.Popen(
            [*self.wrap, *map(str, command)],
            env={**os.environ, "OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false",
                 "PYTHONPATH": python_path(), "HF_HUB_OFFLINE": "1", **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


def python_path(*folders: Path) -> str:
    """PYTHONPATH of a process: the project, these folders, and what this process was given."""
    return os.pathsep.join(filter(None, [str(ROOT), *map(str, folders), os.environ.get("PYTHONPATH")]))


def parse_no_options(claim: str | None) -> None:
    """The command line of a benchmark without options: `--help` prints its claim."""
    argparse.ArgumentParser(description=claim, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()


def add_conditions(parser: argparse.ArgumentParser, threads: int, rounds: int | None) -> None:
    """The options that every benchmark of training takes; without `--rounds` where there are none."""
    parser.add_argument("--threads", type=int, default=threads, help=f"of each process [{threads}]")
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help=f"repetitions of every side, in turn [{rounds}]")
    parser.add_argument("--wrap", default="", help="words before every command, such as 'taskset -c 0,1'")
    parser.add_argument("--work", type=Path, help="working folder; what it holds already is not measured again")


def add_steps(parser: argparse.ArgumentParser, steps: int, warmup: int) -> None:
    """The options for the length of a run."""
    parser.add_argument("--steps", type=int, default=steps,
                        help=f"optimizer steps of a run, with the warm-up [{steps}]")  # fmt: skip
    parser.add_argument("--warmup", type=int, default=warmup, help=f"first steps that are not timed [{warmup}]")


def parsed(parser: argparse.ArgumentParser, words: list[str] | None, *, least_rounds: int = 1) -> argparse.Namespace:
    """The command line, with the options of `add_conditions` and `add_steps`; what they cannot be ends it."""
    options = parser.parse_args(words)
    if options.rounds < least_rounds:
        parser.error(f"--rounds is {options.rounds}; it must be at least {least_rounds}")
    if not 1 <= options.warmup < options.steps:
        parser.error(f"--warmup is {options.warmup}; it must be at least 1 and below --steps, {options.steps}")
    if options.work is not None:
        options.work = options.work.resolve()
    return options


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """The option for the number format of all sides."""
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto",
                        help="of all sides; auto: bfloat16 where the device has units for it [auto]")  # fmt: skip


def is_bf16(dtype: str, device: str = "cpu") -> bool:
    """Whether all sides compute in bfloat16."""
    import torch

    from sft.world import has_bf16

    return dtype == "bfloat16" or (dtype == "auto" and has_bf16(torch.device(device)))


def require(device: str) -> None:
    """
    Raises:
        SystemExit: this machine has no such device.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: device is 'cuda'; it must be on this machine: torch sees no GPU.")


def describe(folder: Path, what: Mapping[str, Any]) -> bool:
    """Writes down what a working folder is for, and the commit and libraries it is measured with; whether it is new.

    Raises:
        SystemExit: it is for something else, or cannot be made.
    """
    file = folder / "what.json"
    wanted = json.loads(json.dumps({**what, "commit": commit(), "versions": versions()}))
    if not file.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise SystemExit(f"error: --work: {folder} holds other files; it must be new or empty.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(wanted, indent=1), encoding="utf-8")
        except OSError as error:
            why = error.strerror
            raise SystemExit(f"error: --work: {folder} cannot be made: {why}; give another folder.") from None
        return True
    held = read_json(file, "remove it with its whole folder, or give another one")
    others = [name for name in sorted({*held, *wanted}) if held.get(name) != wanted.get(name)]
    if others:
        lines = "\n".join(f"  {name}: {held.get(name)!r} there, {wanted.get(name)!r} now" for name in others)
        raise SystemExit(f"error: --work: {file} describes another measurement; give another folder.\n{lines}")
    return False


def read_json(path: Path, remedy: str = "remove it, and run the same command again") -> Any:
    """What a file holds.

    Raises:
        SystemExit: it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"error: {path} is damaged ({error}); {remedy}.") from None


def here() -> str:
    """cuda where there is one, else cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def on(device: str) -> dict[str, str]:
    """The environment of a process that is to compute there; of several GPUs it sees the first."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return {"CUDA_VISIBLE_DEVICES": first if device == "cuda" else ""}


def name_of(device: str) -> str:
    """What is computed on, for a heading."""
    import torch

    return str(torch.cuda.get_device_name()) if device == "cuda" else "CPU"


def conditions(options: argparse.Namespace) -> Conditions:
    """The conditions that the options describe."""
    return Conditions(options.threads, tuple(shlex.split(options.wrap)))


def in_turn(
    sides: Sequence[str], num_rounds: int, folder: Path, measure: Callable[[str, Path], None]
) -> dict[str, list[Any]]:
    """Side → what it measured in each round; sides take turns (ABAB). `measure(side, path)` writes the path's JSON.

    Whatever the folder holds already is taken as it is.

    Raises:
        SystemExit: it was interrupted.
    """
    found: dict[str, list[Any]] = {side: [] for side in sides}
    for number in range(num_rounds):
        for side in sides:
            path = folder / f"{number}-{side}.json"
            if not path.is_file():
                unfinished = path.with_suffix(".unfinished")
                try:
                    measure(side, unfinished)
                except KeyboardInterrupt:
                    raise SystemExit("interrupted; what was measured is kept where --work FOLDER was given") from None
                record = read_json(unfinished)
                unfinished.write_text(json.dumps({**record, "loadavg": os.getloadavg()[0]}), encoding="utf-8")
                unfinished.rename(path)
                print(f"round {number + 1}: {side} done, load average {os.getloadavg()[0]:.1f}", file=sys.stderr)
            found[side].append(read_json(path))
    return found


def measured(record: Mapping[str, Any]) -> Measured:
    """What a process kept, read again."""
    return Measured(**{name: record[name] for name in Measured.__dataclass_fields__})


def differences(losses: Iterable[float], others: Iterable[float]) -> float:
    """The largest relative difference between two courses of the loss (or of the gradient's norm); NaN if there is one
    in either."""
    found = [abs(a - b) / abs(b) for a, b in zip(losses, others, strict=True)]
    return next((difference for difference in found if math.isnan(difference)), max(found))


def compared(side: str, run: Courses, other: str, reference: Courses, *, is_gate: bool = True) -> str:
    """How far the losses and gradient norms of a side are from another's.

    Raises:
        Unmeasured: they are not the same training, and `is_gate`.
    """
    loss, norm = (differences(found, wanted) for found, wanted in zip(run, reference, strict=True))
    said = f"{side}: losses of {len(reference[0])} steps differ from {other}'s by {loss:.1e} at most, "
    said += f"gradient norms by {norm:.1e}"
    if is_gate and not (loss <= LOSS_TOLERANCE and norm <= NORM_TOLERANCE):
        courses = zip(run[0], reference[0], run[1], reference[1], strict=True)
        lines = "\n".join(f"loss {a:.5f} {b:.5f}, gradient norm {c:.5f} {d:.5f}" for a, b, c, d in courses)
        raise Unmeasured(f"error: {said}: not the same training, nothing is timed.\n{lines}")
    return said


def summary(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, least, greatest)."""
    return statistics.median(values), min(values), max(values)


def versions() -> str:
    """Of the libraries that compute."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers"))


def load_averages(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The range of the load averages at the end of the runs."""
    loads = [record["loadavg"] for records in found.values() for record in records]
    return f"load average at the end of the runs {min(loads):.1f}–{max(loads):.1f}"


def commit() -> str:
    """The commit that is measured, with + where the working tree differs from it; `unknown` in a copy without git."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    try:
        head = git("rev-parse", "--short", "HEAD")
    except OSError:
        return "unknown"
    if not head:
        return "unknown"
    return f"{head}+" if git("status", "--porcelain", "--untracked-files=no") else head
