"""What happens to files on disks: bits that flip, ends that are cut or lost to zeros, files that are gone."""

from __future__ import annotations

import random
from pathlib import Path

DAMAGES = ("bit flip", "truncation", "zeroed tail", "missing file", "appended bytes")


def damage(kind: str, folder: Path, numbers: random.Random) -> Path:
    """Damages a random file of a folder, so that its content is another one; returns it."""
    file = numbers.choice(sorted(folder.iterdir()))
    content = bytearray(file.read_bytes())
    place = numbers.randrange(len(content))
    if kind == "bit flip":
        content[place] ^= 1 << numbers.randrange(8)
    elif kind == "truncation":
        del content[place:]
    elif kind == "appended bytes":
        content += numbers.randbytes(1 + place)
    elif kind == "zeroed tail":
        last = max(index for index, byte in enumerate(content) if byte)  # zeros that were there are no damage
        place = min(place, last)
        content[place:] = bytes(len(content) - place)
    if kind == "missing file":
        file.unlink()
    else:
        file.write_bytes(content)
    return file
