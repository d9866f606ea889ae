"""How a process of ours ends when all is said and written."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """Ends this process as `sys.exit(code)` does, but leaves the threads of torch to the kernel.

    Those of a process group can abort while the interpreter is taken down ("terminate called without an active
    exception", seen once in some thousand ranks), which would turn a run that is done into one that has failed. Under a
    profiler or a tracer, which write at the end, and where output cannot be written, the usual end is left as it is.
    """
    if "torch" not in sys.modules or sys.getprofile() is not None or sys.gettrace() is not None:
        sys.exit(code)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.exit(code)
    atexit._run_exitfuncs()  # of libraries: trackers, logging, worker pools
    os._exit(code)
