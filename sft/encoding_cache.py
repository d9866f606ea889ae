"""Encoded conversations on disk: made once, by whoever comes first, and found again by what they were made from.

The folder's name is a hash of all that its content depends on. It is made in blocks, each claimed by one process at a
time, so that several nodes share the work where they share the folder, and an interrupted making goes on where it
stopped. Nobody waits inside a collective: those who do not encode look for the finished folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers
from tqdm import tqdm

from sft.claims import claimed
from sft.encoding import Encoded, Encoding, Numbered, Task, Workers
from sft.errors import StorageError
from sft.rows import BadRow
from sft.sources import read_rows, source_files, unparsed_rows
from sft.storage import new_folder, storage_errors, user_cache_folder
from sft.token_columns import MANIFEST, TokenColumns, read_manifest, write_columns

ENCODER_VERSION = 5
"""To be raised with every change that changes tokens, masks or columns."""
ROWS_PER_BLOCK = 8192
POLL_S = 0.5
"""The longest pause of a process that waits for another one. The first is a fiftieth: most data is encoded at once."""


@dataclass(frozen=True)
class Source:
    """Rows to encode."""

    name: str
    columns: tuple[tuple[str, str], ...] = ()
    max_rows: int | None = None

    def rows(self) -> Iterator[Numbered]:
        """The rows with their numbers, not parsed."""
        return enumerate(itertools.islice(unparsed_rows(self.name), self.max_rows))


def content_of(source: Source, hashes: Path | None = None) -> list[str]:
    """sha256 of each file of a source.

    Args:
        source: the rows.
        hashes: a folder where the hashes of files are kept, by size, time and inode.
    """
    files = source_files(source.name)
    return [_hash_of_file(path, hashes) for path in files] if files else [_hash_of_rows(source)]


def cache_key(
    source: Source, encoding: Encoding, hashes: Path | None = None, content: Sequence[str] | None = None
) -> str:
    """A hash of everything that the columns depend on.

    Args:
        source: its files count by their content.
        encoding: tokenizer, template, every option.
        hashes: a folder where the hashes of files are kept.
        content: what `content_of` gives, where it is known.
    """
    masker = encoding.masker
    template_date = masker.options.template_date
    if template_date is None and "strftime_now" in masker.parts.template:
        template_date = time.strftime("%Y-%m-%d")
    parts = {
        "version": [ENCODER_VERSION, tokenizers.__version__],
        "content": list(content) if content is not None else content_of(source, hashes),
        "columns": sorted(source.columns),
        "max_rows": source.max_rows,
        "tokenizer": asdict(masker.parts),
        "stop_tokens": masker.stop_tokens,
        "options": {**asdict(masker.options), "template_date": template_date},
        "max_length": encoding.max_length,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _hash_of_file(path: Path, hashes: Path | None) -> str:
    status = path.stat()
    identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
    known = hashes / hashlib.sha256(os.fsencode(identity)).hexdigest()[:32] if hashes is not None else None
    with contextlib.suppress(OSError):
        if known is not None:
            return known.read_text(encoding="ascii")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    with contextlib.suppress(OSError):  # a cache that can't be written costs only time
        if known is not None:
            known.parent.mkdir(parents=True, exist_ok=True)
            temporary = known.with_suffix(f".{os.getpid()}")
            temporary.write_text(found, encoding="ascii")
            temporary.replace(known)
    return found


def _hash_of_rows(source: Source) -> str:
    """For what has no files of its own, such as a name on the hub."""
    digest = hashlib.sha256()
    for row in itertools.islice(read_rows(source.name), source.max_rows):
        digest.update(repr(row).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


class EncodingCache:
    """Folders of encoded conversations."""

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda _: None) -> None:
        """
        Args:
            folder: on a file system that the nodes share, or each node's own.
            say: for what takes long.
        """
        self.folder = folder
        self._say = say
        self._contents: dict[Source, list[str]] = {}

    def content(self, source: Source) -> list[str]:
        """sha256 of each file of a source, as they were when it was first asked for."""
        if source not in self._contents:
            self._contents[source] = content_of(source, self.folder / "hashes")
        return self._contents[source]

    def prepared(self, source: Source, encoding: Encoding, num_processes: int, *, makes: bool = True) -> Encoded:
        """The documents of a source; made if they are not there.

        Args:
            source: the rows.
            encoding: how they are encoded.
            num_processes: workers.
            makes: take part in the making, or wait until it is done.

        Raises:
            DataError: the source cannot be read.
            StorageError: the folder cannot be written.
        """
        final = self.folder / cache_key(source, encoding, content=self.content(source))
        if not (final / MANIFEST).is_file():
            if makes:
                _Making(final, source, encoding, num_processes, self._say).run()
            else:
                self._wait(final, source)
        found = Encoded.open(final)
        return replace(found, bad=_with_names(found.bad, source))

    def _wait(self, final: Path, source: Source) -> None:
        started = said = time.monotonic()
        pauses = _pauses()
        while not (final / MANIFEST).is_file():
            time.sleep(next(pauses))
            if time.monotonic() - said > 30:
                said = time.monotonic()
                self._say(f"waiting since {said - started:.0f} s for {source.name} to be encoded in {final}")


def _pauses() -> Iterator[float]:
    """Seconds, doubled from one to the next up to POLL_S."""
    pause = POLL_S / 50
    while True:
        yield pause
        pause = min(2 * pause, POLL_S)


class _Making:
    """The making of one folder, in blocks beside it."""

    def __init__(
        self, final: Path, source: Source, encoding: Encoding, num_processes: int, say: Callable[[str], None]
    ) -> None:
        self._final = final
        self._work = final.with_name(f"{final.name}.work")
        self._source = source
        self._encoding = encoding
        self._num_processes = num_processes
        self._say = say
        # Shown after two seconds: most data is encoded by then.
        self._progress = tqdm(desc=f"encoding {source.name}", unit=" rows", delay=2.0, leave=False)

    def run(self) -> None:
        """Until the folder is there."""
        with storage_errors(self._work, "dataset_cache_dir"):
            self._work.mkdir(parents=True, exist_ok=True)
        said = time.monotonic()
        pauses = _pauses()
        with Workers(Task(self._encoding, self._source.columns), self._num_processes) as workers, self._progress:
            while not self._is_done():
                if self._encode_what_is_free(workers) and self._join():
                    return
                time.sleep(next(pauses))
                if time.monotonic() - said > 30:
                    said = time.monotonic()
                    self._say(f"{self._source.name}: waiting for {', '.join(self._holders()) or 'another process'}")

    def _is_done(self) -> bool:
        return (self._final / MANIFEST).is_file()

    def _holders(self) -> list[str]:
        with contextlib.suppress(OSError):
            return sorted({path.read_text(encoding="utf-8") for path in self._work.glob("*.claim")})
        return []

    def _encode_what_is_free(self, workers: Workers) -> bool:
        """Encodes the blocks that nobody has; returns whether all blocks are there now."""
        rows = self._source.rows()
        complete = True
        for number in itertools.count():
            block = self._work / f"block-{number:05d}"
            first = next(rows, None)
            if first is None:
                return complete
            own = itertools.chain([first], itertools.islice(rows, ROWS_PER_BLOCK - 1))
            if (block / MANIFEST).is_file():
                _skip(own)
                continue
            with claimed(block.with_suffix(".claim")) as is_ours:
                if is_ours and not (block / MANIFEST).is_file():
                    self._encode_block(block, own, workers)
                else:
                    _skip(own)
                    complete = complete and (block / MANIFEST).is_file()
        return complete

    def _encode_block(self, block: Path, rows: Iterator[Numbered], workers: Workers) -> None:
        parts: list[Encoded] = []
        for part in workers.encode(rows):
            parts.append(replace(part, bad=_without_names(part.bad, self._source)))
            self._progress.update(part.counts["rows"])
        self._write(block, (part.columns for part in parts), (part.info() for part in parts))

    def _write(self, path: Path, parts: Iterable[TokenColumns], infos: Iterable[Mapping[str, Any]]) -> None:
        with new_folder(path) as folder:
            write_columns(folder, parts, self._encoding.masker.vocabulary_size, _sum(infos))

    def _join(self) -> bool:
        """Makes the folder of the blocks, unless somebody else does; returns whether it is there."""
        with claimed(self._work / "join.claim") as is_ours:
            if not is_ours or self._is_done():
                return self._is_done()
            blocks = sorted(path for path in self._work.glob("block-*") if (path / MANIFEST).is_file())
            self._write(self._final, map(TokenColumns.open, blocks), map(read_manifest, blocks))
        shutil.rmtree(self._work, ignore_errors=True)
        return True


def _skip(rows: Iterator[Numbered]) -> None:
    for _ in rows:
        pass


def _names_of(source: Source) -> list[str]:
    """What the places of its rows begin with."""
    return [str(path) for path in source_files(source.name)] or [source.name]


def _without_names(rows: Sequence[BadRow], source: Source) -> list[BadRow]:
    """With the number of a file for its name: a folder is found by content, which may lie elsewhere by then."""
    if not rows:
        return []  # the usual case, in which no folder need be listed
    numbers = {name: str(number) for number, name in enumerate(_names_of(source))}
    return [_renamed(row, numbers) for row in rows]


def _with_names(rows: Sequence[BadRow], source: Source) -> list[BadRow]:
    """What `_without_names` made, with the names that the files have now."""
    if not rows:
        return []
    names = {str(number): name for number, name in enumerate(_names_of(source))}
    return [_renamed(row, names) for row in rows]


def _renamed(row: BadRow, names: Mapping[str, str]) -> BadRow:
    name = next((name for name in names if row.source.startswith((f"{name}:", f"{name}["))), None)
    # A folder may have got another file since.
    return row if name is None else replace(row, source=names[name] + row.source.removeprefix(name))


def _sum(infos: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of several parts together."""
    counts, notes, stops = Counter[str](), Counter[str](), set[int]()
    bad: list[Any] = []
    for info in infos:
        counts.update(info["counts"])
        notes.update(info["notes"])
        stops.update(info["stop_token_ids"])
        bad += info["bad"]
    return {"counts": dict(counts), "notes": dict(notes), "bad": bad, "stop_token_ids": sorted(stops)}


def usable_cache_folder(wanted: str | None, fallback: Path, environment: Mapping[str, str]) -> Path:
    """The folder for encoded conversations: that of the settings, else the user's cache, else `fallback`.

    Raises:
        StorageError: the folder of the settings cannot be written.
    """
    folder = Path(wanted) if wanted else user_cache_folder(environment)
    if folder is None:
        return fallback
    try:
        with storage_errors(folder, "dataset_cache_dir"):
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".{os.getpid()}"
            probe.touch()
            probe.unlink()
    except StorageError:
        if wanted:
            raise
        return fallback
    return folder
