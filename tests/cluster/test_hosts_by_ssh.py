"""`--hosts n1,n2`: two machines over a real ssh, each with an sshd of its own; Slurm takes no part in it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab_client import Lab
from lab_runs import alive
from test_doctor_on_slurm import cut_link
from test_launch_slurm import HOSTILE, Launcher, wait_for

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PRIVILEGE_SEPARATION = Path("/run/sshd")
"""sshd wants this empty folder, which a distribution makes when the machine starts."""
PORT = 20022
"""The nodes have networks of their own: nobody else listens there."""
SSHD = """\
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/client_key.pub
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
"""
CLIENT = """\
Host *
  Port {port}
  IdentityFile {folder}/{key}
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
"""


@pytest.fixture(scope="module")
def keys(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `right` and `wrong`, configurations of ssh; an sshd on each node takes the keys of the first."""
    program = shutil.which("sshd", path=SYSTEM_PATH)
    if program is None or shutil.which("ssh-keygen") is None:
        pytest.skip("sshd is not installed; `slurm/lab/lab.py install` does that, and starts none here")
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("host_key", "client_key", "other_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "sshd_config").write_text(SSHD.format(port=PORT, folder=folder))
    for name, key in (("right", "client_key"), ("wrong", "other_key")):
        (folder / name).write_text(CLIENT.format(port=PORT, folder=folder, key=key))
    public = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text("".join(f"[{node}]:{PORT} {public}" for node in ("n1", "n2")))
    is_made_here = not PRIVILEGE_SEPARATION.exists()
    PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
    words = [program, "-D", "-E", str(folder / "sshd.log"), "-f", str(folder / "sshd_config")]
    daemons = [lab.popen(words, node=node) for node in ("n1", "n2")]
    try:
        for node in ("n1", "n2"):
            asks = ["ssh", "-F", str(folder / "right"), "-o", "BatchMode=yes", node, "true"]
            wait_for(lambda asks=asks: lab.exec(asks).returncode == 0, 20)  # type: ignore[misc]
        yield folder
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait(20)
        if is_made_here:
            PRIVILEGE_SEPARATION.rmdir()


class HostsLauncher(Launcher):
    """The launcher on the login node, with a profile that has two hosts."""

    def __init__(self, lab: Lab, folder: Path, keys: Path) -> None:
        super().__init__(lab, folder)
        for name in ("right", "wrong"):
            text = f"hosts: [n1, n2]\nssh_options: [-F, {keys / name}]\nstop_grace_s: 10\n"
            (folder / f"{name}.yaml").write_text(text)

    def start(self, name: str, *words: str, profile: str = "right.yaml") -> subprocess.CompletedProcess[str]:
        """`submit` of the probe script."""
        return self("submit", "--profile", profile, "--script", "probe.py", "--name", name, *words)

    def supervisor(self, name: str) -> int:
        """Its pid, on the login node."""
        return int(json.loads((self.run_dir(name) / "submission.json").read_text())["pid"])

    def is_gone(self, name: str) -> bool:
        """Whether nothing of a run is left: on the nodes, and of its supervisor and its ssh here."""
        ends = self.lab.node_processes(r"launch\.remote_start")
        return not ends and not self.left_over(name) and not command_lines(str(self.run_dir(name)))


def command_lines(part: str) -> list[str]:
    """Of all processes of this machine that have `part` among their arguments, and are no test."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if part in line:
                found.append(line.replace("\0", " "))
    return found


@pytest.fixture
def launch(lab: Lab, keys: Path, tmp_path: Path) -> Iterator[HostsLauncher]:
    launcher = HostsLauncher(lab, tmp_path, keys)
    yield launcher
    for submission in tmp_path.glob("runs/*/submission.json"):
        pid = int(json.loads(submission.read_text())["pid"])
        if alive(pid):
            os.kill(pid, signal.SIGTERM)
            wait_for(lambda pid=pid: not alive(pid), 40)  # type: ignore[misc]


def test_two_hosts_run_as_two_nodes_and_the_code_of_a_rank_is_the_run_s(launch: HostsLauncher) -> None:
    launch.environment |= {f"Y_{index}": value for index, value in enumerate(HOSTILE)}
    dry = launch.start("x", "--env", "FAIL=exit 42", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    done = launch.start("x", "--env", "FAIL=exit 42", "--wait")
    assert done.returncode == 42, done.stdout + done.stderr
    assert "hosts          ok       n1, n2: Python" in done.stderr
    assert (launch.run_dir("x") / "plan.txt").read_text() == dry.stdout
    for rank in (0, 1):
        seen = launch.seen("x", rank)
        assert [seen["env"][f"Y_{index}"] for index in range(len(HOSTILE))] == list(HOSTILE)
        assert (seen["host"], seen["env"]["RANK"], seen["env"]["WORLD_SIZE"]) == (f"n{rank + 1}", str(rank), "2")
        assert (seen["env"]["MASTER_ADDR"], seen["env"]["GLOO_SOCKET_IFNAME"]) == ("10.77.0.11", "eth0")
        assert "SSH_AUTH_SOCK" not in seen["env"]
        assert f"[n{rank + 1} rank {rank}] rank {rank} of 2" in launch("logs", "x").stdout
    status = launch("status", "x").stdout
    assert "node 1 (n2), rank 1 ended with code 42" in status, status
    assert launch.is_gone("x")


def begun(launch: HostsLauncher, name: str, *words: str) -> None:
    """A run whose ranks wait, on both hosts."""
    done = launch.start(name, "--launcher", "direct", "--env", "FAIL=hang", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    wait_for(launch.is_up(name, 2))


def test_cancel_leaves_nothing_and_no_value_was_an_argument(launch: HostsLauncher) -> None:
    launch.environment["SECRET_VALUE"] = marker = "never-an-argument"
    begun(launch, "x")
    assert launch.seen("x", 1)["env"]["SECRET_VALUE"] == marker
    assert command_lines("launch.remote_start")
    assert not command_lines(marker)
    shown = "import os; print(os.uname().nodename, os.environ['CLEANSFT_NODE_RANK'], os.environ['FAIL'], os.getcwd())"
    beside = launch("attach", "x", "--node", "1", "--", sys.executable, "-c", shown)
    assert beside.stdout.split() == ["n2", "1", "hang", str(launch.folder)], beside.stdout + beside.stderr
    assert "x: CANCELLED" in launch("cancel", "x").stdout
    wait_for(lambda: launch.is_gone("x"), 30)
    assert launch("wait", "x").returncode == 143


def kill_supervisor(launch: HostsLauncher) -> tuple[int, str]:
    os.kill(launch.supervisor("x"), signal.SIGKILL)
    return 143, ""


def kill_connection(launch: HostsLauncher) -> tuple[int, str]:
    sessions = launch.lab.node_processes(r"^sshd(-session)?: root@notty", node="n2")
    assert len(sessions) == 1
    os.kill(sessions[0].pid, signal.SIGKILL)
    return 11, "node 1 (n2) is not reached any more by ssh"


@pytest.mark.parametrize("fault", [kill_supervisor, kill_connection])
def test_nothing_outlives(launch: HostsLauncher, fault: Callable[[HostsLauncher], tuple[int, str]]) -> None:
    begun(launch, "x", "--chain", "none")
    code, told = fault(launch)
    wait_for(lambda: launch.is_gone("x"), 40)
    assert launch("wait", "x").returncode == code
    assert told in launch("status", "x").stdout


def test_a_host_that_cannot_be_reached_is_named_before_anything_starts(lab: Lab, launch: HostsLauncher) -> None:
    refused = launch.start("x", profile="wrong.yaml")
    assert refused.returncode == 2
    for node in ("n1", "n2"):
        assert f"{node} does not answer" in refused.stderr
        assert (
            f"ssh must reach it without a question: `ssh-copy-id {node}`. It says: root@{node}: Perm" in refused.stderr
        )
    with cut_link(lab, "ctl", "n2"):
        cut = launch.start("x")
    assert cut.returncode == 2
    assert "hosts          error    n2 does not answer" in cut.stderr
    assert "n1 does not answer" not in cut.stderr
    assert not launch.run_dir("x").exists()


def test_doctor_examines_hosts(launch: HostsLauncher) -> None:
    done = launch("doctor", "--profile", "right.yaml", "--cpus-per-task", "1", "--json")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    report = json.loads(done.stdout.strip().splitlines()[-1])
    assert [node["host"] for node in report["nodes"]] == ["n1", "n2"]
    assert [node["facts"]["address"] for node in report["nodes"]] == ["10.77.0.11", "10.77.0.12"]
    assert "seconds" in report["pairs"][0]
    assert all(node["flops_per_s"] for node in report["nodes"])
    errors = [found["what"] for found in report["findings"] if found["verdict"] == "error"]
    assert not [what for what in errors if "slow" not in what and "times that of others" not in what]  # others compute
