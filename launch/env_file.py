"""The variables that hold secrets, read by the process that hands them to the script and by nobody else."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.errors import LaunchError


def read_env_file(path: Path) -> dict[str, str]:
    """The variables of a file of secrets (`strict_settings.env_file`).

    Raises:
        LaunchError: the file is not as it must be.
    """
    from strict_settings import env_file  # here: most commands and ranks start without it

    try:
        return env_file.read_env_file(path)
    except env_file.EnvFileError as error:
        raise LaunchError(str(error)) from error


def secrets_of(job: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that a job's script is to have beside `environ`: all of `env_file`, which it names, and those of
    FOUND_NAMES (`strict_settings.env_file`) of the `.env` that was found which nobody has set.

    Raises:
        LaunchError: `env_file` is not as it must be.
    """
    own: dict[str, str] = {}
    if job.get("found_env_file"):
        from strict_settings.env_file import FOUND_NAMES

        with contextlib.suppress(LaunchError):  # gone or changed since: nobody has asked for it
            found = read_env_file(Path(job["found_env_file"]))
            own = {name: found[name] for name in FOUND_NAMES if name in found and name not in environ}
    return own | (read_env_file(Path(job["env_file"])) if job.get("env_file") else {})
