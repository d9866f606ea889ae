"""Tells a command of the user's when a run begins, goes on or ends. It never changes what becomes of the run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TIMEOUT_S = 10.0


def notify(run_dir: Path, job: Mapping[str, Any], event: str, **facts: Any) -> None:
    """Runs `launch.notify`, where it is given, with one JSON object on its stdin; what goes wrong is told and no more.

    Args:
        run_dir: of the run.
        job: job.json.
        event: `began`, `goes_on` (another attempt follows) or `ended`.
        facts: `attempt`, and of an end `code` and `reason`.
    """
    command = job.get("notify")
    if not command:
        return
    record = {"run": job.get("name"), "path": str(run_dir), "event": event, "at": time.time(), **facts}
    try:
        done = subprocess.run(
            list(command),
            input=json.dumps(record),
            text=True,
            timeout=TIMEOUT_S,
            stdout=subprocess.DEVNULL,
            check=False,
        )
        problem = f"it ended with code {done.returncode}" if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        print(f"warning: launch.notify was not told that the run {event}: {problem}", file=sys.stderr, flush=True)
