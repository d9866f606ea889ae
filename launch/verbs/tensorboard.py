"""`launch tensorboard`: the curves of some runs, for browsers on this machine alone."""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from launch import processes, runs
from launch.errors import OK, LaunchError
from launch.verbs.common import print_json, registry


def run(arguments: argparse.Namespace) -> int:
    """Serves until Ctrl-C."""
    found = [runs.find(name, registry(), Path.cwd()).path for name in arguments.runs or [None]]
    port = arguments.port or _free_port()
    with tempfile.TemporaryDirectory(prefix="cleansft-tensorboard-") as folder:
        link(found, Path(folder))
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", folder, "--host", "127.0.0.1"]
        command += ["--port", str(port), "--reload_multifile", "true"]
        tunnel = f"ssh -N -L {port}:127.0.0.1:{port} {socket.gethostname()}"
        if arguments.json:
            print_json("tensorboard", runs=[str(path) for path in found], port=port, tunnel=tunnel)
        else:
            print(f"open     http://127.0.0.1:{port}\ntunnel   {tunnel}   (on your own computer)", flush=True)
        return _serve(command)


def link(paths: Sequence[Path], folder: Path) -> None:
    """Makes one folder of the runs' curves, each under its run's name: TensorBoard takes one.

    Raises:
        LaunchError: a run has none.
    """
    for path in paths:
        if not (path / "tensorboard").is_dir():
            raise LaunchError(f"{path}/tensorboard is missing; it must be written by the run (report_to: tensorboard).")
        name, number = path.name, 2
        while (folder / name).is_symlink():
            name, number = f"{path.name}-{number}", number + 1
        (folder / name).symlink_to(path / "tensorboard")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _serve(command: list[str]) -> int:
    """Until the server ends, or somebody ends this process; the server then ends too."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.default_int_handler)
    # In a session of its own: Ctrl-C is for this process, which then ends it without TensorBoard's traceback.
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=processes.before_exec(signal.SIGTERM),  # noqa: PLW1509 - one thread only
    ) as server:
        try:
            code = server.wait()
        except KeyboardInterrupt:
            server.terminate()
            return OK
    return OK if code in (OK, -signal.SIGTERM) else max(code, 1)
