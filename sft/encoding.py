"""Conversations → columns of tokens, by worker processes on batches of rows."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft.documents import Document
from sft.errors import SftError
from sft.formats import Columns, Conversation
from sft.masking import Masker, MaskError
from sft.rows import BadRow
from sft.sources import Unparsed, conversation_or_bad
from sft.token_columns import TokenColumns, read_manifest
from sft.truncation import fitted

ROWS_PER_BATCH = 256
"""Rows that a worker encodes at a time."""

Numbered = tuple[int, Unparsed]
_QUEUED = 3
"""Batches that wait for each process, so that none is idle."""


@dataclass(frozen=True)
class Encoded:
    """What became of some rows."""

    columns: TokenColumns
    bad: list[BadRow] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """rows, documents, tokens, trained_tokens, and documents truncated and dropped, by reason."""
    notes: Counter[str] = field(default_factory=Counter)
    """Documents for each of the masker's notes."""
    stop_token_ids: frozenset[int] = frozenset()

    @classmethod
    def open(cls, folder: Path) -> Encoded:
        """What `write_columns` wrote with `info`; the columns memory-mapped.

        Raises:
            StorageError: the folder is not as it was written.
        """
        columns, info = TokenColumns.open(folder), read_manifest(folder)
        return cls(
            columns,
            [BadRow(source, reason) for source, reason in info["bad"]],
            Counter(info["counts"]),
            Counter(info["notes"]),
            frozenset(info["stop_token_ids"]),
        )

    def info(self) -> dict[str, Any]:
        """All but the columns, as JSON."""
        return {
            "counts": dict(self.counts),
            "notes": dict(self.notes),
            "bad": [[bad.source, bad.reason] for bad in self.bad],
            "stop_token_ids": sorted(self.stop_token_ids),
        }


def documents_of(rows: Sequence[Conversation | BadRow], masker: Masker) -> Iterator[list[Document] | BadRow]:
    """For each row its documents, whole, or why it has none."""
    made = iter(masker.encode([row for row in rows if isinstance(row, Conversation)]))
    for row in rows:
        found = row if isinstance(row, BadRow) else next(made)
        yield BadRow(row.source, str(found)) if isinstance(found, MaskError) else found


@dataclass(frozen=True)
class Encoding:
    """How conversations become documents."""

    masker: Masker
    max_length: int

    def encode(self, rows: Sequence[tuple[int, Conversation | BadRow]]) -> Encoded:
        """The documents of some numbered rows, in their order."""
        counts, notes = Counter({"rows": len(rows)}), Counter[str]()
        bad: list[BadRow] = []
        documents: list[Document] = []
        numbers: list[int] = []
        for (number, _), made in zip(rows, documents_of([row for _, row in rows], self.masker), strict=True):
            if isinstance(made, BadRow):
                bad.append(made)
                continue
            for document in made:
                notes.update(document.notes)
                document_or_none, what = fitted(document, self.max_length, self.masker.options.truncation)
                counts[what or "whole"] += 1
                if document_or_none is not None:
                    documents.append(document_or_none)
                    numbers.append(number)
        columns = TokenColumns.of(documents, numbers)
        counts["documents"], counts["tokens"] = len(documents), len(columns.ids)
        counts["trained_tokens"] = int(columns.num_trained.sum())
        return Encoded(columns, bad, counts, notes, frozenset(self.masker.stop_token_ids))


@dataclass(frozen=True)
class Task:
    """How the rows of a source become documents; it is sent to other processes."""

    encoding: Encoding
    columns: tuple[tuple[str, str], ...] = ()
    """Our column, the source's."""

    def encode(self, rows: Sequence[Numbered]) -> Encoded:
        """The documents of some rows, which are parsed here."""
        names = Columns(dict(self.columns))
        return self.encoding.encode([(number, conversation_or_bad(row, names)) for number, row in rows])


class Workers:
    """This process and others beside it, which encode; those are started when there is enough to do for them."""

    def __init__(self, task: Task, num_processes: int) -> None:
        """
        Args:
            task: what they do.
            num_processes: this one counted in.
        """
        self._task = task
        self._num_others = num_processes - 1
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def encode(self, rows: Iterable[Numbered]) -> Iterator[Encoded]:
        """The rows in batches, in their order.

        Raises:
            SftError: a process was ended from outside.
        """
        batches = _batched(rows, ROWS_PER_BATCH)
        first = list(itertools.islice(batches, 2 * (self._num_others + 1)))
        everything = itertools.chain(first, batches)
        if self._num_others == 0 or (self._pool is None and len(first) < 2 * (self._num_others + 1)):
            yield from map(self._task.encode, everything)
            return
        if self._pool is None:
            # A process that may hold a GPU or run threads must not be forked.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._num_others, context, _start, (self._task,))
        try:
            yield from self._shared(everything, self._pool)
        except BrokenProcessPool as error:
            remedy = "Give the node more memory, or encode with fewer processes: dataset_num_proc."
            raise SftError(f"a process that encodes was ended from outside, as for want of memory. {remedy}") from error

    def _shared(self, batches: Iterable[list[Numbered]], pool: ProcessPoolExecutor) -> Iterator[Encoded]:
        """The batches, in their order, this process taking those for which the others have no room."""
        pending: deque[Future[Encoded]] = deque()
        for batch in batches:
            if sum(not future.done() for future in pending) < _QUEUED * self._num_others:
                pending.append(pool.submit(_encode, batch))
            else:
                own: Future[Encoded] = Future()
                own.set_result(self._task.encode(batch))
                pending.append(own)
            while pending and pending[0].done():
                yield pending.popleft().result()
        for future in pending:
            yield future.result()


_TASK: list[Task] = []
"""The worker's own."""


def _start(task: Task) -> None:
    _TASK[:] = [task]


def _encode(rows: Sequence[Numbered]) -> Encoded:
    return _TASK[0].encode(rows)


def _batched(rows: Iterable[Numbered], size: int) -> Iterator[list[Numbered]]:
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
