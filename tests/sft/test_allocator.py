"""Freed memory stays with the process: a large block costs its page faults once, not in every step."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from sft.allocator import keep_freed_memory
from sft.config import ROOT

FAULTS = """
import ctypes, os, resource, sys
from sft.allocator import keep_freed_memory
took = keep_freed_memory(os.environ)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
for _ in range(3):  # the first rounds may grow the heap
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(100_000_000)
    ctypes.memset(block, 1, 100_000_000)
    libc.free(block)
print(took, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> tuple[bool, int]:
    """(whether malloc took the settings, page faults of the last of three equal rounds)."""
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    took, number = done.stdout.split()
    return took == "True", int(number)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_large_block_costs_its_page_faults_once() -> None:
    took, kept = faults()
    took_not, by_default = faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert (took, took_not) == (True, False)
    # 24,414 pages of 4 KiB; huge pages would be fewer, and so is what is asked for here.
    assert kept < 100
    assert by_default > 10 * max(kept, 4)


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_MMAP_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1:glibc.rtld.nns=3"}],
)
def test_the_users_own_choice_stays(environment: dict[str, str]) -> None:
    assert not keep_freed_memory(environment)
