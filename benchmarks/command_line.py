"""Claim: `--help` answers in 80 ms, `submit --dry-run` in 150 ms, and `list` of a thousand runs in 300 ms.

    python benchmarks/command_line.py [--rounds 20]

Whole commands, from their start to their end, in turn. `floor` is a Python that does nothing. Of the dry runs, one is
of the user's own script; the other is of the trainer, which is asked (in a process of its own) whether it would accept
its settings. The thousand runs have ended, but for a hundred that have not begun; squeue is a stand-in that answers
at once, and `list` has seen the runs before. tests/launch tests what can be counted: modules, processes, files.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from benchmarks import rounds  # noqa: E402

LAUNCH = [sys.executable, "-m", "launch"]
DRY_RUN = [*LAUNCH, "submit", "--executor", "local", "--nodes", "2", "--dry-run"]
COMMANDS = {
    "floor": [sys.executable, "-c", "pass"],
    "--help": [*LAUNCH, "--help"],
    "submit --dry-run, own script": [*DRY_RUN, "--script", str(ROOT / "benchmarks" / "corpus.py")],
    "submit --dry-run, trainer": DRY_RUN,
    "list of 1,000 runs": [*LAUNCH, "list", "--last", "0"],
    "status of one of them": [*LAUNCH, "status", "r0001"],
}


def main(words: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rounds.add_conditions(parser, threads=1, rounds=20)
    options = parser.parse_args(words)
    conditions = rounds.conditions(options)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        environment = a_thousand_runs(Path(temporary))
        conditions.run(COMMANDS["list of 1,000 runs"], environment)

        def measure(side: str, path: Path) -> None:
            started = time.perf_counter()
            conditions.run(COMMANDS[side], environment)
            path.write_text(json.dumps({"seconds": time.perf_counter() - started}), encoding="utf-8")

        found = rounds.in_turn(list(COMMANDS), options.rounds, work, measure)
    print(f"commit {rounds.commit()}, {options.rounds} rounds; {rounds.load_averages(found)}\n")
    print("| | ms, median | least–greatest |\n|---|---|---|")
    for side, records in found.items():
        median, least, greatest = (1e3 * value for value in rounds.summary([record["seconds"] for record in records]))
        print(f"| {side} | {median:.0f} | {least:.0f}–{greatest:.0f} |")


def a_thousand_runs(folder: Path) -> dict[str, str]:
    """Records of them, as `submit` to Slurm and the agents leave them; returns the environment that shows them."""
    from launch import runs
    from launch.spec import JobSpec, Resources

    (folder / "bin").mkdir()
    (folder / "bin" / "squeue").write_text("#!/bin/sh\necho '7|7|PENDING|Priority|N/A'\n", encoding="utf-8")
    (folder / "bin" / "squeue").chmod(0o755)
    environment = {
        "XDG_STATE_HOME": str(folder / "state"), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "",
    }  # fmt: skip
    base = {"host": "n1", "signal": None, "stopped": False, "error": None, "tail": [], "code": 0, "ended_at": 1e9}
    ended = {
        "attempt.json": {"attempt": 0, "claim": 0, "job_id": "7", "began_at": 1e9 - 60, "step": 0},
        "rank-0.json": base | {"rank": 0, "node": 0, "step": 9},
        "node-0.json": base | {"node": 0, "own_code": 0},
        "end.json": {"own_code": 0, "was_killed": False, "was_stopped": False, "step": 9, "again": False, "code": 0,
                     "reason": "done", "ended_at": 1e9},
    }  # fmt: skip
    for number in range(1000):
        path = folder / "runs" / f"r{number:04}"
        spec = JobSpec(
            name=path.name, run_dir=str(path), executor="slurm", launcher="torchrun", resources=Resources(),
            script="train.py", script_args=(), working_dir=str(folder), python=sys.executable,
        )  # fmt: skip
        records = {"job.json": spec.to_json(), "submission.json": {"executor": "slurm", "job_id": "7"}}
        if number % 10:  # every tenth has not begun: the scheduler must be asked
            records |= {f"exit/0/{name}": record for name, record in ended.items()}
        for name, record in records.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(json.dumps(record), encoding="utf-8")
        runs.register(runs.registry_path(environment), path, path.name, "7")
    return environment


if __name__ == "__main__":
    main()
