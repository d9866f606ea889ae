"""Hosts by ssh: names, words, variables, the other end of the connection; and what becomes of a host that is lost."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest_golden import check_golden
from launch_probe import HOSTILE

from launch import agents, attempts, host_checks, hosts, local, network, processes, remote_start, resuming, script
from launch import submit as effects
from launch.devices import request_problems
from launch.diagnosis import diagnose
from launch.errors import LaunchError
from launch.examination import Answers
from launch.node_group import NodeGroup
from launch.options import RESUME_OPTIONS
from launch.records import make_directory, read_json
from launch.rendezvous import REACHED_AT, allocation_from
from launch.settings import Request, read, resolve
from launch.spec import ROOT, JobSpec
from launch.verbs import attach
from strict_settings import SettingsError

MakeSpec = Callable[..., JobSpec]


# --- names and words


@pytest.mark.parametrize("host", ["a", "gpu-01.example.org", "me@gpu_1", "10.0.0.5", "me@192.168.255.0", "7up"])
def test_names_that_ssh_takes_for_a_host(host: str) -> None:
    assert list(hosts.host_problems([host])) == []


NO_HOSTS = (
    "", "-oProxyCommand=id", "a b", "me@-a", "@a", "a@", "a@b@c", "a;id", "a:22", "ssh://a", "[::1]", "a\n", "$(id)",
    "10.0.0", "10.0.0.256", "10.0.0.05", "1.2.3.4.5", "7", "a,b", "é", "x" * 254,
)  # fmt: skip


@pytest.mark.parametrize("host", NO_HOSTS)
def test_what_is_no_host(host: str) -> None:
    (problem,) = hosts.host_problems([host])
    assert (problem.field, problem.rule) == ("hosts", "be a name, user@name, or an IPv4 address")


@pytest.mark.parametrize("names", [("a", "a"), ("a", "me@a"), ("x@a", "y@A"), ("10.0.0.1", "10.0.0.1")])
def test_one_machine_is_given_once(names: tuple[str, str]) -> None:
    (problem,) = hosts.host_problems(names)
    assert str(problem).startswith(f"hosts is {names[1]!r}; it must be another machine than {names[0]}.")


def test_ssh_is_never_asked_to_ask() -> None:
    words = hosts.ssh_words("me@a", ["-F", "my config", "-p", "2222"], ["exec", "it's", "$(id)", ""], "/runs/x/ssh.log")
    assert words[0] == "ssh"
    assert "BatchMode=yes" in words
    assert words.index("BatchMode=yes") < words.index("-F") < words.index("ConnectTimeout=10")
    assert words[words.index("-E") + 1] == "/runs/x/ssh.log"
    assert words[-2] == "me@a"
    assert shlex.split(words[-1]) == ["exec", "it's", "$(id)", ""]


def test_variables_of_login_machine_and_account_stay_here() -> None:
    kept = {"PATH": "/venv/bin", "LANG": "C", "WANDB_API_KEY": "k", "HF_HOME": "/hf", "NCCL_DEBUG": "INFO"}
    kept |= {"SLURM_NODEID": "1", "CLEANSFT_ATTEMPT": "0", "LD_LIBRARY_PATH": "/cuda", "X": "a\nb", "TERMINAL": "x"}
    left = ["SSH_AUTH_SOCK", "SSH_CONNECTION", "DISPLAY", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "HOSTNAME"]
    left += ["TERM", "TERM_PROGRAM", "HOME", "USER", "SHELL", "PWD", "TMPDIR", "TMUX_PANE", "CUDA_VISIBLE_DEVICES"]
    assert hosts.passed_on(kept | dict.fromkeys(left, "x")) == kept


# --- settings


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text("")
    return tmp_path


def resolved(work: Path, *options: str, config: str = "") -> JobSpec:
    (work / "run.yaml").write_text(config or "{}")
    request = Request(config="run.yaml", name="x", options=("--script=train.py", *options))
    draft = read(request, work, work / "home")
    assert draft.settings.executor == "local"
    return resolve(draft, "local", work)


def test_hosts_give_the_nodes(work: Path) -> None:
    job = resolved(work, "--hosts=a,me@10.0.0.7", "--procs-per-node=2")
    assert (job.hosts, job.resources.nodes, job.world_size) == (("a", "me@10.0.0.7"), 2, 4)
    assert job.is_elsewhere
    assert job.cpus_per_task == 2
    assert JobSpec.from_json(json.loads(json.dumps(job.to_json()))) == job
    file = 'launch: {hosts: [a, b, c], nodes: 3, ssh_options: [-p, "2222"]}\n'
    assert resolved(work, config=file).ssh_options == ("-p", "2222")
    assert list(request_problems(resolved(work, "--hosts=a", "--gpus-per-node=64"), 0)) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--hosts=a,b", "--nodes=3"), "nodes is 3; it must be 2, the number of hosts."),
        (("--hosts=a,b", "--nodes=1"), "nodes is 1; it must be 2, the number of hosts."),
        (("--hosts=a,b", "--executor=slurm"), "executor is 'slurm'; it must not be given with hosts."),
        (("--hosts=a,-oProxyCommand=x",), "hosts is '-oProxyCommand=x'; it must be a name"),
        (("--hosts=a,a",), "hosts is 'a'; it must be another machine than a."),
        (("--hosts=a", "--ssh-options=b,-p"), "ssh_options is 'b'; it must begin with an option of ssh."),
        (("--hosts=a", "--python=python"), "python is 'python'; it must be an absolute path"),
    ],
)
def test_what_is_refused(work: Path, options: tuple[str, ...], told: str) -> None:
    with pytest.raises(SettingsError) as error:
        resolved(work, *options)
    assert told in str(error.value)


def test_a_run_may_go_on_with_other_hosts(work: Path) -> None:
    job = resolved(work, "--hosts=a,b")
    nothing: dict[str, str | None] = {name: None for name, _, _ in RESUME_OPTIONS}
    other = resuming.changed(job, nothing | {"hosts": "a,c,d"}, [], accepts_data=False)
    assert (other.hosts, other.resources.nodes) == (("a", "c", "d"), 3)
    assert resuming.changed(job, nothing, [], accepts_data=False).hosts == ("a", "b")
    with pytest.raises(SettingsError, match="nodes is 3; it must be 2, the number of hosts"):
        resuming.changed(job, nothing | {"nodes": "3"}, [], accepts_data=False)


def test_each_host_has_slurm_s_variables(make_spec: MakeSpec) -> None:
    spec = make_spec(executor="local", hosts=("me@a", "10.0.0.7"))
    own = local.slurm_variables(spec, "local-1", 1) | {REACHED_AT: "10.0.0.7", "CLEANSFT_ATTEMPT": "2"}
    found = allocation_from(own)
    assert (found.hosts, found.node_rank, found.attempt) == (("a", "10.0.0.7"), 1, 2)
    assert found.reached_at == "10.0.0.7"


def test_the_plan_is_the_very_ssh_command(make_spec: MakeSpec) -> None:
    spec = make_spec(executor="local", hosts=("a", "me@b"), ssh_options=("-p", "2222"), env={})
    plan = script.plan_text(spec, {"PATH": "/secret", "API_KEY": "hidden", "TERM": "xterm"})
    check_golden("plan-hosts-torchrun.txt", plan.replace(str(ROOT), "/ROOT"))
    assert "hidden" not in plan
    assert "/secret" not in plan
    log = "/shared/runs/demo/logs/<attempt>/ssh-1.log"
    assert shlex.join(hosts.ssh_words("me@b", ("-p", "2222"), script.remote_words(spec), log)) in plan


def test_a_shell_beside_a_run_takes_no_variable_as_an_argument(make_spec: MakeSpec) -> None:
    spec = make_spec(executor="local", hosts=("a", "b"), env={"X": "value"})
    words = attach.ssh_words(spec, 1, 1, ["nvidia-smi", "-q x"], has_terminal=False)
    assert (words[:2], words[2]) == (["ssh", "-T"], "b")
    assert shlex.split(words[-1])[-6:] == ["launch.verbs.attach", spec.run_dir, "1", "1", "nvidia-smi", "-q x"]
    assert "value" not in words[-1]


def test_an_alias_of_ssh_leads_to_the_address_that_it_came_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "interface_addresses", lambda: {"lo": "127.0.0.1", "a": "172.17.0.1", "b": "10.0.0.7"})
    names = {"n1": "10.0.0.7", "public": "34.1.2.3", "debian": "127.0.1.1"}
    monkeypatch.setattr(network, "resolve", names.get)
    for name in ("n1", "alias", "public", "debian"):
        assert network.published_address((name, "peer"), "10.0.0.7") == "10.0.0.7"
    assert network.published_address(("n1", "peer"), "172.17.0.1") == "10.0.0.7"
    assert network.published_address(("public", "peer"), "127.0.0.1") == "34.1.2.3"


# --- the other end


THERE = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": "/there", "SSH_CONNECTION": "a 1 10.9.8.7 22"}


class OtherEnd:
    """`launch.remote_start`, as ssh would start it."""

    def __init__(self, request: dict[str, Any]) -> None:
        command = [sys.executable, "-u", "-P", "-m", "launch.remote_start"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=THERE
        )  # fmt: skip
        self.send(json.dumps(request).encode() + b"\n")

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def hang_up(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def end(self) -> int:
        return self.process.wait(30)

    def close(self) -> None:
        """Ends it, and what it has started."""
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        self.end()
        process.stdout.close()
        process.stderr.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., OtherEnd]]:
    begun: list[OtherEnd] = []

    def starter(program: str, **facts: Any) -> OtherEnd:
        request = {"argv": [sys.executable, "-uc", program], "cwd": str(tmp_path), "env": {}, "run_dir": str(tmp_path)}
        begun.append(OtherEnd(request | {"grace_s": 20.0, "silence_s": 60.0} | facts))
        return begun[-1]

    yield starter
    for one in begun:
        one.close()


TELLS = "import json, os, sys; print(json.dumps([dict(os.environ), os.getcwd(), sys.argv[1:]]))"
HANGS = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], start_new_session=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print(child.pid)
time.sleep(300)
"""


LINGERS = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), print(time.time()), exit()))
print("up")
time.sleep(300)
"""


def test_values_arrive_to_the_byte_and_are_no_arguments(start: Callable[..., OtherEnd], tmp_path: Path) -> None:
    values = {f"X_{number}": value for number, value in enumerate((*HOSTILE, "\udcff\udc80 not UTF-8", "x" * 100_000))}
    other = start(TELLS, env=values | {"HOME": "/told"})
    environ, folder, _ = json.loads(other.line())
    assert other.end() == 0
    assert {name: environ[name] for name in values} == values
    assert (folder, environ["HOME"]) == (str(tmp_path), "/told")
    assert environ[REACHED_AT] == "10.9.8.7"
    waiting = start(HANGS, env={"X": "as-an-argument"})
    child = int(waiting.line())
    for pid in (waiting.process.pid, child):
        assert b"as-an-argument" not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_command_in_its_place_has_the_rest_of_the_input(start: Callable[..., OtherEnd]) -> None:
    other = start("print(input())", replaces=True)
    other.send(b"the rest\n")
    assert other.line() == "the rest"
    assert other.end() == 0


@pytest.mark.parametrize(("code", "expected"), [("42", 42), ("0", 0), ("-9", 137)])
def test_the_exit_code_passes(start: Callable[..., OtherEnd], code: str, expected: int) -> None:
    program = f"import os, sys; sys.exit({code})" if code != "-9" else "import os; os.kill(os.getpid(), 9)"
    assert start(program).end() == expected


@pytest.mark.parametrize("how", ["stop", "closed", "silence", "SIGHUP", "SIGKILL"])
def test_nothing_outlives_the_connection(start: Callable[..., OtherEnd], how: str) -> None:
    other = start(HANGS, silence_s=1.0 if how == "silence" else 60.0)
    child = int(other.line())
    if how == "stop":
        other.send(remote_start.BEAT + remote_start.STOP[:2])
        other.send(remote_start.STOP[2:])
    elif how == "closed":
        other.hang_up()
    elif how.startswith("SIG"):
        other.process.send_signal(signal.Signals[how])
    assert other.end() == (-9 if how == "SIGKILL" else 7)
    deadline = time.monotonic() + 20
    while how != "SIGKILL" and processes.start_ticks(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    # By SIGKILL the overseer can end no grandchild: an agent does that itself when it is told by the kernel.
    assert (processes.start_ticks(child) is None) == (how != "SIGKILL")
    processes.send([child], signal.SIGKILL)


def test_beats_keep_it_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    source, sink = os.pipe()
    lifeline = remote_start.Lifeline(60.0, source)
    for moment in (30.0, 80.0, 130.0):
        now[0] = moment
        os.write(sink, remote_start.BEAT)
        lifeline.look()
    now[0] = 189.0
    lifeline.look()
    assert lifeline.end is None
    now[0] = 191.0
    lifeline.look()
    assert lifeline.end == "silence"
    os.close(sink)
    os.close(source)


def test_an_agent_that_does_not_stop_is_ended(start: Callable[..., OtherEnd]) -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(300)"
    other = start(stubborn, grace_s=0.3)
    other.line()
    other.hang_up()
    assert other.end() == 137


def test_an_attempt_waits_until_the_one_before_has_left_the_machine(start: Callable[..., OtherEnd]) -> None:
    first = start(LINGERS)
    assert first.line() == "up"
    second = start("import time; print(time.time())")
    first.hang_up()
    assert float(first.line()) < float(second.line())
    assert (first.end(), second.end()) == (0, 0)


def test_who_waits_for_an_earlier_attempt_can_be_stopped(start: Callable[..., OtherEnd]) -> None:
    first = start(HANGS)
    first.line()
    second = start(HANGS)
    second.hang_up()
    assert second.end() == 143
    assert first.process.poll() is None


def test_what_it_cannot_do_it_says(start: Callable[..., OtherEnd]) -> None:
    other = start(TELLS, cwd="/not there")
    assert other.end() == 17
    assert other.process.stderr is not None
    assert b"the working directory is '/not there'; it must be a directory on" in other.process.stderr.read()


# --- the supervisor's end: ssh is a program here that runs the command on this machine, or fails as ssh does

SSH = """\
#!{python}
import os, sys
words = sys.argv[1:]
host = words[-2]
if host == "lost":
    log = open(words[words.index("-E") + 1], "a") if "-E" in words else sys.stderr
    print("lost: Permission denied (publickey).", file=log, flush=True)
    sys.exit(255)
if host == "bare":
    sys.exit(127)
os.environ["SSH_CONNECTION"] = "10.0.0.1 5 127.0.0.1 22"
os.execv("/bin/sh", ["sh", "-c", words[-1]])
"""


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "ssh"
    program.write_text(SSH.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return program


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("lost", "node 1 (lost) was not reached by ssh, which says: lost: Permission denied (publickey)."),
        ("bare", "node 1 (bare) ended with code 127 before its agent could begin"),
    ],
)
@pytest.mark.usefixtures("ssh")
def test_a_host_where_no_agent_begins_is_the_cause(make_spec: MakeSpec, tmp_path: Path, host: str, told: str) -> None:
    run_dir = tmp_path / "runs" / "x"
    run_dir.mkdir(parents=True, mode=0o700)
    where = {"run_dir": str(run_dir), "working_dir": str(tmp_path), "python": sys.executable}
    spec = make_spec(executor="local", hosts=("localhost", host), **where)
    effects.fill(spec, "", "")
    environ = {**os.environ, "CLEANSFT_JOB_ID": "local-1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "launch.local", str(run_dir)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 17, done.stdout + done.stderr
    record = read_json(run_dir / "exit/0/node-1.json") or {}
    assert (record["own_code"], record["reason"]) == (17, "rendezvous")
    assert told in record["error"]
    assert f"LAUNCH-EXIT code=17 reason=rendezvous host={host}" in done.stdout + done.stderr
    assert (attempts.read_end(run_dir, 0) or {})["code"] == 17


def test_a_host_that_goes_away_is_a_lost_node(make_spec: MakeSpec, tmp_path: Path, ssh: Path) -> None:
    make_directory(tmp_path / "logs" / "0")
    spec = make_spec(executor="local", hosts=("a",), nodes=1, run_dir=str(tmp_path), working_dir=str(tmp_path))
    ssh.write_text('#!/bin/sh\necho "Timeout, server a not responding." > "$0.said"\nexec sleep 300\n')
    agent = agents.HostAgent(spec, 0, 0, {"X": "y" * 1_000_000})
    assert agent.poll() is None
    agent.stop()
    agent.kill()
    assert (agent.wait(), agent.poll(), agent.is_lost) == (-9, -9, True)
    assert agent.what_happened(has_begun=True) == "is not reached any more by ssh, which died by signal 9"


# --- before it starts


@pytest.mark.usefixtures("ssh")
def test_hosts_are_asked_before_anything_starts(make_spec: MakeSpec, tmp_path: Path) -> None:
    where = {"run_dir": str(tmp_path), "working_dir": str(tmp_path), "python": sys.executable}
    spec = make_spec(executor="local", hosts=("localhost", "lost", "bare"), nodes=3, **where)
    rows = {row.value: row for row in host_checks.of_hosts(spec, os.environ) if row.verdict == "error"}
    assert set(rows) == {"lost does not answer", "bare does not answer"}
    assert rows["lost does not answer"].remedy == (
        "ssh must reach it without a question: `ssh-copy-id lost`. It says: lost: Permission denied (publickey)."
    )
    assert "`ssh bare true`" in rows["bare does not answer"].remedy
    with pytest.raises(LaunchError, match="Nothing was started"):
        host_checks.require(spec, os.environ)
    one = make_spec(executor="local", hosts=("localhost",), nodes=1, **where)
    (row,) = host_checks.of_hosts(one, os.environ)
    assert (row.verdict, row.value.split(":")[0]) == ("ok", "localhost")
    assert not list(tmp_path.glob("nonce"))


def facts_of(host: str, num_gpus: int = 0) -> dict[str, Any]:
    return {
        "host": host, "interfaces": {"eth0": f"10.0.0.{ord(host[0])}"}, "gpus": [{"name": "H200"}] * num_gpus,
        "python": "3.11.7", "packages": {"torch": "2.13.0"}, "resolved": {}, "address": "10.0.0.1", "nonce": "same",
        "taken": {}, "candidates": [1], "mtu": 1500, "locked_memory_limited": False,
    }  # fmt: skip


def test_too_few_gpus_and_one_machine_by_two_names_are_told(make_spec: MakeSpec) -> None:
    spec = make_spec(executor="local", hosts=("a", "b", "c"), nodes=3, gpus_per_node=8)
    answers = Answers(["a", "b", "c"], nonce="same", is_by_ssh=True, began={0: "a", 1: "b", 2: "b"})
    answers.facts = {0: facts_of("a", 8), 1: facts_of("b", 4), 2: facts_of("b", 0)}
    gpus = list(host_checks.gpu_findings(spec, answers))
    assert [(found.nodes, found.verdict) for found in gpus] == [((1,), "error"), ((2,), "warning")]
    (same,) = host_checks.same_machines(answers)
    assert (same.nodes, same.what) == ((2,), "is the same machine as b")
    rows = host_checks.rows(spec, answers, [*gpus, same])
    assert [row.value for row in rows] == [
        "b shows 4 GPUs by nvidia-smi, and gpus_per_node is 8",
        "c shows 0 GPUs by nvidia-smi, and gpus_per_node is 8",
        "c is the same machine as b",
    ]


def test_what_ssh_says_stands_with_its_host() -> None:
    answers = Answers(["a", "b"], is_by_ssh=True, said_by={0: ["a: no route"], 1: ["b: refused"]})
    assert [finding.remedy.partition("ssh says: ")[2] for finding in diagnose(answers)] == ["a: no route", "b: refused"]


def test_nobody_waits_for_a_node_whose_process_has_ended() -> None:
    group = NodeGroup([(["true"], os.environ), (["sleep", "60"], os.environ)], 2, [b"opening\n", b""])
    group._readers[0].join(20)
    assert not group._can_say_more([0])
    assert group._can_say_more([1])
    assert "no answer" in group.ask("clock", {0: {}}, 600.0)[0]["error"]
    group.close(0.1)
