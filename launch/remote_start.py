"""The other end of ssh: `python -m launch.remote_start` starts on a host what its first line of standard input says.

That line is JSON: `argv`, `cwd`, `env`; nothing of it was ever an argument, which all users of a machine can read. With
`replaces` the command takes this process's place, with the rest of its standard input. Else it is overseen: beats of
the supervisor come over standard input, and the word to stop. Where they end, whatever was started ends too.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

from launch import processes
from launch.errors import LaunchError, RendezvousError
from launch.rendezvous import REACHED_AT

STOP = b"stop\n"
BEAT = b"\n"
SILENT_GRACE_S = 5.0
"""From SIGTERM to SIGKILL where the supervisor is cut off: it is to find this machine free when it starts again."""
EARLIER_S = 10.0
"""How much longer than its grace to stop an earlier attempt may take to leave this machine."""
_POLL_S = 0.1


def environment_of(request: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of what is started: those of the login here, those that came along, and the address at which this
    host was reached. Pure."""
    reached_at = environ.get("SSH_CONNECTION", "").split(" ")[2:3]
    return {**environ, **request["env"], **({REACHED_AT: reached_at[0]} if reached_at else {})}


def place_of(run_dir: str) -> str:
    """The name of a run's place on a machine: an abstract address (unix(7)); the kernel frees it when its last holder
    is gone. Pure."""
    return f"\0cleansft-{os.getuid()}-{hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:32]}"


class Lifeline:
    """Standard input: the supervisor's beats and its word to stop."""

    def __init__(self, silence_s: float, source: int = 0) -> None:
        self._silence_s = silence_s
        self._source = source
        self._heard_at = time.monotonic()
        self._tail = b""
        self._is_open = True
        self.end: str | None = None
        """Why what was started is to end: `stop`, `closed`, `silence`, or the name of a signal; None as long as not."""

    def take_over_signals(self) -> None:
        """From now on a signal to end is one more reason to."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.end = self.end or signal.Signals(number).name

    def look(self) -> None:
        """Waits a moment for what comes."""
        if not self._is_open:
            time.sleep(_POLL_S)
        elif select.select([self._source], [], [], _POLL_S)[0]:
            data = os.read(self._source, 65536)
            self._heard_at = time.monotonic()
            text, self._is_open = self._tail + data, bool(data)
            self._tail = text[1 - len(STOP) :]
            if not data:
                self.end = self.end or "closed"
            elif STOP in text:
                self.end = self.end or "stop"
        elif time.monotonic() - self._heard_at > self._silence_s:
            self.end = self.end or "silence"


def oversee(request: Mapping[str, Any], environment: Mapping[str, str]) -> int:
    """Starts an agent, and ends it when its supervisor says so or is gone; its exit code.

    Raises:
        RendezvousError: an earlier attempt of the run does not leave this machine.
    """
    lifeline = Lifeline(request["silence_s"])
    lifeline.take_over_signals()
    processes.adopt_orphans()
    place = _take_place(request, lifeline)
    if place is None:
        return 128 + signal.SIGTERM
    agent = subprocess.Popen(
        request["argv"],
        stdin=subprocess.DEVNULL,
        env=dict(environment),
        pass_fds=(place.fileno(),),  # the place is free when the agent has ended too
        preexec_fn=processes.before_exec(signal.SIGTERM),  # noqa: PLW1509 - one thread only
    )
    deadline = None
    while agent.poll() is None:
        lifeline.look()
        if lifeline.end is not None and deadline is None:
            grace_s = SILENT_GRACE_S if lifeline.end == "silence" else request["grace_s"]
            deadline = time.monotonic() + grace_s
            agent.terminate()
        if deadline is not None and time.monotonic() > deadline:
            agent.kill()
    processes.kill_descendants()
    return processes.as_shell(agent.wait())


def _take_place(request: Mapping[str, Any], lifeline: Lifeline) -> socket.socket | None:
    """The run's place on this machine, once an earlier attempt has left it; None where this one is to end before."""
    place = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    deadline = time.monotonic() + request["grace_s"] + EARLIER_S
    while lifeline.end is None:
        try:
            place.bind(place_of(request["run_dir"]))
            return place
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        if time.monotonic() > deadline:
            raise RendezvousError(
                f"an earlier attempt of {request['run_dir']} still runs on {socket.gethostname()}; it must have ended. "
                "Look there for `launch.agent`."
            )
        lifeline.look()
    place.close()
    return None


def main() -> int:
    """Reads the request and does it; the exit code of what was started.

    Raises:
        LaunchError: there is no request, or no such directory.
    """
    os.umask(0o077)
    line = open(0, "rb", buffering=0, closefd=False).readline()  # noqa: SIM115 - and no byte more: the rest is not ours
    if not line.endswith(b"\n"):
        raise RendezvousError("the connection ended before the request came.")
    request = json.loads(line)
    environment = environment_of(request, os.environ)
    try:
        os.chdir(request["cwd"])
    except OSError as error:
        rule = f"be a directory on {socket.gethostname()} too ({error.strerror})"
        raise RendezvousError(f"the working directory is {request['cwd']!r}; it must {rule}.") from error
    argv: list[str] = request["argv"]
    if request.get("replaces"):
        os.execvpe(argv[0], argv, environment)
    return oversee(request, environment)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LaunchError as error:
        print(f"{error.prefix}{error}", file=sys.stderr)
        sys.exit(error.exit_code)
