"""Runs of one process, inside the test's own: a faulted one and what it would have been undisturbed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_args, write_conversations

from sft.config import Args
from sft.train import main

NUM_STEPS = 8
SAVE_STEPS = 2
NUM_ROWS = 6


@dataclass(frozen=True)
class Ended:
    """How a run has ended."""

    folder: Path
    code: int
    said: str
    """All that it printed."""

    @property
    def error(self) -> str:
        """Its one message."""
        (line,) = [line for line in self.said.splitlines() if line.startswith("error: ")]
        return line

    @property
    def warning(self) -> str:
        """Its first warning."""
        return next((line for line in self.said.splitlines() if line.startswith("warning: ")), "")

    @property
    def resumed_after(self) -> int:
        """The step of the checkpoint that it went on from; 0 where it began anew."""
        found = re.search(r"^resuming from .*: after step (\d+)", self.said, re.MULTILINE)
        return int(found[1]) if found else 0

    @property
    def losses(self) -> list[str]:
        """Of each step, exact."""
        records = json.loads((self.folder / "training_log.json").read_text())
        steps = [record for record in records if record["type"] == "train"]
        assert [record["step"] for record in steps] == list(range(1, len(steps) + 1))
        return [float(record["loss"]).hex() for record in steps]

    @property
    def weights(self) -> str:
        """sha256 of the final model."""
        return hashlib.sha256((self.folder / "model.safetensors").read_bytes()).hexdigest()

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "checkpoints").iterdir())


class RunsHere:
    """Makes runs below a folder."""

    def __init__(
        self,
        folder: Path,
        capsys: pytest.CaptureFixture[str],
        patch: pytest.MonkeyPatch,
        output: Path | None = None,
    ) -> None:
        """
        Args:
            folder: where the data is written.
            capsys: what runs print goes to.
            patch: sets the environment.
            output: where the run directories are; None: in the folder too.
        """
        self.folder = folder
        self._output = output or folder
        self.data = write_conversations(folder / "train.jsonl", NUM_ROWS)
        self._capsys = capsys
        self._patch = patch

    def run(self, name: str = "out", fault: str = "", **settings: Any) -> Ended:
        """Trains in `name`, or goes on with what is there."""
        path = self._output / name
        own = {"max_steps": NUM_STEPS, "save_steps": SAVE_STEPS, "save_total_limit": 5, "logging_steps": 1}
        args = tiny_args(self.data, path, **{**own, **settings})
        self._patch.setenv("SFT_FAULT", fault)
        self._capsys.readouterr()
        code = main(_words(args))
        out, err = self._capsys.readouterr()
        return Ended(path, code, out + err)


def _words(args: Args) -> list[str]:
    base = Args().to_json()
    values = {name: value for name, value in args.to_json().items() if value != base[name]}
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()]


def copied(source: Path, target: Path) -> Path:
    """The target, a copy of a folder."""
    shutil.copytree(source, target)
    return target
