"""The training script of `goodput.py`: sft/train.py, whose steps take a given time, and which notes what it does.

On one machine without accelerators, ranks of a real model would take each other's cores. Here a step computes a tiny
model and then waits, as for an accelerator, until GOODPUT_STEP_S seconds are over; starting, saving and ending take
what they take. `notes/<attempt>-<rank>.jsonl` in the run directory has each step that was done, with its rows and
times, and each fault on purpose.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sft.train_imports import import_libraries


def note(**facts: Any) -> None:
    """Adds a line to this rank's notes; at once, as the process may be killed next."""
    folder = Path(os.environ["CLEANSFT_RUN_DIR"], "notes")
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{os.environ['CLEANSFT_ATTEMPT']}-{os.environ['RANK']}.jsonl"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{json.dumps(facts)}\n".encode())
    finally:
        os.close(descriptor)


def main() -> int:
    """Trains; the exit code of sft/train.py."""
    import_libraries()
    from sft import faults, loop, train

    step_s, real_step, real_fault = float(os.environ["GOODPUT_STEP_S"]), loop.optimizer_step, faults.Faults._do

    def step_as_long(run: Any, step: int, data: Any, *values: Any) -> tuple[float, float]:
        began = time.time()
        found = real_step(run, step, data, *values)
        time.sleep(max(began + step_s - time.time(), 0.0))
        rows = [row for batch in data.documents for row in batch]
        note(kind="step", step=step, began=began, ended=time.time(), rows=rows)
        return found

    def noted_fault(kind: str, where: str) -> str | None:
        note(kind="fault", fault=kind, at=time.time())
        return real_fault(kind, where)

    loop.optimizer_step = step_as_long
    faults.Faults._do = staticmethod(noted_fault)
    return train.main(sys.argv[1:], owns_process=True)


if __name__ == "__main__":
    sys.exit(main())
