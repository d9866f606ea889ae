"""Files that are whole or not there: written under a temporary name, synced to the disk, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.errors import StorageError

if TYPE_CHECKING:
    from torch import Tensor

MAX_SHARD_BYTES = 5_000_000_000
SYNC_BYTES = 1 << 26
"""So much of a file at most waits in memory to be written."""


_RUST_ERROR = re.compile(r"\(os error (\d+)\)$")
"""How messages of libraries in Rust end where the system refused something: the exceptions of safetensors and
tokenizers are no OSError."""


@contextmanager
def storage_errors(path: Path, setting: str = "output_dir") -> Iterator[None]:
    """Turns the system's refusal to write into a StorageError that names the place, and what to change."""
    try:
        yield
    except Exception as found:
        error = _system_error(found)
        if error is None:
            raise
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        choose = "Free space there or choose" if is_full else "Choose"
        what, remedy = error.strerror or str(error), f"{choose} another {setting}."
        if isinstance(error, FileNotFoundError) and not path.parent.exists():
            gone = next(folder for folder in reversed(path.parents) if not folder.exists())
            what, remedy = f"{gone} is gone", "It must stay where it is while the run writes to it."
        raise StorageError(f"{path} cannot be written: {what}. {remedy}") from found


def _system_error(error: Exception) -> OSError | None:
    """The system's error that this one is, or tells of; None where it is another one."""
    if isinstance(error, OSError):
        return error
    match = _RUST_ERROR.search(str(error))
    return None if match is None else OSError(int(match[1]), os.strerror(int(match[1])))


def user_cache_folder(environment: Mapping[str, str]) -> Path | None:
    """Where this user's caches of ours are, which need not be there; None for one without a home."""
    home = Path(environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return home / "cleansft" if home.is_absolute() else None


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. Numbers that are not finite are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str, setting: str = "output_dir") -> None:
    """Writes a text file, atomically.

    Raises:
        StorageError: it cannot be written; `setting` says where to.
    """
    with storage_errors(path, setting):
        temporary = path.with_name(f".{path.name}.tmp")
        # File names and refused rows may hold half characters, which JSON can write and UTF-8 cannot.
        try:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
            publish(temporary, path)
        except OSError:
            with suppress(OSError):  # half of it would keep the disk full
                temporary.unlink()
            raise


@dataclass(frozen=True)
class Written:
    """What a file held when it was written."""

    size: int
    sha256: str


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> Written:
    """Writes a new file, hashing what it writes, and syncs it to the disk, SYNC_BYTES at a time: whoever counts the
    chunks sees how far the disk is, not the memory before it. Raises OSError as the system does."""
    digest = hashlib.sha256()
    size = synced = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if size - synced >= SYNC_BYTES:
                os.fdatasync(descriptor)
                synced = size
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return Written(size, digest.hexdigest())


def publish(temporary: Path, path: Path) -> None:
    """Makes a finished file or folder appear under its name, also after a power cut. An existing file is replaced."""
    for file in sorted(temporary.rglob("*")) if temporary.is_dir() else [temporary]:
        sync(file)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Puts a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the body ends well, and disappears when it does not."""
    temporary = path.with_name(f".{path.name}.tmp")
    with storage_errors(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            if path.exists():
                shutil.rmtree(path)
            publish(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def new_files(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files appear in `folder`, each of them whole, when the body ends well; it disappears."""
    temporary = folder / ".new.tmp"
    with storage_errors(folder):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            yield temporary
            for file in sorted(temporary.iterdir()):
                publish(file, folder / file.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@dataclass(frozen=True)
class TensorEntry:
    """A tensor that is to be written: its name, its size, and how to get it."""

    name: str
    num_bytes: int
    get: Callable[[], Tensor]
    """A collective under sharding engines: every rank calls it, in the same order."""


def write_tensors(
    entries: Sequence[TensorEntry],
    folder: Path,
    stem: str,
    *,
    is_main: bool,
    transform: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes `stem.safetensors`, or numbered shards and `stem.safetensors.index.json` above `max_shard_bytes`.

    Tensors are fetched one by one; the main rank holds one shard at a time, the others one tensor.

    Args:
        entries: the same on every rank.
        folder: where to; it must exist on the main rank.
        stem: `model`, for example.
        is_main: True on the rank that writes.
        transform: from the names and tensors of one shard to those that are written.
        max_shard_bytes: a layer is never split, so that a shard may be larger if a layer is.
    """
    from safetensors.torch import save_file  # here, so that those who write no tensors need no torch

    shards = _shards(entries, max_shard_bytes)
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, shard in enumerate(shards, 1):
        suffix = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        file_name = f"{stem}{suffix}.safetensors"
        tensors: dict[str, Tensor] = {}
        for entry in shard:
            tensor = entry.get()
            if is_main:
                tensors[entry.name] = tensor.cpu().contiguous()
        if not is_main:
            continue
        tensors = transform(tensors) if transform else tensors
        with new_files(folder) as temporary:
            save_file(tensors, temporary / file_name, metadata={"format": "pt"})
            (temporary / file_name).chmod(_mode_of_new_files(temporary))
        weight_map |= dict.fromkeys(tensors, file_name)
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
    if is_main and len(shards) > 1:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def _mode_of_new_files(folder: Path) -> int:
    """That which the umask leaves: safetensors makes its files for their owner alone. A umask can't be read but by
    setting it, which other threads would see."""
    probe = folder / "mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    return mode


def _shards(entries: Sequence[TensorEntry], max_shard_bytes: int) -> list[list[TensorEntry]]:
    """Entries in files, in order. The tensors of one layer stay together: checkpoint formats that fuse or split
    tensors do so within a layer."""
    shards: list[list[TensorEntry]] = [[]]
    size = 0
    for group in _layers(entries):
        group_bytes = sum(entry.num_bytes for entry in group)
        if shards[-1] and size + group_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].extend(group)
        size += group_bytes
    return shards


def _layers(entries: Sequence[TensorEntry]) -> list[list[TensorEntry]]:
    """Neighbouring entries whose names agree up to the first number: `model.layers.3`."""
    groups: list[list[TensorEntry]] = []
    last = None
    for entry in entries:
        parts = entry.name.split(".")
        numbers = [index for index, part in enumerate(parts) if part.isdigit()]
        layer = tuple(parts[: numbers[0] + 1]) if numbers else (entry.name,)
        if layer == last:
            groups[-1].append(entry)
        else:
            groups.append([entry])
        last = layer
    return groups
