"""The agents of a run without Slurm, as its supervisor starts them: on this machine, or on hosts by ssh."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import hosts, processes
from launch.remote_start import BEAT, STOP
from launch.script import agent_words, remote_words, ssh_log
from launch.spec import JobSpec

BEAT_S = 5.0
SILENCE_S = 60.0
"""Without a beat for so long a host's part of the run ends: the connection is cut, or the supervisor is gone."""
REMOTE_MARGIN_S = 2.0
"""How much longer than its ranks an agent on a host may take to stop, until it gets a SIGKILL there."""


def request_line(spec: JobSpec, argv: Sequence[str], environ: Mapping[str, str], **facts: Any) -> bytes:
    """What `launch.remote_start` is told on its standard input. Pure.

    Args:
        spec: the job.
        argv: what it is to start.
        environ: the variables of this process, and those of the node.
        facts: what else it is to know.
    """
    request = {"argv": list(argv), "cwd": spec.working_dir, "env": hosts.passed_on(environ), **facts}
    return json.dumps(request).encode("ascii") + b"\n"


class LocalAgent:
    """The agent of a node on this machine."""

    def __init__(self, spec: JobSpec, environ: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            agent_words(spec),
            stdin=subprocess.DEVNULL,
            env=dict(environ),
            preexec_fn=processes.before_exec(signal.SIGTERM),  # noqa: PLW1509 - one thread only
        )

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Asks it to end."""
        processes.send([self._process.pid], signal.SIGTERM)

    def kill(self) -> None:
        """Ends it."""
        self._process.kill()

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self._process.wait()


class HostAgent:
    """The agent of a node on another machine: ssh, which runs `launch.remote_start` there.

    Whoever has one must ask `poll` often: with it go the beats without which the other end stops.
    """

    def __init__(self, spec: JobSpec, node: int, attempt: int, environ: Mapping[str, str]) -> None:
        self.host = spec.hosts[node]
        self.log = Path(ssh_log(spec, attempt, node))
        line = request_line(
            spec,
            agent_words(spec),
            environ,
            run_dir=spec.run_dir,
            grace_s=spec.stop_grace_s + REMOTE_MARGIN_S,
            silence_s=SILENCE_S,
        )
        self._process = subprocess.Popen(
            hosts.ssh_words(self.host, spec.ssh_options, remote_words(spec), str(self.log)),
            stdin=subprocess.PIPE,
            preexec_fn=processes.before_exec(signal.SIGTERM),  # noqa: PLW1509 - one thread only
        )
        assert self._process.stdin is not None
        self._stdin = self._process.stdin
        # ssh reads only once it is connected: the supervisor must not wait for that with the other hosts.
        os.set_blocking(self._stdin.fileno(), False)
        self._unsent = line
        self._beat_at = time.monotonic()
        self._is_told = False
        self._send()

    def poll(self) -> int | None:
        """Its exit code as ssh tells it, `hosts.UNREACHABLE` where ssh itself failed; None while it runs."""
        code = self._process.poll()
        if code is None:
            if time.monotonic() - self._beat_at >= BEAT_S:
                self._beat_at = time.monotonic()
                self._unsent += BEAT
            self._send()
        return code

    def stop(self) -> None:
        """Asks it to end."""
        self._unsent += b"" if self._is_told else STOP
        self._is_told = True
        self._send()

    def kill(self) -> None:
        """Ends the connection: the other end sees to the rest."""
        self._process.kill()

    def wait(self) -> int:
        """As `poll`, once it has ended."""
        code = self._process.wait()
        with contextlib.suppress(OSError):
            self._stdin.close()
        return code

    def _send(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self._stdin.fileno(), self._unsent) :]
        except BlockingIOError:
            return
        except (OSError, ValueError):
            self._unsent = b""  # ssh has ended

    @property
    def is_lost(self) -> bool:
        """Whether ssh has failed, or was killed: what the agent ended with is not known."""
        code = self._process.poll()
        return code is not None and (code == hosts.UNREACHABLE or code < 0)

    def what_happened(self, *, has_begun: bool) -> str:
        """Why it ended without a word of the agent's, after `node 1 (b) `.

        Args:
            has_begun: the agent had come to the meeting.
        """
        code = self._process.poll() or 0
        if not self.is_lost:
            return f"ended with code {code} before its agent could begin; logs/local.log has what was said there"
        reached = "is not reached any more" if has_begun else "was not reached"
        how = f"which died by signal {-code}" if code < 0 else f"which says: {self._last_words() or 'nothing'}"
        return f"{reached} by ssh, {how}"

    def _last_words(self) -> str:
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


Agent = LocalAgent | HostAgent
