"""Checkpoints: what a run needs to go on, in a form that no engine owns.

`checkpoints/step-00000100/` holds the trained weights and AdamW's two means, each whole and in float32 (safetensors,
no pickle), and `state.json`. A checkpoint of any engine and any world can be taken up by any other. It appears under
its name when it is complete.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open

from sft.engine import OPTIMIZER_KINDS, Engine, TensorKind
from sft.errors import CheckpointError
from sft.storage import TensorEntry, new_folder, write_json, write_tensors
from sft.world import World
from strict_settings import Problem, SettingsError

_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class RunState:
    """Where a run is: all that is not a tensor."""

    step: int = 0
    """Optimizer steps done."""
    num_tokens: int = 0
    num_trained_tokens: int = 0
    elapsed_s: float = 0.0
    best_eval_loss: float | None = None
    best_step: int | None = None
    num_evals_since_best: int = 0


class Checkpoints:
    """The checkpoints of one run directory."""

    def __init__(self, folder: Path, world: World, identity: dict[str, Any], keep: int) -> None:
        """
        Args:
            folder: `<output_dir>/checkpoints`.
            world: the ranks.
            identity: settings that must be the same for a checkpoint to be taken up.
            keep: the newest ones to keep; the best one is kept beside them.
        """
        self.folder = folder
        self._world = world
        self._identity = identity
        self._keep = keep

    def save(self, engine: Engine, state: RunState) -> Path:
        """Writes a checkpoint (a collective) and removes those that are too many."""
        path = self.path(state.step)
        parameters = {name: p for name, p in engine.model.named_parameters() if p.requires_grad}
        if not self._world.is_main:
            self._write_kinds(engine, parameters, path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            with new_folder(path) as temporary:
                self._write_kinds(engine, parameters, temporary)
                write_json(temporary / "state.json", {**dataclasses.asdict(state), "identity": self._identity})
            self._prune(state)
        self._world.barrier()
        return path

    def _write_kinds(self, engine: Engine, parameters: dict[str, Any], folder: Path) -> None:
        kinds: tuple[TensorKind, ...] = ("weight", *OPTIMIZER_KINDS)
        for kind in kinds:
            entries = [
                TensorEntry(
                    name,
                    int(getattr(parameter, "ds_numel", parameter.numel())) * 4,
                    partial(engine.gather, name, kind),
                )
                for name, parameter in parameters.items()
            ]
            write_tensors(entries, folder, kind, is_main=self._world.is_main)

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def newest(self) -> Path | None:
        """The complete checkpoint with the highest step."""
        found = [path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name)]
        complete = [path for path in found if (path / "state.json").is_file()]
        return max(complete, default=None, key=lambda path: path.name)

    def find(self, wanted: str) -> Path | None:
        """The checkpoint that `resume_from_checkpoint` means.

        Raises:
            CheckpointError: a folder was named and is no checkpoint.
        """
        if wanted == "none":
            return None
        if wanted == "auto":
            return self.newest()
        path = Path(wanted)
        if not (path / "state.json").is_file():
            remedy = "Name a folder like checkpoints/step-00000100, or auto, or none."
            raise CheckpointError(f"resume_from_checkpoint is {wanted!r}; it must hold a state.json. {remedy}")
        return path

    def load(self, path: Path, engine: Engine) -> RunState:
        """Sets weights and optimizer as they were (a collective).

        Raises:
            SettingsError: the checkpoint belongs to a run with other settings; each difference is named.
            CheckpointError: a file of it cannot be read.
        """
        record = _read_state(path)
        self._check_identity(path, record.pop("identity", {}))
        state = RunState(**record)
        engine.start_from(state.step)
        for kind in OPTIMIZER_KINDS:
            _load_kind(path, engine, kind)
        _load_kind(path, engine, "weight")
        return state

    def load_weights(self, path: Path, engine: Engine) -> None:
        """Sets the weights only (a collective)."""
        _load_kind(path, engine, "weight")

    def _check_identity(self, path: Path, identity: dict[str, Any]) -> None:
        problems = [
            Problem(
                key,
                value,
                f"be {identity.get(key)!r}, as in {path}",
                "Resume with the same settings, or start anew with resume_from_checkpoint: none or another output_dir.",
            )
            for key, value in self._identity.items()
            if identity.get(key) != value
        ]
        if problems:
            raise SettingsError(problems)

    def _prune(self, state: RunState) -> None:
        found = sorted(path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name))
        best = self.path(state.best_step) if state.best_step is not None else None
        for path in found[: -self._keep]:
            if path != best:
                shutil.rmtree(path)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}/state.json cannot be read: {error}. Remove this checkpoint.") from error
    return state


def _load_kind(path: Path, engine: Engine, kind: TensorKind) -> None:
    """Scatters one kind of tensor. Every rank reads the file for itself: it is mapped, not loaded."""
    names = {name for name, parameter in engine.model.named_parameters() if parameter.requires_grad}
    try:
        for file in sorted(path.glob(f"{kind}*.safetensors")):
            # `exp_avg*` also finds the files of `exp_avg_sq`.
            if file.name.split(".")[0].split("-")[0] != kind:
                continue
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (not a mapping)
                    engine.scatter(name, kind, tensors.get_tensor(name))
                    names.discard(name)
    except Exception as error:  # safetensors has its own error type per cause
        raise CheckpointError(f"{path}: {kind} cannot be read: {error}. Remove this checkpoint.") from error
    if names:
        raise CheckpointError(f"{path}: {kind} of {sorted(names)[0]} and {len(names) - 1} more are missing.")
