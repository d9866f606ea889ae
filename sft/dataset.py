"""ConversationDataset: conversations as documents of token ids, in memory or memory-mapped from the cache."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sft.batching import Batch, collate
from sft.documents import Document
from sft.encoding import Encoded, Encoding
from sft.encoding_cache import EncodingCache, Source
from sft.errors import DataError
from sft.formats import Conversation
from sft.masking import Masker
from sft.rows import BadRow, BadRows
from sft.token_columns import TokenColumns


class ConversationDataset(Sequence[Document]):
    """Documents in the order of their rows, with what happened on the way counted.

    Attributes:
        counts: rows, bad rows, documents, tokens, trained_tokens, and documents truncated and dropped, by reason.
        notes: documents for each of the masker's notes.
        stop_token_ids: the tokens that ended trained turns.
        content_hash: sha256 of the sources' files, with how often each is seen; None for conversations in memory.
    """

    content_hash: str | None = None

    def __init__(
        self,
        conversations: Iterable[Conversation | BadRow],
        masker: Masker,
        max_length: int,
        bad_rows: BadRows | None = None,
    ) -> None:
        """Encodes in memory, in this process; `from_sources` is for files.

        Args:
            conversations: in order.
            masker: tokenizer, template, what is trained, and how longer documents are truncated.
            max_length: tokens of a document.
            bad_rows: what happens to rows that cannot be used; by default they are an error.

        Raises:
            DataError: rows that cannot be masked, each with file and line; or no document is left.
        """
        encoded = Encoding(masker, max_length).encode(list(enumerate(conversations)))
        self._start([(encoded, 1.0)], masker.pad_token_id, max_length, bad_rows or BadRows())

    @classmethod
    def from_sources(
        cls,
        sources: Mapping[Source, float],
        encoding: Encoding,
        cache: EncodingCache,
        *,
        num_processes: int = 1,
        makes: bool = True,
        bad_rows: BadRows | None = None,
    ) -> ConversationDataset:
        """The documents of files, encoded by worker processes and kept in the cache.

        Args:
            sources: each with how often its documents are seen in an epoch.
            encoding: how conversations become documents.
            cache: where they are kept.
            num_processes: workers.
            makes: take part in encoding what is not in the cache, or wait for it.
            bad_rows: what happens to rows that cannot be used; by default they are an error.

        Raises:
            DataError: rows that cannot be used; or no document is left.
            StorageError: the cache cannot be written.
        """
        made = cls.__new__(cls)
        prepared = [
            (cache.prepared(source, encoding, num_processes, makes=makes), times) for source, times in sources.items()
        ]
        for source, (part, _) in zip(sources, prepared, strict=True):
            if not part.counts["rows"]:
                raise DataError(f"{source.name}: the file holds no row. Name a file with at least one conversation.")
        made._start(prepared, encoding.masker.pad_token_id, encoding.max_length, bad_rows or BadRows())
        made._names = [source.name for source in sources]
        parts = [[cache.content(source), source.columns, source.max_rows, times] for source, times in sources.items()]
        made.content_hash = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return made

    def _start(
        self, prepared: Sequence[tuple[Encoded, float]], pad_token_id: int, max_length: int, bad_rows: BadRows
    ) -> None:
        self._pad_token_id = pad_token_id
        self._names = ["the data"] * len(prepared)
        self._parts = [(part.columns, *_repeats(len(part.columns), times)) for part, times in prepared]
        self._starts = np.cumsum([0, *(_num_seen(part) for part in self._parts)])
        self.counts: Counter[str] = sum((part.counts for part, _ in prepared), Counter())
        self.notes: Counter[str] = sum((part.notes for part, _ in prepared), Counter())
        self.stop_token_ids = frozenset[int]().union(*(part.stop_token_ids for part, _ in prepared))
        for bad in (bad for part, _ in prepared for bad in part.bad):
            bad_rows.add(bad)
        bad_rows.finish(self.counts["rows"])
        self.counts["bad rows"] = bad_rows.count
        if not len(self):
            raise DataError(f"no row has a trained token within max_length {max_length}. Raise max_length.")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Document:  # type: ignore[override]
        number, position = self._locate(index)
        return self._parts[number][0][position]

    def place(self, index: int) -> str:
        """Where a document comes from, for messages: `row 17 of train.jsonl`, counted from 1, blank lines left out."""
        number, position = self._locate(index)
        return f"row {int(self._parts[number][0].rows[position]) + 1} of {self._names[number]}"

    def _locate(self, index: int) -> tuple[int, int]:
        """(number of the source, position of the document in it)."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        columns, whole, extra = self._parts[number]
        position = index - int(self._starts[number])
        is_whole = position < whole * len(columns)
        return number, position % len(columns) if is_whole else int(extra[position - whole * len(columns)])

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each document; memory-mapped where there is one source, seen once."""
        return self._column("lengths")

    @property
    def num_trained(self) -> NDArray[np.int32]:
        """Trained tokens of each document, likewise."""
        return self._column("num_trained")

    @property
    def total_weights(self) -> NDArray[np.float64]:
        """Sum of the weights of each document's trained tokens, likewise."""
        return self._column("total_weights")

    def _column(self, name: str) -> NDArray[Any]:
        found = []
        for columns, whole, extra in self._parts:
            column: NDArray[Any] = getattr(columns, name)
            found += [column] * whole + ([column[extra]] if len(extra) else [])
        return found[0] if len(found) == 1 else np.concatenate(found)

    def batch(self, rows: Sequence[int]) -> Batch:
        """The documents of these rows, padded on the right; no rows give one token without a label, so that a rank
        with nothing to do can still take part in the collectives of a step."""
        return collate([self[row] for row in rows], self._pad_token_id)

    @property
    def summary(self) -> str:
        """One line for the log."""
        counts = self.counts
        parts = [f"{counts['documents']:,} documents", f"{counts['tokens']:,} tokens"]
        parts.append(
            f"{counts['trained_tokens']:,} trained ({counts['trained_tokens'] / max(counts['tokens'], 1):.0%})"
        )
        told = ("rows", "documents", "tokens", "trained_tokens", "whole")
        parts += [f"{number:,} {name}" for name, number in counts.items() if number and name not in told]
        return ", ".join(parts)


def num_times(index: ArrayLike, times: float) -> NDArray[np.int64]:
    """How often documents are seen in an epoch of which their source is to be seen `times` times: 2.5 gives each 2, and
    half of them, spread evenly over the source, 1 more. The same for the same index, whatever the source's size.

    Args:
        index: positions in the source.
        times: greater than 0.
    """
    whole = int(times)
    # Multiples of the golden ratio fill the unit interval evenly from any start to any end, and follow no pattern that
    # the order of a file may have, as every second row would.
    return whole + ((np.asarray(index) * 0.6180339887498949) % 1.0 < times - whole)


_Part = tuple[TokenColumns, int, NDArray[np.int64]]


def _repeats(num_documents: int, times: float) -> tuple[int, NDArray[np.int64]]:
    """(how often every document is seen in an epoch, which are seen once more)."""
    whole = int(times)
    if times == whole:
        return whole, np.zeros(0, dtype=np.int64)
    return whole, np.flatnonzero(num_times(np.arange(num_documents), times) > whole)


def _num_seen(part: _Part) -> int:
    columns, whole, extra = part
    return whole * len(columns) + len(extra)
