"""What faults cost a run that goes on by itself: `python benchmarks/goodput.py --mtbf 60 --rounds 5`.

Claim: at a mean time between faults of 60 s a run spends 0.60 of its time on steps that count, at 300 s 0.90.

In each round a run is made on which random faults fall (`SFT_FAULT=…@poisson:SEED:MTBF`): ranks that are killed, crash,
leave, hang, or are told to stop. It runs under the local launcher, on two nodes of this machine, and its chain lets it
go on until it is done. A step takes `--step-s`, whatever else the machine does (`goodput_script.py`).

**Goodput** is the useful time in proportion to the whole: the number of steps times the time of a step, divided by the
time from `submit` to the end of the last attempt, over all rounds. What lies between them is listed:

- start: from the beginning of an attempt to its first step: agents, torchrun, imports, model, checkpoint;
- redone: steps that had been done already, but after the newest checkpoint, and the one in which the fault fell;
- detect: from the fault to the end of the attempt, when all processes are gone. A stop also saves in that time;
- restart: from the end of an attempt to the beginning of the next, and from `submit` to the first;
- end: from the last step to the final model; and saving, and what steps take longer than they should.

Nothing is printed unless each run ends with the weights of one without faults to the last bit, and each row was
computed exactly once in each epoch by the steps that count.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.rounds import ROOT, Conditions, add_conditions, commit, conditions

KINDS = ("kill", "segv", "exit0", "stop", "hang", "term")
NUM_ROWS = 64
ROWS_PER_STEP = 4
MODEL = {
    "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """A step that a rank has done."""

    step: int
    began: float
    ended: float
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Attempt:
    """An attempt of a run, on the clock of time.time()."""

    began_at: float
    ended_at: float
    steps: tuple[Step, ...]
    """Those that were done, once each, with the rows of all ranks and the times of the first that has noted it."""
    faults: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Parts:
    """Where the time of a run went, in seconds."""

    whole: float
    new_steps: float
    start: float
    redone: float
    detect: float
    restart: float
    saving: float
    end: float

    @classmethod
    def of(cls, submitted_at: float, attempts: Sequence[Attempt]) -> Parts:
        """Those of a run. Their sum is the whole."""
        found, done = dict.fromkeys(("new_steps", "start", "redone", "detect", "saving", "end"), 0.0), 0
        restart, previous = 0.0, submitted_at
        for number, attempt in enumerate(attempts):
            restart += attempt.began_at - previous
            previous = attempt.ended_at
            is_last = number == len(attempts) - 1
            # What falls on a run while it loads costs its start alone.
            fault_at = attempt.faults[0][0] if attempt.faults and not is_last else None
            stepping_from = attempt.steps[0].began if attempt.steps else fault_at or attempt.ended_at
            stepping_to = attempt.steps[-1].ended if attempt.steps else stepping_from
            noticed_from = max(fault_at or stepping_to, stepping_to)
            in_steps = sum(step.ended - step.began for step in attempt.steps)
            new = sum(step.ended - step.began for step in attempt.steps if step.step > done)
            found["start"] += stepping_from - attempt.began_at
            found["new_steps"] += new
            found["redone"] += in_steps - new + noticed_from - stepping_to
            found["saving"] += stepping_to - stepping_from - in_steps
            found["end" if is_last else "detect"] += attempt.ended_at - noticed_from
            done = max([done, *(step.step for step in attempt.steps)])
        return cls(attempts[-1].ended_at - submitted_at, restart=restart, **found)


def lineage(attempts: Iterable[Attempt]) -> dict[int, list[int]]:
    """Step → the rows that were computed in it by the last attempt that did it: what the final weights have learnt."""
    return {step.step: sorted(step.rows) for attempt in attempts for step in attempt.steps}


def epochs_with_other_rows(rows: Mapping[int, Sequence[int]], num_rows: int, steps_per_epoch: int) -> list[int]:
    """The whole epochs, counted from 1, in which not each row was computed exactly once."""
    num_epochs = len(rows) // steps_per_epoch
    spans = [range(number * steps_per_epoch + 1, (number + 1) * steps_per_epoch + 1) for number in range(num_epochs)]
    seen = [sorted(row for step in span for row in rows.get(step, ())) for span in spans]
    return [number for number, found in enumerate(seen, 1) if found != list(range(num_rows))]


# --- runs


def attempts_of(run_dir: Path) -> list[Attempt]:
    """What the records and notes of a run tell."""
    found = []
    folders = sorted((run_dir / "exit").iterdir(), key=lambda path: int(path.name))
    while not (folders[-1] / "end.json").exists():  # the run is done when its nodes are; its supervisor ends after them
        time.sleep(0.1)
    for folder in folders:
        begun, ended = (json.loads((folder / name).read_text()) for name in ("attempt.json", "end.json"))
        notes = [
            json.loads(line)
            for path in sorted((run_dir / "notes").glob(f"{folder.name}-*.jsonl"))
            for line in path.read_text().splitlines()
        ]
        by_step: dict[int, list[dict[str, Any]]] = {}
        for note in notes:
            if note["kind"] == "step":
                by_step.setdefault(note["step"], []).append(note)
        steps = tuple(
            Step(
                step,
                own[0]["began"],
                own[0]["ended"],
                tuple(row for note in own for row in note["rows"]),
            )
            for step, own in sorted(by_step.items())
        )
        faults = tuple(sorted((note["at"], note["fault"]) for note in notes if note["kind"] == "fault"))
        found.append(Attempt(begun["began_at"], ended["ended_at"], steps, faults))
    return found


def prepare(folder: Path, num_steps: int, save_steps: int, launcher: str) -> Path:
    """Writes data and settings; the settings file."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"say {number}"},
                {"role": "assistant", "content": f"it is {number}"},
            ]
        }
        for number in range(NUM_ROWS)
    ]
    (folder / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    settings = {
        "model_config": MODEL, "tokenizer_name": str(ROOT / "sft" / "quickstart" / "tokenizer"), "bf16": False,
        "train_file": str(folder / "train.jsonl"), "train_batch_size": ROWS_PER_STEP, "matmul_tflops": 1.0,
        "per_device_train_batch_size": ROWS_PER_STEP // 2, "max_steps": num_steps, "save_steps": save_steps,
        "report_to": "none", "learning_rate": 1e-3,
        "launch": {"nodes": 2, "launcher": launcher, "chain": "requeue", "max_restarts": 100_000},
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(json.dumps(settings))
    return path


def run(
    folder: Path, name: str, conditions: Conditions, step_s: float, fault: str | None
) -> tuple[float, list[Attempt]]:
    """Makes a run to its end, unless the folder has it already; (when it was submitted, its attempts)."""
    run_dir, kept = folder / "runs" / name, folder / f"{name}.json"
    words = ["submit", "--executor", "local", "--config", str(folder / "run.yaml"), "--name", name, "--skip-audit"]
    words += ["--runs-dir", str(run_dir.parent), "--script", str(ROOT / "benchmarks" / "goodput_script.py"), "--wait"]
    words += [f"--env=GOODPUT_STEP_S={step_s}", *([f"--env=SFT_FAULT={fault}"] if fault else [])]
    words += ["--", "--config", str(folder / "run.yaml"), "--output_dir", str(run_dir)]
    if not kept.is_file():
        command = [sys.executable, str(Path(__file__).resolve()), "--submit", str(kept), *words]
        conditions.run(command, {"XDG_STATE_HOME": str(folder / "state")})
    return json.loads(kept.read_text())["submitted_at"], attempts_of(run_dir)


def submit(kept: Path, words: Sequence[str]) -> int:
    """`launch submit`, and a note of when it began: what stands before it on the command line may wait."""
    submitted_at = time.time()
    # Not from here: Python looks for `launch` in the working directory first.
    code = subprocess.run([sys.executable, "-m", "launch", *words], cwd=kept.parent, check=False).returncode
    if code == 0:
        kept.write_text(json.dumps({"submitted_at": submitted_at}))
    return code


def weights_of(folder: Path, name: str) -> str:
    """sha256 of the final weights."""
    return hashlib.sha256((folder / "runs" / name / "model.safetensors").read_bytes()).hexdigest()


@dataclass(frozen=True)
class Found:
    """Runs with faults."""

    useful_s: float
    parts: tuple[Parts, ...]
    """Of each run."""
    faults: tuple[str, ...]
    """The kinds of all."""
    num_attempts: int

    def total(self, name: str) -> float:
        """Seconds of a part, over all runs."""
        return sum(float(getattr(parts, name)) for parts in self.parts)

    @property
    def goodput(self) -> float:
        """Share of the whole time."""
        return self.useful_s / self.total("whole")


def measured(folder: Path, conditions: Conditions, options: argparse.Namespace) -> Found:
    """Makes all runs, each compared with one that has no faults.

    Raises:
        SystemExit: the final weights differ, or a row was not computed exactly once in an epoch.
    """
    prepare(folder, options.steps, options.save_steps, options.launcher)
    _, undisturbed = run(folder, "undisturbed", Conditions(1), 0.0, None)

    def disturbed(number: int) -> tuple[Parts, list[Attempt]]:
        name = f"disturbed-{number}"
        fault = options.fault or f"{'+'.join(KINDS)}@poisson:{options.seed + number}:{options.mtbf}"
        submitted_at, attempts = run(folder, name, conditions, options.step_s, fault)
        require_same(folder, name, lineage(attempts), lineage(undisturbed))
        parts = Parts.of(submitted_at, attempts)
        print(f"round {number + 1}: {parts.whole:.0f} s, {len(attempts)} attempts, {loads()}", file=sys.stderr)
        return parts, attempts

    with ThreadPoolExecutor(options.at_once) as pool:
        found = list(pool.map(disturbed, range(options.rounds)))
    faults = tuple(kind for _, attempts in found for attempt in attempts for _, kind in attempt.faults)
    num_attempts = sum(len(attempts) for _, attempts in found)
    useful_s = options.rounds * options.steps * options.step_s
    return Found(useful_s, tuple(parts for parts, _ in found), faults, num_attempts)


def loads() -> str:
    """How busy the machine is."""
    return f"load average {os.getloadavg()[1]:.1f} over 5 minutes"


def require_same(folder: Path, name: str, rows: Mapping[int, list[int]], undisturbed: Mapping[int, list[int]]) -> None:
    """Ends the benchmark where a run is not the one without faults."""
    if weights_of(folder, "undisturbed") != weights_of(folder, name):
        raise SystemExit(f"the final weights of {name} are others than without faults.")
    if rows != undisturbed:
        raise SystemExit(f"the steps of {name} that count have computed other rows than without faults.")
    if wrong := epochs_with_other_rows(rows, NUM_ROWS, NUM_ROWS // ROWS_PER_STEP):
        raise SystemExit(f"in the epochs {wrong} of {name} not each row was computed exactly once.")


def report(found: Found, options: argparse.Namespace) -> str:
    """The table."""
    whole, count = found.total("whole"), max(len(found.faults), 1)
    names = ("start", "redone", "detect", "restart", "saving", "end")
    rows = {"useful": found.useful_s, **{name: found.total(name) for name in names}}
    rows["slower steps"] = found.total("new_steps") - found.useful_s
    kinds = ", ".join(f"{found.faults.count(kind)} {kind}" for kind in sorted(set(found.faults)))
    lines = [
        f"{len(found.faults)} faults ({kinds}), {found.num_attempts} attempts in {options.rounds} runs of "
        f"{options.steps} steps of {options.step_s} s, a checkpoint every {options.save_steps} of them; seeds from "
        f"{options.seed} on; launcher: {options.launcher}; commit {commit()}; {loads()}",
        "",
        f"**goodput {found.goodput:.3f}** at a mean time between faults of {options.mtbf:g} s "
        f"(seen: {whole / count:.0f} s)",
        "",
        "| part | seconds | of the whole | for each attempt |",
        "|---|---|---|---|",
        *(
            f"| {name} | {seconds:.1f} | {seconds / whole:.1%} | {seconds / found.num_attempts:.2f} |"
            for name, seconds in rows.items()
        ),
        f"| the whole | {whole:.1f} | | |",
    ]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    words = sys.argv[1:] if words is None else words
    if words[:1] == ["--submit"]:
        sys.exit(submit(Path(words[1]), words[2:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_conditions(parser, threads=1, rounds=5)
    parser.add_argument("--mtbf", type=float, default=60.0, help="mean seconds between two faults [60]")
    parser.add_argument("--steps", type=int, default=720, help="optimizer steps of a run [720]")
    parser.add_argument("--step-s", type=float, default=0.25, help="seconds of a step [0.25]")
    parser.add_argument("--save-steps", type=int, default=16, help="steps between two checkpoints [16]")
    parser.add_argument("--seed", type=int, default=1, help="of the first round's faults [1]")
    parser.add_argument("--at-once", type=int, default=1, help="rounds that run side by side; they mostly wait [1]")
    parser.add_argument("--launcher", choices=("torchrun", "direct"), default="torchrun", help="[torchrun]")
    parser.add_argument("--fault", help="these faults instead of random ones, as SFT_FAULT has them")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.work or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        print(report(measured(folder, conditions(options), options), options))


if __name__ == "__main__":
    main()
