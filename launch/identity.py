"""Whether the same was submitted before: same settings, code and data, by the signatures of runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launch import manifest, runs
from launch.checks import Check
from launch.records import read_json
from launch.runs import COMPLETED, Run, Snapshot, Status

MAX_LOOKED_AT = 3
"""Of the runs with a signature: the newest. Each that has not ended may cost a call of the scheduler."""


def same_runs(signature: str, registry: Path) -> list[Run]:
    """The runs with this signature, the newest first."""
    found: list[Run] = []
    for entry in reversed(runs.entries(registry)):
        if entry.get("signature") == signature and os.path.exists(f"{entry['run_dir']}/job.json"):
            found.append(Snapshot(Path(entry["run_dir"])))
    return list(dict.fromkeys(found))[:MAX_LOOKED_AT]


def signature_of(run: Run) -> str | None:
    """The signature that the run was submitted with; None of a run without a manifest."""
    return (read_json(run.path / "manifest.json") or {}).get("signature")


def twin(signature: str, registry: Path, ask: Callable[[Run], Status]) -> tuple[Run, Status] | None:
    """The newest run of this signature that waits, runs or is done; None where there is none."""
    for run in same_runs(signature, registry):
        status = ask(run)
        if not status.has_ended or status.state == COMPLETED:
            return run, status
    return None


def check(found: tuple[Run, Status] | None, *, is_named: bool) -> list[Check]:
    """The row of the table; none where nothing like it was submitted. Pure.

    Args:
        found: the run that is the same, and how it stands.
        is_named: somebody gave this one a name: it is meant to be another.
    """
    if found is None:
        return []
    run, status = found
    value = f"settings, code and data are those of {run.name}, which is {status.state}"
    if is_named or status.has_ended:
        return [Check("identity", value, "warning", "It is submitted once more. `--attach` would not.")]
    remedy = f"`--attach` follows that one; `--name NAME` submits it once more; `launch status {run.name}` shows it."
    return [Check("identity", value, "error", remedy)]


def changes(run: Run, made_of: Mapping[str, Any]) -> list[Check]:
    """The row of a run that is submitted once more: what is not as it was the first time; none where nobody knows.

    Args:
        run: the earlier run.
        made_of: the manifest of the new one.
    """
    before = read_json(run.path / "manifest.json")
    if before is None:
        return []
    found = manifest.differences(before, made_of)
    if not found:
        return [Check("changes", f"none: code, settings, data and packages are those of {run.name}")]
    remedy = f"The result may differ from that of {run.name}."
    return [Check("changes", f"since {run.name}: {', '.join(found)}", "warning", remedy)]
