"""The `.env` of the working directory, for commands that nobody launched: `launch` hands it to what it starts."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

from strict_settings.env_file import found_secrets


def take_secrets() -> None:
    """Sets WANDB_API_KEY and HF_TOKEN, where nobody has, from a `.env` that only its owner reads
    (`strict_settings.env_file`). One that is not taken is told of, once."""
    found, note = found_secrets(Path(), os.environ)
    os.environ.update(found)
    if note and os.environ.get("RANK", "0") == "0":
        _tell(note)


@functools.cache
def _tell(note: str) -> None:
    print(note, file=sys.stderr, flush=True)
