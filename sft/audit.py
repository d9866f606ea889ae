"""The whole data before any GPU is taken: what is read, refused, cut and trained.

Streamed: memory holds counts, and two hashes for each row.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sft.documents import Document
from sft.encoding import documents_of
from sft.formats import Conversation
from sft.masking import Masker
from sft.rows import BadRow, without_values
from sft.sources import read_conversations
from sft.truncation import fitted, without_tail

ROWS_PER_BATCH = 256
QUICK_ROWS = 200
QUICK_S = 5.0
MAX_EXAMPLES = 5
MAX_KINDS = 200
"""So many reasons and notes are told apart; what varies in them is cut out, so real data has a handful."""


class Tally:
    """How often something happened, and the first places where."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, what: str, place: str) -> None:
        """Counts one."""
        if what not in self.counts and len(self.counts) >= MAX_KINDS:
            what = "other"
        self.counts[what] += 1
        places = self.examples.setdefault(what, [])
        if len(places) < MAX_EXAMPLES:
            places.append(place)


@dataclass
class SourceAudit:
    """What one source holds. `rows` = those of all forms + refused ones at reading; `documents` of good rows =
    the kept ones + the dropped ones."""

    name: str
    times: float = 1.0
    """How often its rows are seen in an epoch."""
    rows: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    """Rows of each form."""
    num_refused: int = 0
    documents: int = 0
    """Those that are trained."""
    tokens: int = 0
    trained_tokens: int = 0
    num_truncated: int = 0
    num_dropped: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    """Documents of each length in tokens, up to the last trained one, before truncation."""
    kept_lengths: Counter[int] = field(default_factory=Counter)
    """Those that are trained, after truncation."""

    @property
    def trained_share(self) -> float:
        """Share of the tokens that have a loss."""
        return self.trained_tokens / max(self.tokens, 1)


@dataclass
class Audit:
    """What was found in the data of a run."""

    max_length: int
    sources: list[SourceAudit] = field(default_factory=list)
    """Of the training data."""
    held_out: SourceAudit | None = None
    """The evaluation's."""
    is_whole: bool = True
    """False if only the first rows were looked at."""
    refused: Tally = field(default_factory=Tally)
    """By reason; places with the reason as it was given."""
    fates: Tally = field(default_factory=Tally)
    """Documents truncated and dropped, by what was done."""
    notes: Tally = field(default_factory=Tally)
    """Documents for each of the masker's notes."""
    repeated: Tally = field(default_factory=Tally)
    """Rows that repeat others, by how."""
    longest: tuple[int, str] = (0, "")
    """Tokens of the longest document, and its place."""
    stop_tokens: dict[int, str] = field(default_factory=dict)
    """Tokens that end trained turns."""

    @property
    def rows(self) -> int:
        """Training rows, good and bad ones."""
        return sum(source.rows for source in self.sources)

    @property
    def num_refused(self) -> int:
        """Training rows that cannot be used."""
        return sum(source.num_refused for source in self.sources)

    @property
    def documents(self) -> int:
        """Training documents."""
        return sum(source.documents for source in self.sources)

    @property
    def tokens(self) -> int:
        """Tokens of the training documents."""
        return sum(source.tokens for source in self.sources)

    @property
    def trained_tokens(self) -> int:
        """Those with a loss."""
        return sum(source.trained_tokens for source in self.sources)

    @property
    def trained_share(self) -> float:
        """Share of the training tokens that have a loss."""
        return self.trained_tokens / max(self.tokens, 1)

    @property
    def num_truncated(self) -> int:
        """Training documents that were cut."""
        return sum(source.num_truncated for source in self.sources)

    @property
    def num_dropped(self) -> int:
        """Training documents that are not trained because of their length."""
        return sum(source.num_dropped for source in self.sources)

    @property
    def forms(self) -> Counter[str]:
        """Training rows of each form."""
        return sum((source.forms for source in self.sources), Counter[str]())

    @property
    def lengths(self) -> Counter[int]:
        """Training documents of each length, before truncation."""
        return sum((source.lengths for source in self.sources), Counter[int]())


REPEATED = "the same as an earlier row"
ANOTHER_ANSWER = "the prompt of an earlier row, with another answer"
IN_TRAINING = "in the evaluation's data and in the training data"


class Auditor:
    """Reads and encodes data once, keeping counts only."""

    def __init__(
        self,
        masker: Masker,
        max_length: int,
        *,
        columns: Mapping[str, str] | None = None,
        max_rows: int | None = None,
        is_quick: bool = False,
        progress: Callable[[int], Any] = lambda _: None,
    ) -> None:
        """
        Args:
            masker: tokenizer, template, what is trained, and how longer documents are truncated.
            max_length: tokens of a document.
            columns: our column → the source's.
            max_rows: take only the first rows of each source of the training data.
            is_quick: look at `QUICK_ROWS` rows in `QUICK_S` seconds, whatever the settings say.
            progress: called with the number of rows done.
        """
        self.found = Audit(max_length)
        self._masker, self._columns = masker, columns
        self._max_rows, self._is_quick, self._progress = max_rows, is_quick, progress
        self._rows_seen: set[int] = set()
        self._prompts_seen: set[int] = set()
        self._deadline = time.monotonic() + QUICK_S if is_quick else float("inf")

    def train(self, sources: Mapping[str, float]) -> None:
        """Looks at the training data: file → how often its rows are seen in an epoch.

        Raises:
            DataError: a source cannot be read.
        """
        for name, times in sources.items():
            source = SourceAudit(name, times)
            self.found.sources.append(source)
            self._read(source, self._max_rows, -(-QUICK_ROWS // len(sources)))

    def evaluate(self, name: str, max_rows: int | None = None) -> None:
        """Looks at the evaluation's data, after the training data.

        Raises:
            DataError: it cannot be read.
        """
        self.found.held_out = SourceAudit(name)
        self._read(self.found.held_out, max_rows, QUICK_ROWS // 4)

    def _read(self, source: SourceAudit, max_rows: int | None, quick_rows: int) -> None:
        limit = min(quick_rows, max_rows or quick_rows) if self._is_quick else max_rows
        rows = read_conversations(source.name, self._columns, limit)
        size = 32 if self._is_quick else ROWS_PER_BATCH
        while batch := list(itertools.islice(rows, size)):
            self._look_at(batch, source)
            self._progress(len(batch))
            if time.monotonic() > self._deadline:
                break
        is_at_end = not batch and (not self._is_quick or source.rows < quick_rows or source.rows == max_rows)
        self.found.is_whole = self.found.is_whole and is_at_end
        self.found.stop_tokens = {token: self._masker.decode([token]) for token in sorted(self._masker.stop_token_ids)}

    def _look_at(self, batch: Sequence[Conversation | BadRow], source: SourceAudit) -> None:
        for row, made in zip(batch, documents_of(batch, self._masker), strict=True):
            source.rows += 1
            if isinstance(row, Conversation):
                source.forms[row.format] += 1
                self._compare(row, is_training=source is not self.found.held_out)
            if isinstance(made, BadRow):
                self._refuse(source, made)
                continue
            for document in made:
                self._count(document, row.source, source)

    def _refuse(self, source: SourceAudit, bad: BadRow) -> None:
        source.num_refused += 1
        reason = without_values(bad.reason)
        self.found.refused.add(reason, bad.source if reason == bad.reason else str(bad))

    def _count(self, document: Document, place: str, source: SourceAudit) -> None:
        found = self.found
        for note in document.notes:
            found.notes.add(note, place)
        length = len(without_tail(document))
        source.lengths[length] += 1
        if length > found.longest[0] and source is not found.held_out:
            found.longest = (length, place)
        kept, fate = fitted(document, found.max_length, self._masker.options.truncation)
        if fate is not None:
            found.fates.add(fate, f"{place}: {length:,} tokens")
            source.num_truncated += kept is not None
            source.num_dropped += kept is None
        if kept is not None:
            source.documents += 1
            source.tokens += len(kept)
            source.trained_tokens += int(kept.num_trained_tokens)
            source.kept_lengths[len(kept)] += 1

    def _compare(self, row: Conversation, *, is_training: bool) -> None:
        """Counts rows that repeat another one."""
        messages = row.messages
        last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
        whole, prompt = _hash([messages, row.tools]), _hash([messages[:last], row.tools])
        if not is_training:
            if whole in self._rows_seen:
                self.found.repeated.add(IN_TRAINING, row.source)
            return
        if whole in self._rows_seen:
            self.found.repeated.add(REPEATED, row.source)
        elif prompt in self._prompts_seen:
            self.found.repeated.add(ANOTHER_ANSWER, row.source)
        self._rows_seen.add(whole)
        self._prompts_seen.add(prompt)


def _hash(value: Any) -> int:
    """64 bits: among ten million rows, two that differ have the same with a chance of 1 in 400,000."""
    text = json.dumps(value, sort_keys=True, default=str).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
