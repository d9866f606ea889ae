"""`python -m launch COMMAND`: each command is a module of launch/verbs."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from launch import command_line, options
from launch.errors import INTERRUPTED, REFUSED, STORAGE, LaunchError

_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command; its exit code."""
    os.umask(0o077)  # of all that is made here and in the job
    words = sys.argv[1:] if words is None else words
    own = words[: words.index("--")] if "--" in words else words
    is_json = "--json" in own
    try:
        arguments = command_line.parse(words)
        verb = import_module(f"launch.verbs.{arguments.command}")
        return int(verb.run(arguments))
    except command_line.UsageError as error:
        if is_json:
            _tell(error.message, REFUSED)
        raise
    except LaunchError as error:
        return _refused(f"{error.prefix}{error}", error.exit_code, is_json=is_json, **getattr(error, "facts", {}))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        if (told := _told(error)) is None:
            raise
        return _refused(f"error: {told[0]}", told[1], is_json=is_json)
    except ValueError as error:
        code = getattr(error, "exit_code", None)  # SettingsError, which is imported only where settings are read
        if code is None:
            raise
        return _refused(f"error: {error}", int(code), is_json=is_json)


def _told(error: OSError) -> tuple[str, int] | None:
    """(what to say of a disk's error, the exit code); None for one that nobody expected."""
    if isinstance(error, FileNotFoundError):
        try:
            os.getcwd()
        except FileNotFoundError:
            return "the working directory is gone; it must be there. `cd` into one.", REFUSED
    if error.errno not in _OF_DISKS:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}. Make room there, or choose another place.", STORAGE


def _refused(message: str, code: int, *, is_json: bool, **facts: Any) -> int:
    """Says why, on stderr, and with `--json` on stdout too."""
    print(message, file=sys.stderr)
    if is_json:
        _tell(message.removeprefix("error: "), code, **facts)
    return code


def _tell(error: str, code: int, **facts: Any) -> None:
    import json

    print(json.dumps({"version": options.JSON_VERSION, "error": error, "code": code, **facts}))


if __name__ == "__main__":
    sys.exit(main())
