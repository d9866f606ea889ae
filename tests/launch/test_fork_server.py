"""The fork server of a node: a rank that it forks is like one that was started anew, or is started anew."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch import forking, processes
from launch.command import RANK_WRAPPER
from launch.fork_server import differing
from launch.forking import start_server

IMPORTS = "import decimal, os, sys; decimal.imported_by = os.getpid()\n"
TELL = """\
import decimal, json, os, signal, sys
signals = {n: str(signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)}
fds = {os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")}
print(json.dumps({
    "argv": sys.argv, "name": __name__, "file": __file__, "path0": sys.path[0], "cwd": os.getcwd(),
    "env": dict(os.environ), "signals": signals, "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "stdin": os.readlink("/proc/self/fd/0"),
    "others": sorted(name for name in fds if not name.startswith(("/dev/null", "/proc"))),
    "unbuffered": sys.stdout.line_buffering or sys.stdout.write_through,
    "imported_by": getattr(decimal, "imported_by", None), "pid": os.getpid(), "umask": os.umask(0),
}))
"""
NODE = {"CLEANSFT_NODE_RANK": "0", "CLEANSFT_ATTEMPT": "0"}


class Node:
    """A fork server, and wrappers of ranks that know of it."""

    def __init__(
        self, folder: Path, script: str, imports: str = IMPORTS, server_env: dict[str, str] | None = None
    ) -> None:
        self.folder = folder
        (folder / "train.py").write_text(script)
        (folder / "train_imports.py").write_text(imports)
        for name in ("exit/0", "logs/0"):
            (folder / name).mkdir(parents=True)
        job = {"python": sys.executable, "script": str(folder / "train.py"), "script_args": ["a b", ""]}
        (folder / "job.json").write_text(json.dumps(job))
        self.environment = os.environ | NODE | {"CLEANSFT_RUN_DIR": str(folder)}
        self.environment.pop(forking.VARIABLE, None)
        base = self.environment | (server_env or {})
        self.server = start_server(sys.executable, str(folder / "train.py"), base)
        assert self.server is not None
        self.environment[forking.VARIABLE] = base[forking.VARIABLE]
        self.wrappers: list[subprocess.Popen[str]] = []

    def start(self, rank: int = 1, *, alone: bool = False, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """A rank; `alone` without the server."""
        environment = self.environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | (env or {})
        if alone:
            del environment[forking.VARIABLE]
        command = [sys.executable, str(RANK_WRAPPER)]
        wrapper = subprocess.Popen(command, env=environment, cwd=self.folder, stdout=subprocess.PIPE, text=True)
        self.wrappers.append(wrapper)
        return wrapper

    def end(self, wrapper: subprocess.Popen[str]) -> tuple[int, str]:
        """(exit code, what the wrapper said)."""
        said, _ = wrapper.communicate(timeout=20)
        return wrapper.returncode, said

    def record(self, rank: int = 1) -> dict[str, Any]:
        return dict(json.loads((self.folder / f"exit/0/rank-{rank}.json").read_text()))

    def log(self, rank: int = 1) -> str:
        path = self.folder / f"logs/0/rank-{rank}.log"
        return path.read_text() if path.exists() else ""

    def wait_for(self, text: str, rank: int = 1) -> None:
        deadline = time.monotonic() + 15
        while text not in self.log(rank) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert text in self.log(rank)

    def close(self) -> None:
        for process in (*self.wrappers, self.server):
            process.kill()
            process.wait()
        for wrapper in self.wrappers:
            assert wrapper.stdout is not None
            wrapper.stdout.close()


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    started: list[Node] = []
    yield started
    for node in started:
        node.close()


def node_of(nodes: list[Node], *args: Any, **options: Any) -> Node:
    nodes.append(Node(*args, **options))
    return nodes[-1]


def test_a_fork_is_like_a_process_that_was_started_anew(tmp_path: Path, nodes: list[Node]) -> None:
    node = node_of(nodes, tmp_path, TELL)
    assert node.end(node.start()) == (0, "")
    told = json.loads(node.log())
    (tmp_path / "logs/0/rank-1.log").unlink()
    assert node.end(node.start(alone=True)) == (0, "")
    plain = json.loads(node.log())
    assert told.pop("imported_by") == node.server.pid
    assert plain.pop("imported_by") is None
    assert told.pop("pid") != plain.pop("pid")
    assert told == plain


def test_ranks_share_one_import(tmp_path: Path, nodes: list[Node]) -> None:
    node = node_of(nodes, tmp_path, TELL)
    wrappers = [node.start(rank) for rank in range(4)]
    assert [node.end(wrapper) for wrapper in wrappers] == [(0, "")] * 4
    told = [json.loads(node.log(rank)) for rank in range(4)]
    assert {one["imported_by"] for one in told} == {node.server.pid}
    assert len({one["pid"] for one in told}) == 4
    assert [one["env"]["RANK"] for one in told] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("script", "code", "error"),
    [
        ("import sys; print('bad luck'); sys.exit(42)", 42, "bad luck"),
        ("raise ValueError('the answer is not 42')", 1, "ValueError: the answer is not 42"),
        ("import os; os.kill(os.getpid(), 9)", 137, "rank 1 on "),
        ("import atexit; atexit.register(print, 'last words')", 0, None),
    ],
)
def test_how_a_fork_ends(tmp_path: Path, nodes: list[Node], script: str, code: int, error: str | None) -> None:
    node = node_of(nodes, tmp_path, script)
    assert node.end(node.start())[0] == code
    record = node.record()
    assert (record["code"] if code != 137 else 137) == code
    assert record["error"] == error if error is None else str(record["error"]).startswith(error)
    if code == 0:
        assert node.log() == "last words\n"


def test_signals_reach_the_fork(tmp_path: Path, nodes: list[Node]) -> None:
    script = """\
import signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: print("usr1", flush=True))
signal.signal(signal.SIGTERM, lambda *_: (print("term", flush=True), sys.exit(10)))
print("up", flush=True)
while True: time.sleep(0.01)
"""
    node = node_of(nodes, tmp_path, script)
    wrapper = node.start()
    node.wait_for("up")
    wrapper.send_signal(signal.SIGUSR1)
    node.wait_for("usr1")
    wrapper.terminate()
    assert node.end(wrapper)[0] == 0  # 10 from a script that was told to stop
    assert (node.record()["code"], node.record()["stopped"]) == (10, True)


def test_a_stubborn_fork_is_killed(tmp_path: Path, nodes: list[Node]) -> None:
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    node = node_of(nodes, tmp_path, script)
    wrapper = node.start()
    node.wait_for("up")
    wrapper.terminate()
    assert node.end(wrapper)[0] == 137
    assert node.record()["stopped"]


@pytest.mark.parametrize("who", ["wrapper", "server"])
def test_a_fork_ends_with_its_wrapper_and_with_its_server(tmp_path: Path, nodes: list[Node], who: str) -> None:
    node = node_of(nodes, tmp_path, "import os, time; print('pid', os.getpid(), flush=True); time.sleep(60)")
    wrapper = node.start()
    node.wait_for("\n")
    pid = int(node.log().split()[1])
    victim = wrapper if who == "wrapper" else node.server
    assert victim is not None
    victim.kill()
    deadline = time.monotonic() + 10
    while processes.start_ticks(pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert processes.start_ticks(pid) is None
    if who == "server":
        assert node.end(wrapper)[0] == 137
    else:  # the server goes on
        second = node.start(2)
        node.wait_for("pid", 2)
        second.kill()


@pytest.mark.parametrize(
    ("imports", "server_env", "reason"),
    [
        (
            "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
            {},
            "1 threads",
        ),
        (IMPORTS, {"HF_HOME": "/elsewhere", "OMP_NUM_THREADS": "7"}, "differs in HF_HOME, OMP_NUM_THREADS"),
        ("raise ImportError('no such library')", {}, "the fork server "),
    ],
)
def test_who_cannot_be_forked_is_started_anew(
    tmp_path: Path, nodes: list[Node], imports: str, server_env: dict[str, str], reason: str
) -> None:
    node = node_of(nodes, tmp_path, TELL, imports, server_env)
    code, said = node.end(node.start(env={"OMP_NUM_THREADS": "1"}))
    assert (code, json.loads(node.log())["imported_by"]) == (0, None)
    assert said.startswith("rank 1 imports for itself: ")
    assert reason in said


def test_told_to_stop_while_it_imports(tmp_path: Path, nodes: list[Node]) -> None:
    """Nothing has begun, so nothing is to be saved: the code is that of a script that stops while it loads."""
    node = node_of(nodes, tmp_path, TELL, "import time; time.sleep(60)")
    wrapper = node.start()
    deadline = time.monotonic() + 10
    while not (tmp_path / "exit/0/rank-1.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)  # it waits for the server
    wrapper.terminate()
    assert node.end(wrapper)[0] == 0
    assert (node.record()["code"], node.record()["stopped"], node.log()) == (10, True, "")


def test_there_is_none_for_a_script_without_a_file_of_imports(tmp_path: Path) -> None:
    (tmp_path / "mine.py").touch()
    environment = {"A": "b"}
    assert start_server(sys.executable, str(tmp_path / "mine.py"), environment) is None
    assert environment == {"A": "b"}


def test_what_an_import_may_have_read_must_be_equal() -> None:
    server = {"PATH": "/bin", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    rank = {"RANK": "3", "MASTER_ADDR": "node0", "TORCHELASTIC_RUN_ID": "x", "CUDA_VISIBLE_DEVICES": "3"}
    assert differing(server, server | rank) == []
    assert differing(server, {"PATH": "/bin", "OMP_NUM_THREADS": "2", "HF_TOKEN": "t"}) == [
        "HF_TOKEN",
        "OMP_NUM_THREADS",
    ]
