"""The manifest of a checkpoint: what it is, and size and sha256 of each of its files.

No format of tensors tells a flipped bit or a tail of zeros from data, so that each file is compared with what was
written. The manifest is compared with a hash of itself, byte by byte.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sft.errors import CheckpointError
from sft.storage import Written

MANIFEST = "MANIFEST.json"
FORMAT = 1
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Manifest:
    """What `MANIFEST.json` holds."""

    step: int
    epoch: int
    """Epochs that were over."""
    position: int
    """Rows of the epoch's order that were trained: the same for any number of ranks."""
    world_size: int
    token: int
    """The fencing token of the process that wrote it."""
    attempt: str
    """Who that was."""
    state: Mapping[str, Any]
    """Where the run was: the fields of `checkpoint.RunState`."""
    identity: Mapping[str, Any]
    """Settings and hashes that must be the same for the run to go on."""
    files: Mapping[str, Written]

    def text(self) -> str:
        """As it is written; the same manifest always gives the same bytes."""
        body = {"format": FORMAT, **dataclasses.asdict(self)}
        return _rendered({**body, "sha256": hashlib.sha256(_rendered(body).encode()).hexdigest()})

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """
        Raises:
            CheckpointError: the file is not there, damaged, or of another version.
        """
        try:
            text = path.read_text(encoding="utf-8")
            body = json.loads(text)
            expected = body.pop("sha256")
            is_whole = _rendered({**body, "sha256": expected}) == text
            if not is_whole or hashlib.sha256(_rendered(body).encode()).hexdigest() != expected:
                raise CheckpointError(f"{path} is damaged: it is not what its own hash is of")
            if (version := body.pop("format")) != FORMAT:
                raise CheckpointError(f"{path} has format {version}; this version reads {FORMAT}")
            body["files"] = {name: Written(**written) for name, written in body["files"].items()}
            return cls(**body)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is damaged: it is no manifest") from error


def _rendered(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


class Finding(enum.IntEnum):
    """What a file is, compared with its manifest: a number, which ranks can add up."""

    RIGHT = 0
    MISSING = 1
    OTHER_SIZE = 2
    OTHER_CONTENT = 3
    UNREADABLE = 4

    def told(self, name: str) -> str:
        """In words."""
        words = {
            Finding.RIGHT: "is as it was written",
            Finding.MISSING: "is missing",
            Finding.OTHER_SIZE: "has another size than its manifest says",
            Finding.OTHER_CONTENT: "has another sha256 than its manifest says",
            Finding.UNREADABLE: "cannot be read",
        }
        return f"{name} {words[self]}"


def compare(path: Path, expected: Written, on_chunk: Callable[[], object] = lambda: None) -> Finding:
    """Reads a file and compares it with what was written; calls `on_chunk` whenever some of it is read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            if path.stat().st_size != expected.size:
                return Finding.OTHER_SIZE
            buffer = memoryview(bytearray(_CHUNK_BYTES))
            while number := file.readinto(buffer):
                digest.update(buffer[:number])
                on_chunk()
    except FileNotFoundError:
        return Finding.MISSING
    except OSError:
        return Finding.UNREADABLE
    return Finding.RIGHT if digest.hexdigest() == expected.sha256 else Finding.OTHER_CONTENT
