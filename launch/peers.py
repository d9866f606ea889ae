"""Hosts that do not answer a process: on its TCP connections what was sent is not acknowledged (proc(5))."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

MIN_RETRANSMISSIONS = 3
"""By then something was sent again for more than a second. A host whose process is stopped still acknowledges."""
_ESTABLISHED, _RETRANSMITS = "01", "01"


def silent_hosts(pid: int) -> dict[str, int]:
    """Address → how often the kernel has sent the same again, of hosts that do not acknowledge; empty where it can't be
    told."""
    inodes = _sockets(pid)
    found: dict[str, int] = {}
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/net/{name}").read_text(encoding="ascii", errors="replace")
            for address, number, inode in unacknowledged(text):
                if inode in inodes and not address.startswith("127."):
                    found[address] = max(number, found.get(address, 0))
    return found


def unacknowledged(table: str) -> Iterator[tuple[str, int, str]]:
    """(address, retransmissions, inode) of each connection in /proc/net/tcp or tcp6 that is sent again and again."""
    for line in table.splitlines()[1:]:
        fields = line.split()
        number = int(fields[6], 16)
        is_waiting = fields[3] == _ESTABLISHED and fields[5].startswith(f"{_RETRANSMITS}:")
        if is_waiting and number >= MIN_RETRANSMISSIONS:
            yield _address(fields[2].rpartition(":")[0]), number, fields[9]


def _address(text: str) -> str:
    """An address as the kernel writes it: 32-bit words in the machine's order. IPv4 inside IPv6 as IPv4."""
    words = [int(text[start : start + 8], 16).to_bytes(4, "little") for start in range(0, len(text), 8)]
    packed = b"".join(words)
    if len(packed) == 4 or packed[:12] == bytes(10) + b"\xff\xff":
        return socket.inet_ntoa(packed[-4:])
    return socket.inet_ntop(socket.AF_INET6, packed)


def _sockets(pid: int) -> set[str]:
    """The inodes of a process's sockets."""
    found = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if match := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{name}")):
                    found.add(match[1])
    return found
