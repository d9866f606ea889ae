"""How ranks meet: through a store that listens on one address alone, where it is ours to make, and as one run alone."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from sft.errors import MeetingError

NONCE = "CLEANSFT_NONCE"
"""Environment variable with a number that the launcher gives to the ranks of one attempt alone: hexadecimal digits."""
_NONCE_DIGITS = 15
_BACKLOG = 4096


def bound_store(environ: Mapping[str, str], timeout: timedelta) -> Any:
    """The store at MASTER_ADDR and MASTER_PORT. torch's own listens on every address of the node, whatever it is given;
    this one on MASTER_ADDR alone, where that is an address, and one of rank 0's machine.

    None where torchrun's agents have made one already, which listens everywhere (docs/security.md).
    """
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" or "MASTER_ADDR" not in environ:
        return None
    rank, size = int(environ["RANK"]), int(environ["WORLD_SIZE"])
    address, port = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
    listener = _listener(address, port) if rank == 0 else None
    return dist.TCPStore(  # type: ignore[attr-defined]
        address,
        port,
        size,
        is_master=rank == 0,
        timeout=timeout,
        master_listen_fd=listener.detach() if listener is not None else None,
    )


def _listener(address: str, port: int) -> socket.socket | None:
    """A socket that listens there; None where this machine does not have the address, as behind NAT, or it is a name:
    many machines know their own as 127.0.1.1, at which nobody else reaches them."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with contextlib.suppress(OSError):
        socket.inet_aton(address)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
        return listener
    listener.close()
    return None


def require_one_run(environ: Mapping[str, str], device: torch.device) -> None:
    """Compares the numbers that the launcher has given to the ranks (a collective); nothing without one.

    Raises:
        MeetingError: not all are the same: ranks of another run have come to this one's address.
    """
    if NONCE not in environ:
        return
    numbers = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=device)
    numbers[dist.get_rank()] = int(environ[NONCE][:_NONCE_DIGITS], 16)
    dist.all_reduce(numbers)
    found = numbers.tolist()
    strangers = [rank for rank, number in enumerate(found) if number != found[0]]
    if strangers:
        ranks = ", ".join(map(str, strangers))
        raise MeetingError(
            f"the run's nonce of rank {ranks} is another than rank 0's; all ranks must be of one attempt of one run. "
            "Another job uses the same address and port: start this one again."
        )
