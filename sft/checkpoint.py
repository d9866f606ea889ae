"""Checkpoints: what a run needs to go on, in a form that no engine and no number of ranks owns.

`checkpoints/step-00000100/` holds a part of the trained weights and of AdamW's two means for each rank that wrote it
(safetensors, float32, no pickle), and `MANIFEST.json`. The step waits only until its values are copied to the memory
of the CPU; threads write, hash and sync them. It appears under its name when it is complete, and is compared with its
manifest before it is used (docs/recovery.md).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sft import commit
from sft.agreement import await_all, own_or_peers, together, told_by_main, worst_kind
from sft.checkpoint_search import find_checkpoint, problems_of
from sft.checkpoint_write import CheckpointWrite
from sft.engine import Engine
from sft.errors import CheckpointError, StorageError
from sft.fence import Fence
from sft.identity import Identity
from sft.manifest import MANIFEST, Manifest
from sft.pieces import KINDS, PartFiles, Piece, TensorKind, file_chunks, share_sizes
from sft.storage import Written, storage_errors
from sft.world import World

SAVE_POINTS = ("save_copied", "save_part", "save_part_written", "save_commit", "save_committed")
"""Where a save is: values copied, by the training itself; before and after this rank's part, by its thread; before and
after the checkpoint appears, by rank 0's thread."""


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
    evaluation_is_due: bool = False
    """Whether the run was stopped before the evaluation of this step: it comes first when the run goes on."""
    recent_losses: tuple[float, ...] = ()
    """With `skip_loss_spikes`: what the next step's loss is compared with."""
    num_skipped_steps: int = 0
    """Steps that were left out as loss spikes."""
    num_spikes_in_a_row: int = 0
    """How many of them were the last ones."""

    @property
    def num_updates(self) -> int:
        """Times that the weights were updated: AdamW counts them."""
        return self.step - self.num_skipped_steps

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunState:
        """As a manifest has it."""
        return cls(**{**values, "recent_losses": tuple(values.get("recent_losses", ()))})


class Checkpoints:
    """The checkpoints of one run directory. All methods are collectives, but for `close`."""

    def __init__(
        self,
        folder: Path,
        world: World,
        identity: Identity,
        keep: int,
        *,
        fence: Fence | None,
        cursor: Callable[[int], tuple[int, int]],
        at: Callable[[str, int], None] = lambda point, step: None,
        say: Callable[[str], None] = print,
        timeout_s: float = 1800.0,
    ) -> None:
        """
        Args:
            folder: `<output_dir>/checkpoints`.
            world: the ranks.
            identity: what must be the same for a checkpoint to be taken up.
            keep: the newest ones to keep; the best one is kept beside them.
            fence: on rank 0, its right to write there.
            cursor: the step → (epochs that are over, rows of this epoch that were trained).
            at: called with each of `SAVE_POINTS` that a save comes to, and its step.
            say: for people, on rank 0.
            timeout_s: how long parts of other ranks are waited for.
        """
        self.folder = folder
        self._world = world
        self._identity = identity
        self._keep = keep
        self._fence = fence
        self._cursor = cursor
        self._at = at
        self._say = say if world.is_main else lambda _: None
        self._timeout_s = timeout_s
        self._token = int(told_by_main(world, fence.token if fence is not None else 0))
        self._values: Tensor | None = None
        self._pieces: list[Piece] = []
        self._state = RunState()
        self._writing: CheckpointWrite | None = None
        self._saved_step: int | None = None
        self._num_writes = 0
        self._num_failures = 0

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return commit.checkpoint_path(self.folder, step)

    def find(self, wanted: str) -> Path | None:
        """The checkpoint that `resume_from_checkpoint` means; see `checkpoint_search.find_checkpoint`."""
        with together(self._world), storage_errors(self.folder):
            if self._world.is_main and self.folder.is_dir():
                commit.remove_leftovers(self.folder)  # before the look: see `commit`
        return find_checkpoint(self.folder, wanted, self._world, self._say)

    def load(self, path: Path, engine: Engine) -> RunState:
        """Sets weights and optimizer as they were.

        Raises:
            SettingsError, ChangedError: the checkpoint belongs to another run; each difference is named.
            CheckpointError: it does not fit the model.
        """
        manifest = Manifest.read(path / MANIFEST)
        with together(self._world):
            for note in self._identity.check(path, manifest.identity):
                self._say(f"warning: {note}. Rows of this epoch may be seen twice or not at all where it orders them.")
            state = RunState.from_json(manifest.state)
        if path == self.path(state.step):
            self._saved_step = state.step
        self._world.heartbeat.checkpointed(state.step)
        engine.start_from(state.num_updates)
        self._read(path, manifest, engine, KINDS)
        return state

    def load_best(self, state: RunState, engine: Engine) -> None:
        """Sets the weights to those of the best evaluation. Where there is no checkpoint of it, as after attempts that
        did not ask for the best one, they stay what they are, which is told.

        Raises:
            CheckpointError: the checkpoint is damaged.
        """
        if state.best_step is None or state.best_step == state.step:
            return
        path = self.path(state.best_step)
        if told_by_main(self._world, float(self._world.is_main and path.is_dir())):
            self._load_weights(path, engine)
        else:
            what = f"{path}, of the best evaluation, is not there"
            self._say(f"warning: {what}; the model is that of step {state.step}.")

    def _load_weights(self, path: Path, engine: Engine) -> None:
        if problems := problems_of(path, self._world, self._say):
            raise CheckpointError(f"{'; '.join(problems)}. The model of the best evaluation is lost.")
        self._read(path, Manifest.read(path / MANIFEST), engine, ("weight",))

    def _read(self, path: Path, manifest: Manifest, engine: Engine, kinds: Sequence[TensorKind]) -> None:
        with together(self._world):
            files = PartFiles([path / name for name in sorted(manifest.files)])
            for piece in engine.pieces():
                self._world.heartbeat.again()
                if piece.kind in kinds:
                    engine.write_piece(piece, files.read(piece))
        engine.weights_changed()

    def begin(self, engine: Engine, step: int, num_at_once: int) -> None:
        """Makes the folder ready for a run from `step`: sets later checkpoints aside, and sees that there is room for
        those to come.

        Args:
            engine: with its parameters.
            step: from which the run goes on.
            num_at_once: checkpoints that there will be at most at a time, with the one that is being written.

        Raises:
            StorageError: there is no room, with both figures; or the folder cannot be written.
        """
        self._pieces = engine.pieces()
        (num_elements,) = self._world.sum(float(sum(share_sizes(self._pieces))))
        with together(self._world), storage_errors(self.folder):
            if self._world.is_main:
                for path in commit.set_aside(self.folder, step, str(self._token)):
                    self._say(f"{path.name} is of a later step, or damaged; it goes with the next checkpoint.")
                self._require_room(4 * int(num_elements), num_at_once)

    def _require_room(self, num_bytes: int, num_at_once: int) -> None:
        needed = max(num_at_once - len(commit.checkpoints_in(self.folder)), min(num_at_once, 1)) * num_bytes
        status = os.statvfs(self.folder.parent)
        free = status.f_bavail * status.f_frsize
        if needed > free:
            raise StorageError(
                f"{self.folder} has {free / 1e6:,.1f} MB free; {num_at_once} checkpoints of {num_bytes / 1e6:,.1f} MB "
                f"need {needed / 1e6:,.1f} MB more. Free space there, or lower save_total_limit."
            )

    def save(self, engine: Engine, state: RunState) -> None:
        """Starts the writing of a checkpoint; the caller may go on as soon as the values are copied.

        Raises:
            NonFiniteError: the one before held values that are no numbers, and was not written.
            StorageError: two in a row could not be written.
            FencedError: another process has taken the run directory over.
        """
        self._settle()
        if self._num_failures and self._state.best_step == self._state.step != state.step:
            self._try_again()  # before its values are lost: no later step makes up for the best one
        if state.step == self._saved_step and not self._num_failures:
            return
        self._copy(engine)
        self._state, self._saved_step = state, state.step
        self._at("save_copied", state.step)
        self._start()

    @torch.no_grad()
    def _copy(self, engine: Engine) -> None:
        """This rank's shares of all pieces, end to end in one buffer, which is made once: page-locked on a GPU."""
        self._pieces = engine.pieces()
        sizes, is_cuda = share_sizes(self._pieces), self._world.device.type == "cuda"
        if self._values is None:
            self._values = torch.empty(sum(sizes), dtype=torch.float32, pin_memory=is_cuda)
        for piece, own in zip(self._pieces, torch.split(self._values, sizes), strict=True):
            self._world.heartbeat.again()
            own.copy_(engine.read_piece(piece)[piece.share], non_blocking=True)
        if is_cuda:
            torch.cuda.current_stream().synchronize()

    def _start(self) -> None:
        assert self._values is not None
        self._num_writes += 1
        self._writing = CheckpointWrite(
            commit.temporary_path(self.folder, self._state.step, f"{self._token}-{self._num_writes}"),
            self._world.rank,
            partial(file_chunks, self._pieces, self._values),
            at=lambda point, step=self._state.step: self._at(point, step),  # type: ignore[misc]
            num_parts=self._world.size,
            commits=self._commit if self._world.is_main else None,
            timeout_s=self._timeout_s,
        )
        self._writing.start()

    def _commit(self, files: Mapping[str, Written]) -> None:
        """Runs in rank 0's thread."""
        assert self._writing is not None
        assert self._fence is not None
        epoch, position = self._cursor(self._state.step)
        state, identity = dataclasses.asdict(self._state), self._identity.to_json()
        step, writer = self._state.step, str(self._fence.holder)
        manifest = Manifest(step, epoch, position, self._world.size, self._token, writer, state, identity, files)
        self._at("save_commit", step)
        try:
            commit.commit(self._writing.temporary, manifest, self._fence.check)
        except OSError:
            with contextlib.suppress(OSError):  # at once: no byte may be free otherwise
                commit.remove(self._writing.temporary)
            raise
        self._world.heartbeat.checkpointed(step)
        self._at("save_committed", step)
        try:
            commit.prune(self.folder, self._keep, self._state.best_step)
        except OSError as error:
            self._say(f"warning: old checkpoints in {self.folder} could not be removed: {error}")

    def finish(self) -> None:
        """Waits until the last checkpoint is on the disk; one that could not be written is tried once more.

        Raises:
            As `save`.
        """
        self._settle()
        if self._num_failures:
            self._try_again()

    def _try_again(self) -> None:
        """Writes the values that are held once more, and waits for it."""
        self._start()
        self._settle()

    def close(self) -> None:
        """After an error: lets what is being written end, and asks no other rank, which may be gone."""
        if self._writing is not None:
            self._writing.part_done.wait(60.0)
            self._writing.join(5.0)

    def require_fence(self) -> None:
        """
        Raises:
            FencedError: another process has taken the run directory over.
            StorageError: the run directory is gone.
        """
        with together(self._world):
            if self._fence is not None:
                self._fence.check()

    def _settle(self) -> None:
        """Waits for what is being written; all ranks learn how it went."""
        writing = self._writing
        if writing is None:
            return
        await_all(self._world, writing.part_done, lambda: writing.num_bytes)
        worst, own = worst_kind(self._world, writing.part_error), writing.part_error
        if worst is not None:
            writing.give_up.set()
        writing.join()
        self._writing = None
        if worst is None:
            worst, own = worst_kind(self._world, writing.commit_error), writing.commit_error
        if worst is None:
            self._num_failures = 0
            self._world.heartbeat.checkpointed(self._state.step)
            return
        if self._world.is_main:
            with contextlib.suppress(OSError):
                commit.remove(writing.temporary)
        self._num_failures += 1
        if worst is not StorageError or self._num_failures > 1:
            raise own_or_peers(own)
        if own is not None and not self._world.is_main:
            print(f"\nwarning: rank {self._world.rank}: {own}", flush=True)
        told = own or "Another rank could not write its part, and says why in its log."
        self._say(f"warning: {told} The checkpoint of step {self._state.step} is not written; it is tried once more.")
