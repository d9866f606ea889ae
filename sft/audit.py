"""The whole data set before any GPU is taken: what is read, refused, cut and trained, and what an epoch will be."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sft.config import Args
from sft.encoding import ROWS_PER_BATCH, Encoding
from sft.formats import Conversation
from sft.rows import BadRow, BadRows
from sft.sources import read_conversations
from sft.truncation import TRUNCATED

MAX_EXAMPLES = 5
QUICK_ROWS = 200
QUICK_S = 5.0
WARNING_NOTES = (
    "the template adds a text of its own",
    "no stop token",
    "the template leaves out",
    "the template does not show",
    "the template writes today",
    "what the template renders",
    "control strings",
)
"""Beginnings of the masker's notes that a person should decide about."""


@dataclass
class SourceAudit:
    """What one source holds."""

    name: str
    times: float
    rows: int = 0
    bad: int = 0
    documents: int = 0
    tokens: int = 0
    trained_tokens: int = 0


@dataclass
class Audit:
    """What was found."""

    max_length: int
    is_whole: bool = True
    """False if only the first rows were looked at."""
    forms: Counter[str] = field(default_factory=Counter)
    """Rows of each form."""
    counts: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    """Documents for each of the masker's notes."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """What happened → places where."""
    sources: list[SourceAudit] = field(default_factory=list)
    stop_tokens: list[str] = field(default_factory=list)
    duplicates: int = 0
    """Rows that say what an earlier row said."""
    conflicts: int = 0
    """Rows with the prompt of an earlier row and another answer."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Documents of each length in tokens, after truncation."""
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    epoch: dict[str, Any] = field(default_factory=dict)
    """What one epoch means."""

    def example(self, what: str, place: str) -> None:
        """Remembers a place, if there are not enough of them."""
        places = self.examples.setdefault(what, [])
        if len(places) < MAX_EXAMPLES:
            places.append(place)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "is_whole": self.is_whole,
            "max_length": self.max_length,
            "errors": self.errors,
            "warnings": self.warnings,
            "forms": dict(self.forms),
            "counts": dict(self.counts),
            "notes": dict(self.notes),
            "examples": self.examples,
            "sources": [vars(source) for source in self.sources],
            "stop_tokens": self.stop_tokens,
            "duplicates": self.duplicates,
            "conflicts": self.conflicts,
            "lengths": {str(length): number for length, number in sorted(self.lengths.items())},
            "epoch": self.epoch,
        }


def audit(args: Args, encoding: Encoding, *, quick: bool = False, progress: Any = None) -> Audit:
    """Reads and encodes all training data once, keeping counts only.

    Args:
        args: the run's settings.
        encoding: how conversations become documents.
        quick: look only at the first rows of each source.
        progress: called with the number of rows done.

    Raises:
        DataError: a source cannot be read.
    """
    found = Audit(args.max_length)
    bad_rows = BadRows("error")
    seen: set[bytes] = set()
    prompts: dict[bytes, bytes] = {}
    deadline = time.monotonic() + QUICK_S if quick else math.inf
    for name, times in args.train_sources.items():
        source = SourceAudit(name, times)
        found.sources.append(source)
        limit = min(args.max_train_samples or QUICK_ROWS, QUICK_ROWS) if quick else args.max_train_samples
        rows = iter(itertools.islice(read_conversations(name, dict(args.columns)), limit))
        while (batch := list(itertools.islice(rows, 32 if quick else ROWS_PER_BATCH))) and time.monotonic() < deadline:
            for row in batch:
                if isinstance(row, Conversation):
                    found.forms[row.format] += 1
                    _compare(row, seen, prompts, found)
            _encode(batch, source, encoding, found, bad_rows)
            if progress is not None:
                progress(len(batch))
        found.is_whole = found.is_whole and not quick
    found.stop_tokens = [encoding.masker.decode([token]) for token in sorted(encoding.masker.stop_token_ids)]
    _judge(found, bad_rows, args)
    return found


def _encode(
    batch: list[Conversation | BadRow], source: SourceAudit, encoding: Encoding, found: Audit, bad_rows: BadRows
) -> None:
    encoded = encoding.encode(list(enumerate(batch)))
    for bad in encoded.bad:
        bad_rows.add(bad)
    found.counts.update(encoded.counts)
    for note, number in encoded.notes.items():
        if note not in found.notes:
            found.example(note, batch[0].source if len(batch) == 1 else f"among {batch[0].source} and the following")
        found.notes[note] += number
    found.lengths.update(Counter(map(int, encoded.columns.lengths)))
    kept = Counter(map(int, encoded.columns.rows))
    for number, row in enumerate(batch):
        if isinstance(row, Conversation) and not kept[number] and not any(b.source == row.source for b in encoded.bad):
            found.example("dropped", row.source)
    source.rows += len(batch)
    source.bad += len(encoded.bad)
    source.documents += encoded.counts["documents"]
    source.tokens += encoded.counts["tokens"]
    source.trained_tokens += encoded.counts["trained_tokens"]


def _compare(row: Conversation, seen: set[bytes], prompts: dict[bytes, bytes], found: Audit) -> None:
    """Counts rows that repeat an earlier one, or answer its prompt differently."""
    whole = _digest(list(row.messages))
    first_answer = next((i for i, m in enumerate(row.messages) if m["role"] == "assistant"), len(row.messages))
    prompt = _digest(list(row.messages[:first_answer]))
    if whole in seen:
        found.duplicates += 1
        found.example("duplicate", row.source)
    elif prompt in prompts and first_answer:
        found.conflicts += 1
        found.example("same prompt, another answer", row.source)
    seen.add(whole)
    prompts.setdefault(prompt, whole)


def _digest(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=12).digest()


def _judge(found: Audit, bad_rows: BadRows, args: Args) -> None:
    """What is an error, what a person should know, and what an epoch is."""
    counts = found.counts
    if not counts["rows"]:
        found.errors.append("the data holds no row. Name a file with at least one conversation.")
    elif not counts["documents"] and not (bad_rows.count and args.on_bad_row == "error"):
        found.errors.append(f"no row has a trained token within max_length {args.max_length}. Raise max_length.")
    if bad_rows.count:
        told = f"{bad_rows.count:,} of {counts['rows']:,} rows cannot be used:\n{bad_rows.report()}"
        is_error = args.on_bad_row == "error" or bad_rows.count > args.max_bad_rows
        (found.errors if is_error else found.warnings).append(told)
        for bad in bad_rows.examples:
            found.example("refused", str(bad))
    for what in sorted(counts):
        if counts[what] and (what == TRUNCATED or what.startswith("dropped")):
            found.warnings.append(f"{counts[what]:,} documents {what} (max_length {args.max_length})")
    for note, number in found.notes.most_common():
        if note.startswith(WARNING_NOTES):
            found.warnings.append(f"{number:,} documents: {note}")
    if found.duplicates:
        found.warnings.append(f"{found.duplicates:,} rows repeat an earlier row")
    if found.conflicts:
        found.warnings.append(f"{found.conflicts:,} rows have the prompt of an earlier row and another answer")
    found.epoch = _epoch(found, args)


def _epoch(found: Audit, args: Args) -> dict[str, Any]:
    lengths = np.repeat(
        *(np.array(list(part), dtype=np.int64) for part in (found.lengths.keys(), found.lengths.values()))
    )
    documents = sum(round(source.documents * source.times) for source in found.sources)
    tokens = sum(round(source.tokens * source.times) for source in found.sources)
    trained = sum(round(source.trained_tokens * source.times) for source in found.sources)
    per_step = args.train_batch_size or args.per_device_train_batch_size * args.gradient_accumulation_steps
    rows = math.ceil(tokens / args.max_length) if args.packing else documents
    epoch: dict[str, Any] = {
        "documents": documents,
        "tokens": tokens,
        "trained_tokens": trained,
        "rows_per_step": per_step,
        "steps": math.ceil(rows / per_step),
        "packing": args.packing,
        "mean_length": float(lengths.mean()) if len(lengths) else 0.0,
        "longest": int(lengths.max()) if len(lengths) else 0,
    }
    if len(lengths):
        order = np.random.default_rng(args.seed).permutation(lengths)
        batches = [order[i : i + args.per_device_train_batch_size] for i in _starts(len(order), args)]
        padded = sum(int(batch.max()) * len(batch) for batch in batches)
        epoch["padding"] = 0.0 if args.packing else 1 - int(lengths.sum()) / padded
    return epoch


def _starts(number: int, args: Args) -> Iterator[int]:
    return iter(range(0, number, args.per_device_train_batch_size))
