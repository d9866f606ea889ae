"""Names that mean several runs: that of a sweep, and that of a file's stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launch import sweep
from launch.records import read_json
from launch.runs import Run

STAGES = "stages.json"
"""In the folder of some stages: their names in order, and which follows which."""


def runs_meant(name: str | None, working_dir: Path, run_dirs: Sequence[Path]) -> list[Run]:
    """The runs of the sweep or of the stages of that name; none where the name is of neither.

    Args:
        name: of a sweep or of stages, or the path of its folder.
        working_dir: where paths begin.
        run_dirs: of all runs that are known.
    """
    if name is None:
        return []
    folder = sweep.find_sweep(name, working_dir, run_dirs)
    if folder is not None:
        return [run for run, _ in sweep.runs_of(folder)]
    return stages_meant(name, working_dir, run_dirs)


def stages_meant(name: str | None, working_dir: Path, run_dirs: Sequence[Path]) -> list[Run]:
    """The runs of the stages of that name, in their order."""
    folder = None if name is None else sweep.find_sweep(name, working_dir, run_dirs, record=STAGES)
    if folder is None:
        return []
    names = [stage["name"] for stage in (read_json(folder / STAGES) or {}).get("stages", ())]
    return [Run(folder / stage) for stage in names if (folder / stage / "job.json").is_file()]
