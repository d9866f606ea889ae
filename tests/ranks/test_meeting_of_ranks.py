"""Ranks meet at one address alone, and as one run alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from faults.recording import Shows

from sft.errors import MeetingError

pytestmark = pytest.mark.ranks
ROOT = Path(__file__).resolve().parents[2]

RANK = """
import os, sys
from sft.errors import MeetingError
from sft.world import world_from_env

def listening():
    rows = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/net/{name}").readlines()[1:]]
    port = f"{int(os.environ['MASTER_PORT']):04X}"
    return sorted(row[1].split(":")[0] for row in rows if row[3] == "0A" and row[1].endswith(f":{port}"))

try:
    with world_from_env(30) as world:
        print(world.sum(1.0)[0], listening(), flush=True)
        world.barrier()
except MeetingError as error:
    print(f"error: {error}", flush=True)
    os._exit(error.exit_code)
"""
LOOPBACK = "0100007F"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def meet(**nonces: str) -> list[tuple[int, str]]:
    """(exit code, what it said) of two ranks without torchrun, as DeepSpeed's launcher starts them."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), **own},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
        for own in ([{"CLEANSFT_NONCE": nonces[f"rank_{rank}"]}] if nonces else [{}])
    ]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    return [(rank.returncode, text) for rank, text in zip(ranks, said, strict=True)]


def test_the_store_listens_on_its_address_alone() -> None:
    for code, said in meet(rank_0="ab" * 16, rank_1="ab" * 16):
        assert (code, said) == (0, f"2.0 ['{LOOPBACK}']\n")


def test_a_rank_of_another_run_is_refused(shows: Shows) -> None:
    assert MeetingError.exit_code == 17
    for code, said in meet(rank_0="ab" * 16, rank_1="cd" * 16):
        assert code == 17
        assert "nonce of rank 1 is another than rank 0's" in said
        shows(44, code=code, says=said)
