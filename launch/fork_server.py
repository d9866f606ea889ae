"""Imports what a node's ranks need, once, and forks into each of them: `fork_server.py LISTENER IMPORTS_FILE`.

The agent starts it beside the launcher, whose own start it makes use of. The wrappers of the ranks (`launch.rank`) ask
it over a Unix socket. A fork is as good as a process that was started anew only where nothing but imports has happened:
one thread, no device opened, and an environment in which nothing differs that an import may have read. Else it says
why not, and the wrapper starts the script anew. Standard library only, apart from the file that it is told to run.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    # Started by its path: `launch` is found from here, and no module of it by a bare name.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.forking import MAX_MESSAGE_BYTES, VARIABLE, user_of
from launch.processes import die_with_parent

OWN_VARIABLES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE", "GROUP_RANK",
    "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING", "CUDA_VISIBLE_DEVICES", "CLEANSFT_CUDA_VISIBLE_DEVICES",
    "OPENBLAS_NUM_THREADS", "PYTORCH_NVML_BASED_CUDA_CHECK", VARIABLE, "PWD", "OLDPWD", "SHLVL", "_",
)  # fmt: skip
"""What torchrun and DeepSpeed's launcher set for a rank, a shell on the way, and we for the server: read when a process
group or a device is opened, never by an import. `TORCHELASTIC_*` too."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri")


def main() -> None:
    """Serves until it is killed; in a fork it runs the script and returns."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    imports = sys.argv[2]
    environment = dict(os.environ)
    for number in _SIGNALS:  # Slurm may send them to every process of a step; the agent ends us
        signal.signal(number, signal.SIG_IGN)
    sys.argv = [imports]
    started = time.monotonic()
    runpy.run_path(imports, run_name="__main__")
    unsafe = why_unsafe()
    if unsafe is None:
        print(f"imported once for the ranks of this node, in {time.monotonic() - started:.1f} s", flush=True)
    gc.disable()
    gc.freeze()  # as the documentation of gc.freeze advises before a fork: else a collection copies every page
    _run(_Server(listener, environment, unsafe).serve())


def why_unsafe() -> str | None:
    """Why this process must not fork into ranks; None if it may."""
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        return f"the imports have started {threads - 1} threads"
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue
        if target.startswith(_DEVICES):
            return f"the imports have opened {target}"
    return None


def differing(server: Mapping[str, str], script: Mapping[str, str]) -> list[str]:
    """Names of the variables that differ, in a way that the imports could have seen."""
    return sorted(
        name
        for name in server.keys() | script.keys()
        if server.get(name) != script.get(name) and name not in OWN_VARIABLES and not name.startswith("TORCHELASTIC_")
    )


@dataclass(frozen=True)
class _Script:
    """What a fork is to become."""

    argv: list[str]
    environment: dict[str, str]
    directory: str
    output: int


class _Server:
    """The loop that answers wrappers. One thread, as it forks."""

    def __init__(self, listener: socket.socket, environment: Mapping[str, str], unsafe: str | None) -> None:
        self._listener = listener
        self._environment = environment
        self._unsafe = unsafe
        self._selector = selectors.DefaultSelector()
        self._children: dict[socket.socket, tuple[int, int]] = {}
        """Connection of a wrapper → pid and pidfd of its script."""

    def serve(self) -> _Script:
        """Answers for ever; returns in each fork, with what that is to run."""
        self._selector.register(self._listener, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                source = key.fileobj
                if source is self._listener:
                    self._accept()
                elif isinstance(source, socket.socket):
                    if source.fileno() >= 0 and (script := self._hear(source)) is not None:
                        return script
                else:
                    self._reap(key.data)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        if user_of(connection) == os.getuid():
            self._selector.register(connection, selectors.EVENT_READ)
        else:
            connection.close()

    def _hear(self, connection: socket.socket) -> _Script | None:
        """Takes a request, or the end of a wrapper, with which its script ends."""
        try:
            message, descriptors, _, _ = socket.recv_fds(connection, MAX_MESSAGE_BYTES, 1)
        except ConnectionError:
            message, descriptors = b"", []
        if not message:
            self._selector.unregister(connection)
            if connection in self._children:
                os.kill(self._children[connection][0], signal.SIGKILL)  # not reaped yet, so still its pid
            else:
                connection.close()
            return None
        request = json.loads(message)
        script = _Script(request["argv"], request["env"], request["cwd"], descriptors[0])
        names = differing(self._environment, script.environment)
        refused = self._unsafe or (f"its environment differs in {', '.join(names)}" if names else None)
        is_child = False
        if refused is None:
            is_child = self._fork(connection)
        else:
            _send(connection, {"refused": refused})
        if is_child:
            return script
        os.close(script.output)
        return None

    def _fork(self, connection: socket.socket) -> bool:
        """Whether this is the child. Signals wait until it can take them as a new process would."""
        parent = os.getpid()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid == 0:
            die_with_parent(signal.SIGKILL, parent)
            self._let_go()
            return True
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        pidfd = os.pidfd_open(pid)
        self._children[connection] = (pid, pidfd)
        self._selector.register(pidfd, selectors.EVENT_READ, connection)
        _send(connection, {"pid": pid}, [pidfd])
        return False

    def _let_go(self) -> None:
        """Closes in a child what is the server's."""
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
            else:
                os.close(key.fd)
        self._selector.close()

    def _reap(self, connection: socket.socket) -> None:
        """A script has ended: tells its wrapper how."""
        pid, pidfd = self._children.pop(connection)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        _send(connection, {"code": os.waitstatus_to_exitcode(status)})
        if connection in self._selector.get_map():
            self._selector.unregister(connection)
        connection.close()


def _send(connection: socket.socket, answer: Mapping[str, object], descriptors: list[int] | None = None) -> None:
    with contextlib.suppress(OSError):  # of a wrapper that is gone, whose script ends with the connection
        socket.send_fds(connection, [json.dumps(answer).encode()], descriptors or [])


def _run(script: _Script) -> None:
    """Makes this process what `python -u SCRIPT …` would have made it, and runs the script."""
    os.setsid()  # as torchrun's ranks have: a terminal's Ctrl-C comes by way of the wrapper alone
    os.dup2(script.output, 1)
    os.dup2(script.output, 2)
    os.close(script.output)
    os.environ.clear()
    os.environ.update(script.environment)
    os.chdir(script.directory)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # SIGUSR1 and SIGUSR2 stay ignored, as from a wrapper
    gc.enable()
    sys.argv = script.argv
    sys.path[0] = str(Path(script.argv[0]).resolve().parent)
    runpy.run_path(script.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
