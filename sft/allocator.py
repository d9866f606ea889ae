"""glibc's malloc on training steps: memory that a step has freed stays with the process, for the next step."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEEP = 2**31 - 1
"""Bytes; the largest value that mallopt takes. -1 would mean the same for trimming only."""
_USERS_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory(environ: Mapping[str, str]) -> bool:
    """Tells malloc not to give blocks of up to 2 GiB back to the system; whether it took that.

    By default glibc maps every block above 32 MB anew, so that each step pays for its pages again: the kernel clears
    them and the processor faults on each. The figures are in docs/decisions/2026-11-21-allocator.md. What somebody has
    chosen in the environment (mallopt(3), GLIBC_TUNABLES) stays, and other C libraries are left alone.
    """
    if any(name in environ for name in _USERS_OWN) or "glibc.malloc." in environ.get("GLIBC_TUNABLES", ""):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version") or not hasattr(libc, "mallopt"):
        return False
    return all(libc.mallopt(option, _KEEP) == 1 for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
