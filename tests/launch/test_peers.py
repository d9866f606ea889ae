"""Hosts that do not answer, in the kernel's own words."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from launch.peers import silent_hosts, unacknowledged

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"


def row(remote: str, state: str, timer: str, number: str, inode: str) -> str:
    queues = f"00000514:00000000 {timer}:00000A2B {number}"
    return f"   0: 0B004D0A:A3F2 {remote}:1F90 {state} {queues}     0        0 {inode} 2 0000"


def test_what_is_sent_again_and_again_is_found() -> None:
    table = "\n".join(
        [
            HEAD,
            row("0C004D0A", "01", "01", "00000006", "77"),
            row("0C004D0A", "01", "01", "00000002", "78"),  # lost once or twice: it may come
            row("0C004D0A", "01", "04", "00000009", "79"),  # a window that is closed: the host answers
            row("0C004D0A", "02", "01", "00000005", "80"),  # not connected yet
        ]
    )
    assert list(unacknowledged(table)) == [("10.77.0.12", 6, "77")]


def test_addresses_of_both_kinds() -> None:
    mapped = "0000000000000000FFFF00000C004D0A"
    own = "000080FE00000000FF005450B6AD1DFE"
    table = "\n".join([HEAD, *(row(remote, "01", "01", "0000000A", "1") for remote in (mapped, own))])
    assert [address for address, _, _ in unacknowledged(table)] == ["10.77.0.12", "fe80::5054:ff:fe1d:adb6"]


def test_a_connection_that_is_answered_is_not_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.send(b"x")
        assert silent_hosts(os.getpid()) == {}
    assert silent_hosts(Path("/proc").stat().st_ino + 2**22) == {}
