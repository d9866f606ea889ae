"""`python -m launch COMMAND`: each command is a module of launch/verbs."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from launch import command_line, options
from launch.errors import INTERRUPTED, STORAGE, LaunchError

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
    except LaunchError as error:
        return _refused(f"{error.prefix}{error}", error.exit_code, is_json=is_json, **getattr(error, "facts", {}))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        if error.errno not in _OF_DISKS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        return _refused(
            f"error: {where}{error.strerror}. Make room there, or choose another place.", STORAGE, is_json=is_json
        )
    except ValueError as error:
        code = getattr(error, "exit_code", None)  # SettingsError, which is imported only where settings are read
        if code is None:
            raise
        return _refused(f"error: {error}", int(code), is_json=is_json)


def _refused(message: str, code: int, *, is_json: bool, **facts: Any) -> int:
    """Says why, on stderr, and with `--json` on stdout too."""
    print(message, file=sys.stderr)
    if is_json:
        import json

        error = message.removeprefix("error: ")
        print(json.dumps({"version": options.JSON_VERSION, "error": error, "code": code, **facts}))
    return code


if __name__ == "__main__":
    sys.exit(main())
