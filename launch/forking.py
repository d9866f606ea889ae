"""Starting a rank's script as a fork of a process that has imported its libraries already (`launch.fork_server`).

A node's ranks would else import the same libraries once each: seconds of processor and thousands of files a rank.
Whoever asks gets a child like one that was started anew, with its own arguments, environment and output, or the reason
why there is none, and starts it anew. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launch.processes import before_exec

VARIABLE = "CLEANSFT_FORK_SERVER"
"""Where a node's fork server listens."""
SERVER = Path(__file__).resolve().parent / "fork_server.py"
PATIENCE_S = 180.0
"""How long to wait for the imports; a script started anew then tells where it hangs."""
MAX_MESSAGE_BYTES = 131_072
_POLL_S = 0.1


def imports_file(script: str) -> Path | None:
    """The file that imports what a script imports: `train_imports.py` beside `train.py`; None if there is none."""
    path = Path(script)
    path = path.with_name(f"{path.stem}_imports.py")
    return path if path.is_file() else None


def start_server(python: str, script: str, environment: dict[str, str]) -> subprocess.Popen[bytes] | None:
    """Starts a fork server for a script, and names it in `environment`; None where the script has no file of imports.

    It ends with this process. Its output is this process's.
    """
    path = imports_file(script)
    if path is None:
        return None
    name = f"cleansft-{secrets.token_hex(16)}"
    own = dict(environment)
    # Neither what has threads nor what has started CUDA may fork: numpy, which trains nothing, gets no pool, and torch
    # looks for GPUs by NVML (torch.cuda.is_available).
    own |= {"OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(f"\0{name}")  # in no folder, so that nothing is left over; ends are told apart by their user
        listener.listen(64)
        server = subprocess.Popen(
            [python, "-u", str(SERVER), str(listener.fileno()), str(path)],
            stdin=subprocess.DEVNULL,
            env=own,
            pass_fds=(listener.fileno(),),
            preexec_fn=before_exec(signal.SIGKILL),  # noqa: PLW1509 - one thread only
        )
    environment[VARIABLE] = name
    return server


class ForkedScript:
    """A fork that runs a script, used as a `subprocess.Popen` is."""

    def __init__(self, connection: socket.socket, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._connection = connection
        self._pidfd = pidfd

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, or minus the signal that ended it.

        Raises:
            subprocess.TimeoutExpired: it goes on.
        """
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                answer = _receive(self._connection)
            except TimeoutError as error:
                raise subprocess.TimeoutExpired("the script", timeout or 0.0) from error
            # Without a server there is no script any more: the kernel kills it with its parent.
            self.returncode = -signal.SIGKILL if answer is None else int(answer["code"])
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self.send_signal(signal.SIGKILL)


def start_forked(
    argv: list[str], environment: Mapping[str, str], output: int, server: str, gives_up: Callable[[], bool]
) -> ForkedScript | str:
    """A fork that runs the script, or why there is none.

    Args:
        argv: Python, its options, the script and its arguments; the server has the same Python.
        environment: the script's.
        output: descriptor of its stdout and stderr.
        server: the value of `VARIABLE`.
        gives_up: asked ten times a second, while the server still imports, whether to wait no longer.
    """
    words = argv[argv.index("-u") + 1 :]
    request = json.dumps({"argv": words, "env": dict(environment), "cwd": os.getcwd()}).encode()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(f"\0{server}")
        if user_of(connection) != os.getuid():
            return "the fork server is another user's"
        if len(request) > MAX_MESSAGE_BYTES:
            return "its arguments and environment are too long for a message"
        socket.send_fds(connection, [request], [output])
        connection.settimeout(_POLL_S)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                message, descriptors, _, _ = socket.recv_fds(connection, MAX_MESSAGE_BYTES, 1)
                break
            except TimeoutError:
                if gives_up() or time.monotonic() > deadline:
                    connection.close()
                    return "the imports took too long"
    except OSError as error:
        connection.close()
        return f"the fork server is gone: {error}"
    answer: dict[str, Any] = json.loads(message) if message else {"refused": "the fork server has ended"}
    if "refused" in answer:
        connection.close()
        return str(answer["refused"])
    return ForkedScript(connection, int(answer["pid"]), descriptors[0])


def user_of(connection: socket.socket) -> int:
    """The user at the other end (unix(7), SO_PEERCRED)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


def _receive(connection: socket.socket) -> dict[str, Any] | None:
    try:
        message = connection.recv(MAX_MESSAGE_BYTES)
    except ConnectionError:
        return None
    return dict(json.loads(message)) if message else None
