"""A file of variables that hold secrets, and the `.env` that is only found: who may read it, and what is taken of it.

`launch` reads it for the scripts that it starts, `sft` for a command that nobody launched.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

FOUND_FILE = ".env"
FOUND_NAMES = ("WANDB_API_KEY", "HF_TOKEN")
"""What is taken of a `.env` that is only found: such files are made for other programs too."""
_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")


class EnvFileError(ValueError):
    """The file is not as one with secrets must be. The message shows nothing of what it holds."""


def read_env_file(path: Path) -> dict[str, str]:
    """The variables of `NAME=VALUE` lines, of which some may be quoted; blank lines and those with # are passed over.

    Raises:
        EnvFileError: the file is not there, others than its owner may read or write it, or a line is none of that.
    """
    try:
        # Opened first and judged after: what is judged is what is read.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise EnvFileError(
            f"env_file is {str(path)!r}; it must be a file that can be read: {error.strerror}."
        ) from error
    with open(descriptor, encoding="utf-8") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise EnvFileError(f"env_file is {str(path)!r}; it must be a file.")
        if facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
            mode = f"{facts.st_mode & 0o777:04o}"
            rule = "it must be yours and have mode 0600, as it holds secrets"
            raise EnvFileError(
                f"env_file is {str(path)!r} of user {facts.st_uid}, mode {mode}; {rule}. `chmod 600` it."
            )
        try:
            return _parse(file.read(), path)
        except UnicodeDecodeError as error:
            raise EnvFileError(f"env_file is {str(path)!r}; it must be text in UTF-8.") from error


def found_env_file(folder: Path) -> tuple[Path | None, str]:
    """(the `.env` of a folder, if it has one of FOUND_NAMES and only its owner reads it; why it is not taken, where it
    could have been meant)."""
    values, note = _found(folder)
    return (folder / FOUND_FILE if values else None), note


def found_secrets(folder: Path, environ: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """(those of FOUND_NAMES that the `.env` of a folder has and nobody has set; why it is not taken, where it could
    have been meant)."""
    if all(name in environ for name in FOUND_NAMES):
        return {}, ""
    values, note = _found(folder)
    return {name: value for name, value in values.items() if name not in environ}, note


def _found(folder: Path) -> tuple[dict[str, str], str]:
    """(those of FOUND_NAMES that the `.env` of a folder has, why it is not taken)."""
    path = folder / FOUND_FILE
    if not os.path.isfile(path):  # also where the folder may not be looked into
        return {}, ""
    try:
        values = read_env_file(path)
    except EnvFileError as error:
        return {}, f"{FOUND_FILE} is not read: {error}"
    return {name: values[name] for name in FOUND_NAMES if name in values}, ""


def _parse(text: str, path: Path) -> dict[str, str]:
    values = {}
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = _LINE.fullmatch(stripped)
        if match is None:
            raise EnvFileError(f"{path}:{number} must be NAME=VALUE; it is not shown here, as it may be a secret.")
        name, value = match.groups()
        is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        values[name] = value[1:-1] if is_quoted else value
    return values
