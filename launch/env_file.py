"""A file of variables that hold secrets, read by the process that hands them to the script and by nobody else."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.errors import LaunchError

FOUND_FILE = ".env"
FOUND_NAMES = ("WANDB_API_KEY", "HF_TOKEN")
"""What is taken of a `.env` that is only found where a run is submitted: such files are made for other programs too."""
_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)")


def read_env_file(path: Path) -> dict[str, str]:
    """The variables of `NAME=VALUE` lines, of which some may be quoted; blank lines and those with # are passed over.

    Raises:
        LaunchError: the file is not there, others than its owner may read or write it, or a line is none of that.
    """
    try:
        # Opened first and judged after: what is judged is what is read.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise LaunchError(
            f"env_file is {str(path)!r}; it must be a file that can be read: {error.strerror}."
        ) from error
    with open(descriptor, encoding="utf-8") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise LaunchError(f"env_file is {str(path)!r}; it must be a file.")
        if facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
            mode = f"{facts.st_mode & 0o777:04o}"
            rule = "it must be yours and have mode 0600, as it holds secrets"
            raise LaunchError(f"env_file is {str(path)!r} of user {facts.st_uid}, mode {mode}; {rule}. `chmod 600` it.")
        return _parse(file.read(), path)


def found_env_file(folder: Path) -> tuple[Path | None, str]:
    """(the `.env` of a folder, if it has one of FOUND_NAMES and only its owner reads it; why it is not taken, where it
    could have been meant)."""
    path = folder / FOUND_FILE
    if not path.is_file():
        return None, ""
    try:
        names = read_env_file(path).keys()
    except LaunchError as error:
        return None, f"{FOUND_FILE} is not read: {error}"
    return (path if names & set(FOUND_NAMES) else None), ""


def secrets_of(job: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that a job's script is to have beside `environ`: all of `env_file`, which it names, and those of
    FOUND_NAMES of the `.env` that was found which nobody has set.

    Raises:
        LaunchError: `env_file` is not as it must be.
    """
    found: Mapping[str, str] = {}
    if job.get("found_env_file"):
        with contextlib.suppress(LaunchError):  # gone or changed since: nobody has asked for it
            found = read_env_file(Path(job["found_env_file"]))
    own = {name: found[name] for name in FOUND_NAMES if name in found and name not in environ}
    return own | (read_env_file(Path(job["env_file"])) if job.get("env_file") else {})


def _parse(text: str, path: Path) -> dict[str, str]:
    values = {}
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = _LINE.fullmatch(stripped)
        if match is None:
            raise LaunchError(f"{path}:{number} must be NAME=VALUE; it is not shown here, as it may be a secret.")
        name, value = match.groups()
        is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        values[name] = value[1:-1] if is_quoted else value
    return values
