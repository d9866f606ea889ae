"""The network as one node sees it: its address towards the others, the interface, a free port. IPv4."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from launch.errors import RendezvousError

_SIOCGIFADDR = 0x8915
_DISCARD_PORT = 9
_DEFAULT_EPHEMERAL = (32_768, 60_999)


def published_address(hosts: tuple[str, ...], reached_at: str | None = None) -> str:
    """The address of this node, the first of `hosts`, at which the others reach it; never a loopback address.

    Debian maps a host's own name to 127.0.1.1, and then `hostname --ip-address` would send every node to itself. A
    name that only ssh knows (an alias of its configuration, or of a router in front) leads nowhere, or not to this
    node: then it is the address at which ssh came in.

    Args:
        hosts: the names of the nodes, this one first.
        reached_at: of this node, where ssh came to it.
    """
    named = resolve(hosts[0])
    own = interface_addresses().values() if reached_at is not None else ()
    if reached_at in own and named not in own and not str(reached_at).startswith("127."):
        return str(reached_at)
    if named is not None and not named.startswith("127."):
        return named
    for peer in hosts[1:]:
        peer_address = resolve(peer)
        if peer_address is not None and (source := source_address(peer_address)):
            return source
    others = [address for address in interface_addresses().values() if not address.startswith("127.")]
    if not others:
        raise RendezvousError(f"node 0 ({hosts[0]}) has no address but loopback; it must have one that others reach.")
    return others[0]


def resolve(host: str) -> str | None:
    """The IPv4 address of a name, or None."""
    try:
        return socket.gethostbyname(host)
    except OSError:
        return None


def source_address(destination: str) -> str | None:
    """The address from which this node would send to `destination`; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((destination, _DISCARD_PORT))
        except OSError:
            return None
        address: str = probe.getsockname()[0]
    return None if address.startswith("127.") else address


def interface_addresses() -> dict[str, str]:
    """Interface name → its IPv4 address, of those that have one."""
    addresses = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = array.array("B", struct.pack("256s", name.encode()[:15]))
            try:
                fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
            except OSError:
                continue
            addresses[name] = socket.inet_ntoa(request.tobytes()[20:24])
    return addresses


def interface_towards(address: str) -> str | None:
    """The interface that carries this node's traffic to `address`, or None where it can't be told."""
    own = interface_addresses()
    source = "127.0.0.1" if address.startswith("127.") else source_address(address)
    for name, interface_address in own.items():
        if interface_address in (source, address):
            return name
    return None


def first_free_port(candidates: Iterable[int]) -> int:
    """The first port on which nobody listens, on any address of this node.

    Raises:
        RendezvousError: all are taken.
    """
    tried = []
    for port in candidates:
        if is_free(port):
            return port
        tried.append(port)
    raise RendezvousError(f"the ports {tried} of node 0 are all in use; one of them must be free.")


def is_free(port: int) -> bool:
    """Whether nobody listens on this port, on any address of this node."""
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        try:
            probe = socket.socket(family, socket.SOCK_STREAM)
        except OSError:
            continue  # no IPv6 on this machine
        with probe:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True


def ephemeral_ports() -> tuple[int, int]:
    """First and last port that the kernel gives to outgoing connections."""
    try:
        first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()
        return int(first), int(last)
    except (OSError, ValueError):
        return _DEFAULT_EPHEMERAL
