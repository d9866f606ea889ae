"""A checkpoint on its way to the disk: a thread of each rank writes its part, and rank 0's commits them together.

No collective is called here: rank 0 finds the others' parts in the temporary folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from sft.errors import StorageError
from sft.storage import Written, storage_errors, write_file

_POLL_S = 0.1


class CheckpointWrite(threading.Thread):
    """Writes this rank's part; on rank 0 it commits when all parts are there."""

    def __init__(
        self,
        temporary: Path,
        rank: int,
        chunks: Callable[[], Iterable[bytes | memoryview]],
        *,
        num_parts: int,
        at: Callable[[str], None] = lambda point: None,
        commits: Callable[[Mapping[str, Written]], None] | None,
        timeout_s: float,
    ) -> None:
        """
        Args:
            temporary: where to; each rank makes it if it is not there.
            rank: of this part.
            chunks: gives this rank's file.
            num_parts: of all ranks.
            at: called before and after the writing of this part, with the point's name.
            commits: on rank 0, what is done with all parts.
            timeout_s: how long rank 0 waits for the others' parts.
        """
        super().__init__(name="checkpoint", daemon=True)
        self.temporary = temporary
        self.part_done = threading.Event()
        """Set when this rank's part is written, or has failed."""
        self.give_up = threading.Event()
        """To be set where another rank's part has failed: rank 0 does not wait for it."""
        self.num_bytes = 0
        """Of this rank's part, as far as it is written."""
        self.part_error: BaseException | None = None
        self.commit_error: BaseException | None = None
        self._rank = rank
        self._chunks = chunks
        self._num_parts = num_parts
        self._at = at
        self._commits = commits
        self._timeout_s = timeout_s

    def run(self) -> None:
        """The thread."""
        try:
            with storage_errors(self.temporary):
                self._at("save_part")
                self._write_part()
                self._at("save_part_written")
        except BaseException as error:  # told to all ranks by those who wait
            self.part_error = error
            self._remove_part()
        self.part_done.set()
        if self._commits is None or self.part_error is not None:
            return
        try:
            with storage_errors(self.temporary):
                parts = self._all_parts()
                if parts is not None:
                    self._commits(parts)
        except BaseException as error:
            self.commit_error = error

    def _write_part(self) -> None:
        for folder in (self.temporary.parent, self.temporary):
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o700)  # not the run directory: one that is gone stays gone
        written = write_file(self.temporary / part_name(self._rank), self._counted_chunks())
        record = self.temporary / f".part-{self._rank:05d}.json"
        write_file(record, [json.dumps(asdict(written)).encode()])
        os.rename(record, self.temporary / record.name[1:])

    def _counted_chunks(self) -> Iterator[bytes | memoryview]:
        for chunk in self._chunks():
            yield chunk
            self.num_bytes += len(chunk)  # asked for the next one: this one is written

    def _remove_part(self) -> None:
        """At once: until the next save no byte of a full disk might be free otherwise."""
        record = f"part-{self._rank:05d}.json"
        for name in (part_name(self._rank), f".{record}", record):
            with contextlib.suppress(OSError):
                os.unlink(self.temporary / name)

    def _all_parts(self) -> dict[str, Written] | None:
        """Name → what was written, as each rank left it; None if it was given up."""
        records = [f"part-{rank:05d}.json" for rank in range(self._num_parts)]
        if not self._await_names(records):
            return None
        found = {
            part_name(rank): Written(**json.loads((self.temporary / record).read_text(encoding="ascii")))
            for rank, record in enumerate(records)
        }
        for name, written in found.items():
            if (size := _size_of(self.temporary / name)) != written.size:
                raise StorageError(f"{self.temporary / name} has {size} bytes; it must have {written.size}.")
        for record in records:
            (self.temporary / record).unlink()
        return found

    def _await_names(self, names: Sequence[str]) -> bool:
        """Waits for the files of all ranks, in their order; False if that was given up.

        The folder is listed, and no file asked for by its name before it is there: NFS remembers for half a minute or
        more that there was none of that name, however often it is asked.
        """
        started = time.monotonic()
        while missing := set(names).difference(os.listdir(self.temporary)):
            if self.give_up.is_set():
                return False
            if time.monotonic() - started > self._timeout_s:
                rank, name = next((rank, name) for rank, name in enumerate(names) if name in missing)
                hint = f"Is rank {rank} alive, and is output_dir on a file system that all nodes share?"
                raise StorageError(f"{self.temporary / name} is not there after {self._timeout_s:.0f} s. {hint}")
            time.sleep(_POLL_S)
        return True


def _size_of(path: Path) -> int:
    """Of an opened file: NFS asks for it anew then, where a listing may have left the size of a moment before."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_size


def part_name(rank: int) -> str:
    """The file of a rank's part."""
    return f"part-{rank:05d}.safetensors"
