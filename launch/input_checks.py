"""Before submission: the disks that a run reads and writes, and the memory that it takes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import cluster, disks, jobs, limits
from launch.checks import Check, Verdict
from launch.options import without_options
from launch.spec import DEFAULT_SCRIPT, JobSpec, python_path
from strict_settings import SettingsError, read_yaml

GIB = 2**30
LOW_SPACE_BYTES = GIB
ESTIMATE_TIMEOUT_S = 60.0
_BYTES_PER_PARAMETER = 12
"""Of a checkpoint: weights and both means of AdamW in float32."""
_GPU_GIB = (
    ("gh200", 94), ("b200", 178), ("h200", 139), ("h100", 79), ("h800", 79), ("a100", 39), ("a800", 79), ("l40", 44),
    ("a40", 44), ("a30", 23), ("a10", 22), ("l4", 22), ("t4", 14), ("v100", 15),
)  # fmt: skip
"""What a GPU of that name has at least, in GiB."""


def of_disks(spec: JobSpec) -> list[Check]:
    """The run directory, room for what is written there, and what is read: model and data."""
    settings = Settings(spec)
    return [run_directory(spec), room(spec, settings), *_inputs(spec, settings)]


def run_directory(spec: JobSpec) -> Check:
    """Whether all nodes can see it. That they do, they show each other when the job begins."""
    found = disks.mount(Path(spec.run_dir))
    value = f"{spec.run_dir} ({found.kind})" if found is not None else spec.run_dir
    return Check("run directory", value, *_shared(spec, found, "launch.runs_dir"))


def _shared(spec: JobSpec, found: disks.Mount | None, setting: str) -> tuple[Verdict, str]:
    if found is None or found.is_shared is not False or not spec.is_elsewhere:
        return "ok", ""
    return "warning", f"{found.kind} is a disk of one machine: do the nodes see it? If not, choose another {setting}."


def room(spec: JobSpec, settings: Settings) -> Check:
    """Free space against what the checkpoints of the model would take, where its size can be seen."""
    free = disks.free_bytes(Path(spec.run_dir))
    need = _checkpoint_bytes(settings)
    value = f"{free / GIB:,.1f} GiB" + (f", of which checkpoints and model take {need / GIB:,.1f}" if need else "")
    if need and free < need:
        return Check(
            "free space", value, "error", "Free some, choose another launch.runs_dir, or lower save_total_limit."
        )
    if free < max(LOW_SPACE_BYTES, 1.2 * need):
        return Check("free space", value, "warning", "It may get full before the run ends.")
    return Check("free space", value)


def _checkpoint_bytes(settings: Settings) -> int:
    """What the run writes, in bytes; 0 where that can't be seen from here."""
    folder = settings.path("model_name_or_path")
    if folder is None or not folder.is_dir() or settings["lora"] is not None:
        return 0
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0
    width = 4 if (config.get("dtype") or config.get("torch_dtype")) == "float32" else 2
    kept = (
        settings.number("save_total_limit", 2) + 1 if settings.number("save_steps", 500) else 1
    )  # one is being written
    return stored // width * _BYTES_PER_PARAMETER * kept + stored


def _inputs(spec: JobSpec, settings: Settings) -> Iterator[Check]:
    for name in ("model_name_or_path", "train_file", "eval_file"):
        path = settings.path(name)
        if path is not None:
            yield _input(spec, name, path)
    for given in settings["train_files"] or ():
        path = settings.resolved(str(given))
        if path.exists():
            yield _input(spec, "train_files", path)


def _input(spec: JobSpec, name: str, path: Path) -> Check:
    found = disks.mount(path)
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        return Check(name, str(path), "error", "It must be readable by you. Use chmod, or ask its owner.")
    value = f"{path} ({found.kind})" if found is not None else str(path)
    return Check(name, value, *_shared(spec, found, "place"))


class Settings:
    """What the training script will read, from its arguments and its settings file: enough to look at files."""

    def __init__(self, spec: JobSpec) -> None:
        self._given: dict[str, str] = {}
        words = [*spec.script_args, *spec.resume_args]
        for word, after in zip(words, [*words, ""][1:], strict=True):
            if word.startswith("--"):
                name, equals, value = word[2:].partition("=")
                self._given[name.replace("-", "_")] = value if equals else after
        self._working_dir = Path(spec.working_dir)
        self._folder = self._working_dir
        self._values: Mapping[str, Any] = {}
        if spec.config is not None:
            self._folder = Path(spec.config).parent
            try:
                self._values = read_yaml(spec.config).values
            except SettingsError:
                self._values = {}  # the script itself says what is wrong with it

    def __getitem__(self, name: str) -> Any:
        return self._given.get(name, self._values.get(name))

    def number(self, name: str, default: int) -> int:
        """A whole number, or the default."""
        value = str(self[name])
        return int(value) if value.isdigit() else default

    def resolved(self, value: str) -> Path:
        """A file that the settings name: from the working directory, or beside the settings file; without its split."""
        names = [value, value.rpartition("@")[0]] if "@" in value else [value]
        folders = (self._working_dir, self._folder)
        paths = [folder / Path(name).expanduser() for name in names for folder in folders]
        return next((path for path in paths if path.exists()), paths[0])

    def path(self, name: str) -> Path | None:
        """The file or folder that a setting names; None where there is none, as for a hub name."""
        path = self.resolved(str(self[name])) if self[name] is not None else None
        return path if path is not None and path.exists() else None


# --- the memory


def memory(spec: JobSpec, environ: Mapping[str, str]) -> Check | None:
    """What `sft estimate` says of the run on its GPUs, in some seconds; None without GPUs, or with another script."""
    if not spec.is_our_trainer or not spec.resources.gpus_per_node or spec.config is None:
        return None
    found = limits.read_limits(spec.resources.partition) if spec.executor == "slurm" else []
    gib = gpu_gib([kind for each in found for kind in each.gpu_kinds] if all(each.gpu_kinds for each in found) else ())
    words = without_options(spec.script_args, ("config",))
    command = [spec.host_python, str(DEFAULT_SCRIPT.with_name("__main__.py")), "estimate", spec.config, "--json"]
    command += [f"--nodes={spec.resources.nodes}", f"--procs-per-node={spec.procs_per_node}", "--device=cuda"]
    command += [f"--memory-gib={gib or 80}", *words]
    environment = {**cluster.without_outer_job(environ), "PYTHONPATH": python_path(environ)}
    try:
        done = subprocess.run(
            command, cwd=spec.working_dir, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=ESTIMATE_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Check("memory per GPU", f"no estimate after {ESTIMATE_TIMEOUT_S:g} s")
    except OSError as error:
        remedy = f"{spec.host_python} does not start: {error.strerror}."
        return Check("memory per GPU", "no estimate", "warning", remedy)
    if done.returncode:
        return Check("memory per GPU", "no estimate", "warning", jobs.last_line(done.stderr))
    try:
        estimate = json.loads(done.stdout)
    except ValueError:
        said = jobs.last_line(done.stdout + done.stderr)
        return Check("memory per GPU", "no estimate", "warning", f"{spec.host_python} says: {said}")
    return of_estimate(estimate, gib)


def gpu_gib(kinds: Sequence[str]) -> int | None:
    """What the smallest of these GPUs has, in GiB; None where a name tells nothing. Pure."""
    known = [_gib_of(kind.lower()) for kind in kinds]
    return min((gib for gib in known if gib is not None), default=None) if all(known) else None


def _gib_of(kind: str) -> int | None:
    if found := re.search(r"(\d+) ?gb?(?![a-z])", kind):
        return int(found[1]) - 1  # a vendor's 80 GB are a little less than 80 GiB
    return next((gib for name, gib in _GPU_GIB if name in kind), None)


def of_estimate(found: Mapping[str, Any], gib: int | None) -> Check:
    """The verdict on `sft estimate --json`. Pure.

    Args:
        found: the estimate.
        gib: of a GPU; None where it is not known.
    """
    own = next((choice for choice in found["choices"] if choice["is_yours"]), None)
    if own is None:
        return Check("memory per GPU", "no estimate of these settings")
    total = own["total_bytes"] / GIB
    if gib is None:
        return Check("memory per GPU", f"about {total:.1f} GiB")
    value = f"about {total:.1f} of {gib} GiB"
    if own["total_bytes"] <= gib * GIB:
        return Check("memory per GPU", value)
    other = found.get("recommended")
    remedy = (
        f"It would fit as {other['name']}: {' '.join(other['settings'])}." if other else "Take more, or larger, GPUs."
    )
    return Check("memory per GPU", value, "warning", f"{remedy} `python -m sft estimate` shows more.")
