"""History: what a run logged — training_log.json, TensorBoard and the progress bar. Rank 0 only writes."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.errors import SftError, StorageError
from sft.storage import storage_errors, write_json
from sft.tracking import Tracker

if TYPE_CHECKING:
    from sft.event_file import EventFile, Scalars

Record = dict[str, Any]

_FLUSH_INTERVAL_S = 10.0
"""training_log.json is written again at most this often (and at the end): it is one JSON list."""
_PATIENCE_S = 0.5
"""How long the training waits for that."""


class History:
    """The records of a run, in order: one per logged step, one per evaluation, a summary at the end.

    On ranks other than 0 it keeps the records and writes nothing. Use it as a context manager: what was logged is on
    the disk also when the body raises.
    """

    def __init__(
        self,
        output_dir: Path,
        num_steps: int,
        *,
        is_main: bool,
        tensorboard: bool,
        say: Callable[[str], None] = print,
        check: Callable[[], None] = lambda: None,
        tracker: Callable[[], Tracker] | None = None,
    ) -> None:
        """
        Args:
            output_dir: the run directory.
            num_steps: optimizer steps of the whole run, for the progress bar.
            is_main: False on ranks that only train.
            tensorboard: also write TensorBoard events, to `output_dir/tensorboard`.
            say: told when the disk takes nothing.
            check: called before anything is written; raises FencedError if another process writes the directory now.
            tracker: makes what the records go to besides, once the run starts.
        """
        self.records: list[Record] = []
        self._path = output_dir / "training_log.json"
        self._num_steps = num_steps
        self._is_main = is_main
        self._tensorboard_dir = output_dir / "tensorboard" if tensorboard and is_main else None
        self._writer: EventFile | None = None
        self._not_shown: list[Scalars] = []
        """What TensorBoard is still to be given."""
        self._bar: Any = None
        self._flushed_at = 0.0
        self._lock = threading.Lock()
        self._say = say
        self._check = check
        self._make_tracker = tracker if is_main else None
        self._tracker: Tracker | None = None
        self._is_behind = False
        self._flushing: threading.Thread | None = None
        self._error: Exception | None = None
        """What a flush beside the training has found."""

    def __enter__(self) -> History:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._flushing is not None:
            self._flushing.join()
        if exception == (None, None, None):
            self.flush()
        else:
            with contextlib.suppress(SftError):  # it would hide what ended the run
                self.keep()
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()
        if self._tracker is not None:
            self._tracker.close(_exit_code(exception[1]))

    def start(self, first_step: int) -> None:
        """Takes up the records of an earlier attempt up to `first_step`, and opens TensorBoard and the bar."""
        if not self._is_main:
            return
        from tqdm import tqdm

        if first_step and self._path.is_file():
            earlier = _whole_records(self._path.read_text(encoding="utf-8", errors="replace"))
            self.records = [r for r in earlier if r["type"] != "summary" and r["step"] <= first_step]
        if self._tensorboard_dir is not None:
            from sft.event_file import EventFile

            # What an earlier attempt logged beyond the step from which this one goes on is hidden.
            self._writer = EventFile(self._tensorboard_dir, first_step + 1 if first_step else None)
        if self._make_tracker is not None:
            self._tracker = self._make_tracker()
        self._bar = tqdm(total=self._num_steps, initial=first_step, unit="step", dynamic_ncols=True, mininterval=0.5)

    def log_step(self, record: Record) -> None:
        """A training record: step, epoch, loss, learning_rate, grad_norm, num_tokens, num_trained_tokens, elapsed_s and
        what `metering.Meter.record` gives."""
        self._log({"type": "train", **record}, "train")
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"loss {record['loss']:.4f}, {record['tokens_per_s']:,.0f} tokens/s", refresh=False
            )

    def log_eval(self, record: Record) -> None:
        """An evaluation record: step, epoch, eval_loss, num_trained_tokens, elapsed_s."""
        self._log({"type": "eval", **record}, "eval")
        if self._bar is not None:
            self._bar.write(f"step {record['step']}: eval_loss {record['eval_loss']:.4f}")

    def log_spike(self, record: Record) -> None:
        """A record of a step that was left out: step, epoch, loss, highest_loss, rows, elapsed_s."""
        self.records.append({"type": "spike", **record})
        if self._is_main:
            self._say(
                f"warning: step {record['step']} is left out: its loss is {record['loss']:.4f}, and at most "
                f"{record['highest_loss']:.4f} is no spike. Its {len(record['rows'])} rows are in training_log.json."
            )

    def log_summary(self, record: Record) -> None:
        """The last record of a run."""
        self.records.append({"type": "summary", **record})
        self.flush()

    def advance(self, step: int) -> None:
        """Moves the progress bar."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def _log(self, record: Record, group: str) -> None:
        self.records.append(record)
        if self._writer is not None:
            from sft.event_file import Scalars

            values = {f"{group}/{n}": v for n, v in record.items() if n not in ("type", "step") and v is not None}
            self._not_shown.append(Scalars(record["step"], time.time(), values))
        if self._error is None and time.monotonic() - self._flushed_at > _FLUSH_INTERVAL_S:
            self._keep_beside()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _keep_beside(self) -> None:
        """Puts everything on the disk, and waits for it only for a moment: other ranks are waiting, and a disk behind a
        network may stand still for longer than a step may take."""
        if self._flushing is not None and self._flushing.is_alive():
            return
        self._flushing = threading.Thread(target=self._keep_or_tell, name="log", daemon=True)
        self._flushing.start()
        self._flushing.join(_PATIENCE_S)

    def _keep_or_tell(self) -> None:
        try:
            self.keep()
        except Exception as error:
            self._error = error

    def keep(self) -> None:
        """Puts everything on the disk, from any thread. If the disk takes nothing, the run goes on, and what was logged
        stays in memory for the next time."""
        try:
            self.flush()
        except StorageError as error:
            self._flushed_at = time.monotonic()
            if not self._is_behind:
                self._say(f"warning: {error} The log is kept in memory until it can be written.")
            self._is_behind = True

    def flush(self) -> None:
        """Puts everything on the disk.

        Raises:
            StorageError: the disk does not take it.
            FencedError: another process writes the run directory now.
        """
        if not self._is_main or not self.records:
            return
        with self._lock:
            self._check()
            write_json(self._path, list(self.records))
            if self._writer is not None:
                with storage_errors(self._path):
                    new = list(self._not_shown)
                    self._writer.write(new)
                    del self._not_shown[: len(new)]
            if self._tracker is not None:
                self._tracker.take(list(self.records))
            self._flushed_at = time.monotonic()
            self._is_behind = False


def _exit_code(error: object) -> int:
    """The code with which the attempt is going to end, for what ended it; 0 for nothing."""
    if error is None:
        return 0
    return int(getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1))


def _whole_records(text: str) -> list[Record]:
    """The records of a log, or those before the place where it is damaged."""
    decoder, records, position = json.JSONDecoder(), list[Record](), text.find("{")
    while position >= 0:
        try:
            record, end = decoder.raw_decode(text, position)
        except ValueError:
            break
        if not isinstance(record.get("step"), int) or not isinstance(record.get("type"), str):
            break
        records.append(record)
        position = text.find("{", end)
    return records
