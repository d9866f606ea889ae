"""The wrapper of a rank, and a node's view of the network. No launcher, no torch."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launch import network, processes
from launch.command import RANK_WRAPPER
from launch.errors import RendezvousError
from launch.spec import ROOT

VARIABLES = {"RANK": "1", "LOCAL_RANK": "1", "CLEANSFT_NODE_RANK": "0", "CLEANSFT_ATTEMPT": "0"}


class Wrapped:
    """rank.py around a script of the test."""

    def __init__(self, folder: Path, code: str, *args: str, env: dict[str, str] | None = None) -> None:
        (folder / "script.py").write_text(code)
        for name in ("exit/0", "logs/0"):
            (folder / name).mkdir(parents=True)
        job = {"python": sys.executable, "script": str(folder / "script.py"), "script_args": args}
        (folder / "job.json").write_text(json.dumps(job))
        environment = os.environ | VARIABLES | {"CLEANSFT_RUN_DIR": str(folder)} | (env or {})
        self.process = subprocess.Popen([sys.executable, str(RANK_WRAPPER)], env=environment, cwd=folder)
        self.folder = folder

    def wait(self) -> int:
        return self.process.wait(timeout=20)

    @property
    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.folder / "exit/0/rank-1.json").read_text())
        return record

    @property
    def log(self) -> str:
        path = self.folder / "logs/0/rank-1.log"
        return path.read_text() if path.exists() else ""

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 10
        while text not in self.log and time.monotonic() < deadline:
            time.sleep(0.02)
        assert text in self.log


def test_good_end(tmp_path: Path) -> None:
    wrapped = Wrapped(tmp_path, "import sys; print(sys.argv[1:])", "a b", "$(id)", "")
    assert wrapped.wait() == 0
    assert wrapped.log == "['a b', '$(id)', '']\n"
    assert (wrapped.record["code"], wrapped.record["error"], wrapped.record["stopped"]) == (0, None, False)


@pytest.mark.parametrize("goes_on", [False, True])
def test_the_trainer_of_a_later_attempt_is_told_to_go_on(tmp_path: Path, goes_on: bool) -> None:
    shell = tmp_path / "python"
    shell.write_text('#!/bin/sh\nshift; shift; echo "$@"\n')
    shell.chmod(0o700)
    for name in ("exit/0", "logs/0"):
        (tmp_path / name).mkdir(parents=True)
    job = {
        "python": str(shell),
        "script": str(ROOT / "sft/train.py"),
        "script_args": ["--resume_from_checkpoint", "none"],
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    (tmp_path / "exit/0/attempt.json").write_text(json.dumps({"goes_on": goes_on}))
    environment = os.environ | VARIABLES | {"CLEANSFT_RUN_DIR": str(tmp_path)}
    assert subprocess.run([sys.executable, str(RANK_WRAPPER)], env=environment, check=False).returncode == 0
    said = (tmp_path / "logs/0/rank-1.log").read_text().split()
    assert said == (["--resume_from_checkpoint=auto"] if goes_on else ["--resume_from_checkpoint", "none"])


def test_exit_code_and_error(tmp_path: Path) -> None:
    wrapped = Wrapped(tmp_path, "import sys; print('bad luck', file=sys.stderr); sys.exit(42)")
    assert wrapped.wait() == 42
    assert (wrapped.record["code"], wrapped.record["error"]) == (42, "bad luck")


def test_death_by_signal(tmp_path: Path) -> None:
    wrapped = Wrapped(tmp_path, "import os; os.kill(os.getpid(), 9)")
    assert wrapped.wait() == 137
    assert (wrapped.record["signal"], "SIGKILL" in wrapped.record["error"]) == (9, True)


def test_told_to_stop(tmp_path: Path) -> None:
    wrapped = Wrapped(tmp_path, "import time; print('up', flush=True); time.sleep(60)")
    wrapped.wait_for("up")
    wrapped.process.terminate()
    assert wrapped.wait() == 143
    assert wrapped.record["stopped"]


def test_stubborn_script_is_killed(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    wrapped = Wrapped(tmp_path, code)
    wrapped.wait_for("up")
    wrapped.process.terminate()
    assert wrapped.wait() == 137
    assert (wrapped.record["code"], wrapped.record["reason"], wrapped.record["stopped"]) == (11, "peer_lost", True)
    assert wrapped.record["error"] == "rank 1 was ended 2.5 s after a SIGTERM, which comes where another rank is gone"


def test_user_signals_are_passed_on(tmp_path: Path) -> None:
    code = "import signal, sys; signal.signal(10, lambda *_: sys.exit(5)); print('up', flush=True); signal.pause()"
    wrapped = Wrapped(tmp_path, code)
    wrapped.wait_for("up")
    wrapped.process.send_signal(signal.SIGUSR1)
    assert wrapped.wait() == 5


def test_script_does_not_outlive_its_wrapper(tmp_path: Path) -> None:
    wrapped = Wrapped(tmp_path, "import os, time; print(os.getpid(), 'up', flush=True); time.sleep(60)")
    wrapped.wait_for("up")
    wrapped.process.kill()
    wrapped.wait()
    deadline = time.monotonic() + 5
    while processes.start_ticks(int(wrapped.log.split()[0])) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processes.start_ticks(int(wrapped.log.split()[0])) is None
    assert wrapped.record["code"] is None


@pytest.mark.parametrize(("saved", "seen"), [("", None), ("=4,5", "4,5"), ("=", "")])
def test_visible_devices_as_they_were(tmp_path: Path, saved: str, seen: str | None) -> None:
    code = "import os, json; print(json.dumps([os.environ.get('CUDA_VISIBLE_DEVICES')]))"
    env = {"CLEANSFT_CUDA_VISIBLE_DEVICES": saved, "CUDA_VISIBLE_DEVICES": "0"}
    wrapped = Wrapped(tmp_path, code, env=env)
    assert wrapped.wait() == 0
    assert json.loads(wrapped.log) == [seen]


def test_the_wrapper_imports_little_and_is_imported_by_nothing() -> None:
    """Each rank starts it; commands that read logs have no use for it."""
    code = "import sys, launch.rank; print(*(name for name in sys.modules if name.startswith(('launch.', 'strict'))))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    own = "env_file errors forking logs memory_limit options processes rank records"
    assert "launch.rank" in done.stdout.split()
    assert set(done.stdout.split()) <= {f"launch.{name}" for name in own.split()}
    importers = [path.name for path in (ROOT / "launch").rglob("*.py") if "from launch.rank " in path.read_text()]
    assert importers == []


def test_python_that_is_missing(tmp_path: Path) -> None:
    wrapped = Wrapped(tmp_path, "")
    wrapped.wait()
    job = json.loads((tmp_path / "job.json").read_text()) | {"python": "/no/python"}
    (tmp_path / "job.json").write_text(json.dumps(job))
    environment = os.environ | VARIABLES | {"CLEANSFT_RUN_DIR": str(tmp_path)}
    assert subprocess.run([sys.executable, str(RANK_WRAPPER)], env=environment, check=False).returncode == 127
    assert "FileNotFoundError" in wrapped.record["error"]


def test_first_free_port_passes_over_a_listener() -> None:
    with socket.socket(socket.AF_INET) as listener, socket.socket(socket.AF_INET) as other:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        other.bind(("127.0.0.1", 0))
        free = other.getsockname()[1]
        other.close()
        assert network.first_free_port((taken, free)) == free
        with pytest.raises(RendezvousError, match="all in use"):
            network.first_free_port((taken,))


def test_address_is_never_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"n1": "127.0.1.1", "n2": "10.0.0.2"}
    monkeypatch.setattr(network, "resolve", names.get)
    monkeypatch.setattr(network, "source_address", lambda peer: "10.0.0.1" if peer == "10.0.0.2" else None)
    assert network.published_address(("n1", "n2")) == "10.0.0.1"
    monkeypatch.setattr(network, "interface_addresses", lambda: {"lo": "127.0.0.1", "eth0": "10.0.0.7"})
    assert network.published_address(("n1", "unknown")) == "10.0.0.7"
    monkeypatch.setattr(network, "interface_addresses", lambda: {"lo": "127.0.0.1"})
    with pytest.raises(RendezvousError, match="no address but loopback"):
        network.published_address(("n1", "unknown"))
    assert network.published_address(("n2", "n1")) == "10.0.0.2"


def test_interface_of_loopback() -> None:
    assert network.interface_towards("127.0.0.1") == "lo"
