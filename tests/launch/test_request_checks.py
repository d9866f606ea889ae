"""Before submission: the request against a partition's limits, the disks, the memory; and the table of it all."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import calls, stand_in

from launch import before, checks, disks, input_checks, jobs, limits, request_checks
from launch.checks import Check
from launch.site import Container
from launch.spec import DEFAULT_SCRIPT, JobSpec
from strict_settings import Problem

PARTITIONS = """\
PartitionName=debug AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES QoS=N/A \
DefaultTime=00:10:00 MaxNodes=UNLIMITED MaxTime=01:00:00 MinNodes=0 MaxCPUsPerNode=UNLIMITED Nodes=n[1-2] State=UP \
TotalCPUs=16 TotalNodes=2 DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED
PartitionName=big AllowAccounts=lab,deep AllowQos=long,short Default=NO QoS=capped DefaultTime=NONE MaxNodes=4 \
MaxTime=UNLIMITED MinNodes=2 MaxCPUsPerNode=32 Nodes=g[1-8] State=UP MaxMemPerNode=512000
PartitionName=old DenyAccounts=guest DenyQos=short Default=NO QoS=N/A MaxNodes=UNLIMITED MinNodes=1 State=DRAIN
"""
NODES = """\
debug|2|idle|16000|gpu:8
big|6|mix|1024000|gpu:h100:8(S:0-1)
big|2|drain*|1024000+|gpu:h100:8
old|1|down*|16000|(null)
"""
QOS = "normal||\nshort|02:00:00|\nlong|7-00:00:00|cpu=96,node=4\ncapped||gres/gpu=16,node=3\n"


def limits_of(name: str | None) -> limits.Limits:
    found = limits.parse_limits(PARTITIONS, NODES, name)
    assert found is not None
    return found


def test_limits_are_read() -> None:
    default, big = limits_of(None), limits_of("big")
    assert (default.partition, default.max_time_min, default.default_time_min, default.max_nodes) == (
        "debug",
        60,
        10,
        None,
    )
    assert (big.min_nodes, big.max_nodes, big.max_cpus_per_node, big.max_mem_per_node_mb) == (2, 4, 32, 512000)
    assert (big.allowed_accounts, big.allowed_qos, big.qos) == (("lab", "deep"), ("long", "short"), "capped")
    assert (big.num_nodes, big.num_usable, big.gpu_kinds) == (8, 6, ("h100",))
    assert limits.parse_limits(PARTITIONS, NODES, "none") is None
    assert limits.parse_qos(QOS)["long"] == limits.Qos("long", 7 * 24 * 60, 4, 96, None)
    assert limits.parse_qos(QOS)["capped"].max_gpus == 16


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("Invalid feature specification", "Change --constraint"),
        ("Requested node configuration is not available", "ask for less, or change --constraint or --exclude"),
        ("Invalid account or account/partition combination specified", "Change --account"),
        ("Something else", "sbatch would refuse the job."),
    ],
)
def test_what_sbatch_refuses_comes_with_what_to_change(said: str, remedy: str) -> None:
    row = request_checks.start(None, said, 0.0)
    assert (row.value, row.verdict, remedy in row.remedy) == (said, "error", True)
    assert (row.remedy == "sbatch would refuse the job.") == (said == "Something else")


@pytest.mark.parametrize(
    ("time_min", "lead_s", "said"),
    [(None, 120, ""), (60, 120, ""), (4, 120, ""), (3, 100, "may come after 20 s"), (1, 20, "may come at once")],
)
def test_a_time_limit_that_is_all_saving_is_told(
    make_spec: Callable[..., JobSpec], time_min: int | None, lead_s: int, said: str
) -> None:
    spec = make_spec(time_min=time_min, signal_lead_s=lead_s)
    (row,) = (row for row in request_checks.of_limits(spec, limits_of("debug"), {}) if row.name == "time")
    assert (row.verdict, said in row.remedy) == ("warning" if said else "ok", True)


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"partition": "debug"}, []),
        ({"partition": "debug", "mem_gb": 15}, []),
        ({"partition": "debug", "mem_gb": 16}, ["mem_gb is 16; it must be at most 15, what partition 'debug' has on"]),
        ({"partition": "old"}, ["partition is 'old'; it must take jobs; it is DRAIN"]),
        ({"partition": "big", "nodes": 1}, ["nodes is 1; it must be at least 2"]),
        ({"partition": "big", "nodes": 5}, ["nodes is 5; it must be at most 4", "nodes is 5; it must be at most 3"]),
        ({"partition": "big", "cpus_per_task": 33}, ["cpus_per_task is 33; it must be at most 32"]),
        ({"partition": "big", "mem_gb": 501}, ["mem_gb is 501; it must be at most 500, what partition 'big' allows"]),
        ({"partition": "big", "gpus_per_node": 8, "nodes": 3}, ["gpus_per_node is 24; it must be at most 16"]),
    ],
)  # fmt: skip
def test_what_a_partition_does_not_allow(make_spec: Callable[..., JobSpec], resources: dict, said: list[str]) -> None:
    found = limits_of(resources["partition"])
    problems = [str(problem) for problem in limits.limit_problems(make_spec(**resources), found, limits.parse_qos(QOS))]
    assert len(problems) == len(said), problems
    for problem, expected in zip(problems, said, strict=True):
        assert problem.startswith(expected)


def test_a_request_that_is_wrong_in_several_ways_is_told_so_at_once(
    make_spec: Callable[..., JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "read_limits", lambda _partition: [limits_of("big")])
    monkeypatch.setattr(limits, "read_qos", lambda: limits.parse_qos(QOS))
    spec = make_spec(partition="big", nodes=99, mem_gb=501)
    spec = replace(spec, resources=replace(spec.resources, qos="lang"))
    known = [Problem("nodes", 99, "be at most 8, the nodes of partition 'big'")]
    told = [problem.field for problem in request_checks.other_problems(spec, known)]
    assert told == ["mem_gb", "qos", "qos"]  # not one that the partition allows; not one of the cluster
    monkeypatch.setattr(limits, "read_limits", lambda _partition: [])  # of a partition that does not exist
    assert [problem.field for problem in request_checks.other_problems(spec, known)] == ["qos"]


@pytest.mark.parametrize(
    ("partition", "changes", "said"),
    [
        ("big", {"account": "lab", "qos": "long"}, None),
        ("big", {"account": "guest"}, "account is 'guest'; it must be one that partition 'big' allows. Allowed: lab"),
        ("old", {"account": "guest"}, "All but guest are."),
        ("big", {"qos": "normal"}, "qos is 'normal'; it must be one that partition 'big' allows. Allowed: long"),
        ("debug", {"qos": "lang"}, "Did you mean 'long'?"),
        ("debug", {"qos": "short", "time_min": 121}, "time_min is 121; it must be at most 120, the limit of qos"),
    ],
)  # fmt: skip
def test_accounts_and_qualities_of_service(
    make_spec: Callable[..., JobSpec], partition: str, changes: dict, said: str | None
) -> None:
    spec = make_spec(partition=partition)
    spec = replace(spec, resources=replace(spec.resources, **changes))
    told = "\n".join(map(str, limits.limit_problems(spec, limits_of(partition), limits.parse_qos(QOS))))
    assert said in told if said else "DRAIN" in told or told == ""


def test_the_request_as_a_table(make_spec: Callable[..., JobSpec]) -> None:
    found = request_checks.of_limits(make_spec(nodes=2, mem_gb=64, time_min=30), limits_of("debug"), {})
    rows = {check.name: check for check in found}
    assert (rows["nodes"].value, rows["nodes"].verdict) == ("2 of 2", "ok")
    assert (rows["memory per node"].verdict, rows["memory per node"].value) == ("error", "64 of 16 GiB")
    assert rows["time"].value == "30 of 60 min"
    assert rows["partition"].value == "debug (2 idle)"
    waiting = request_checks.of_limits(make_spec(nodes=8, partition="big"), limits_of("big"), {})
    assert "6 are in service now" not in str(waiting)  # more than the partition allows is said first
    down = replace(limits_of("debug"), nodes_by_state={"idle": 1, "down": 1})
    (nodes,) = [check for check in request_checks.of_limits(make_spec(nodes=2), down, {}) if check.name == "nodes"]
    assert (nodes.verdict, nodes.remedy.startswith("1 are in service")) == ("warning", True)
    assert checks.worst(request_checks.of_limits(make_spec(), None, {})) == "warning"


def test_nodes_that_are_being_drained_are_not_in_service() -> None:
    states = "debug|3|idle|16000|(null)\ndebug|2|drng|16000|(null)\ndebug|1|drng*|16000|(null)\n"
    found = limits.parse_limits(PARTITIONS, states, "debug")
    assert found is not None
    assert (found.num_nodes, found.num_usable) == (6, 3)


def test_unlike_nodes_are_asked_for_by_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `-e` sinfo says `8000+` of nodes with 8 and 64 GB."""
    exact = "echo 'debug|3|idle|8000|(null)'; echo 'debug|1|idle|64000|(null)'"
    stand_in(tmp_path / "bin", "sinfo", f"case \" $* \" in *' -e '*) {exact};; *) echo 'debug|4|idle|8000+|';; esac")
    stand_in(tmp_path / "bin", "scontrol", f"cat <<'END'\n{PARTITIONS}END")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (found,) = limits.read_limits("debug")
    assert (found.num_nodes, found.node_mem_mb) == (4, 64000)
    assert [each.partition for each in limits.read_limits("big,debug,none")] == ["big", "debug"]


def test_one_of_several_partitions_is_enough(make_spec: Callable[..., JobSpec]) -> None:
    both = [limits_of("debug"), limits_of("big")]
    found = request_checks.of_partitions(make_spec(nodes=4, partition="debug,big", mem_gb=64), both, {})
    rows = [(row.name, row.verdict) for row in found]
    assert rows[:3] == [("partition", "warning"), ("partition", "ok"), ("nodes", "ok")]
    assert "memory per node: It must be at most 15" in found[0].remedy
    assert checks.worst(found) == "warning"
    none_can = request_checks.of_partitions(make_spec(nodes=4, mem_gb=600), both, {})
    assert checks.worst(none_can) == "error"


def test_when_it_would_start() -> None:
    now = time.mktime(time.strptime("2026-11-21T15:00:00", "%Y-%m-%dT%H:%M:%S"))
    assert request_checks.start("2026-11-21T15:00:00", "", now).value == "at once, as the queue stands"
    assert request_checks.start("2026-11-21T15:30:00", "", now).value.startswith("2026-11-21 15:30:00, in 30 min")
    assert request_checks.start("2026-11-22T15:00:00", "", now).value.startswith("2026-11-22 15:00:00, in 24.0 h")
    refused = request_checks.start(None, "Requested node configuration is not available", now)
    assert (refused.verdict, refused.value) == ("error", "Requested node configuration is not available")
    assert request_checks.start(None, "sbatch did not answer within 15 s", now).verdict == "warning"


def test_sbatch_is_asked_and_nothing_submitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "sbatch"
    reply = "sbatch: Job 7 to start at 2026-11-21T15:50:00 using 16 processors on nodes n[1-2] in partition debug"
    program.write_text(f'#!/bin/bash\necho "$* $(cat)" > "$SEEN"\necho "{reply}" >&2\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    environ = {"PATH": os.environ["PATH"], "SEEN": str(tmp_path / "seen")}
    assert jobs.expected_start("#!/bin/bash\n", environ) == ("2026-11-21T15:50:00", "")
    assert (tmp_path / "seen").read_text() == "--test-only #!/bin/bash\n"
    why = "Requested node configuration is not available"
    program.write_text(f"#!/bin/bash\necho 'allocation failure: {why}' >&2; exit 1\n")
    assert jobs.expected_start("", environ) == (None, why)


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:30 / /home rw - nfs4 server:/home rw
31 30 0:31 / /home/me/my\\040data rw - lustre 10.0.0.1@tcp:/fs rw
32 22 0:32 / /home2 rw - tmpfs none rw
33 30 0:33 / /home rw - fuse.juicefs x rw
"""


@pytest.mark.parametrize(
    ("path", "kind", "is_shared"),
    [
        ("/var/x", "ext4", False),
        ("/home/me/my data/y", "lustre", True),
        ("/home/me/my", "fuse.juicefs", True),
        ("/home2", "tmpfs", False),
    ],
)
def test_the_disk_below_a_path(path: str, kind: str, is_shared: bool) -> None:
    found = disks.mount_of(path, MOUNTS)
    assert found is not None
    assert (found.kind, found.is_shared) == (kind, is_shared)
    assert disks.Mount("/", "9p").is_shared is None
    assert disks.mount(Path("/no/such/place")) is not None


def model_folder(folder: Path, num_bytes: int) -> Path:
    folder.mkdir()
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(num_bytes)  # sparse
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16"}))
    return folder


@pytest.fixture
def spec(make_spec: Callable[..., JobSpec], tmp_path: Path) -> JobSpec:
    (tmp_path / "train.jsonl").write_text("{}\n")
    config = {"model_name_or_path": "model", "train_files": {"train.jsonl": 1}, "save_total_limit": 1}
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    words = ("--config", str(tmp_path / "run.yaml"))
    return make_spec(
        run_dir=str(tmp_path / "runs" / "x"), config=words[1], script_args=words, working_dir=str(tmp_path)
    )


def test_checkpoints_must_have_room(spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_parameters = 10**9
    model_folder(tmp_path / "model", 2 * num_parameters)
    need = num_parameters * 12 * 2 + 2 * num_parameters  # one checkpoint, one that is being written, the model
    verdicts = []
    for free in (need - 1, need, 2 * need):
        monkeypatch.setattr(disks, "free_bytes", lambda _path, free=free: free)
        verdicts.append(input_checks.room(spec, input_checks.Settings(spec)).verdict)
    assert verdicts == ["error", "warning", "ok"]
    overridden = replace(spec, script_args=(*spec.script_args, "--save_total_limit=3"))
    assert input_checks.room(overridden, input_checks.Settings(overridden)).verdict == "warning"
    monkeypatch.setattr(disks, "free_bytes", lambda _path: 3 * 12 * num_parameters)
    assert input_checks.room(overridden, input_checks.Settings(overridden)).verdict == "error"


def test_what_lies_on_a_disk_of_one_machine_is_told(
    spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder(tmp_path / "model", 0)
    monkeypatch.setattr(disks, "mount", lambda _path: disks.Mount("/", "xfs"))
    found = {check.name: check for check in input_checks.of_disks(spec)}
    assert found.keys() == {"run directory", "free space", "model_name_or_path", "train_files"}
    assert {name for name, check in found.items() if check.verdict == "warning"} == found.keys() - {"free space"}
    assert "choose another launch.runs_dir" in found["run directory"].remedy
    local = {check.name: check.verdict for check in input_checks.of_disks(replace(spec, executor="local"))}
    assert set(local.values()) == {"ok"}
    monkeypatch.setattr(disks, "mount", lambda _path: disks.Mount("/", "nfs4"))
    assert checks.worst(input_checks.of_disks(spec)) == "ok"


@pytest.mark.parametrize(
    ("kinds", "gib"),
    [
        (("h100",), 79), (("nvidia_a100_80gb_pcie",), 79), (("h100", "a100"), 39),
        (("a10",), 22), (("odd",), None), ((), None),
    ],
)  # fmt: skip
def test_what_a_gpu_has(kinds: tuple[str, ...], gib: int | None) -> None:
    assert input_checks.gpu_gib(kinds) == gib


def test_an_estimate_that_does_not_fit_is_a_warning_with_a_way_out() -> None:
    own = {"is_yours": True, "total_bytes": 100 * 2**30, "name": "ddp", "settings": []}
    other = {"is_yours": False, "total_bytes": 10 * 2**30, "name": "ZeRO-3", "settings": ["--zero 3"]}
    found = {"choices": [other, own], "recommended": other}
    assert input_checks.of_estimate(found, 141).verdict == "ok"
    check = input_checks.of_estimate(found, 79)
    assert (check.verdict, check.value) == ("warning", "about 100.0 of 79 GiB")
    assert "ZeRO-3: --zero 3" in check.remedy
    assert input_checks.of_estimate(found, None) == Check("memory per GPU", "about 100.0 GiB")


ESTIMATE = {"choices": [{"is_yours": True, "total_bytes": 2**30, "name": "ddp", "settings": []}]}


@pytest.mark.parametrize(
    ("says", "verdict", "told"),
    [
        (f"echo '{json.dumps(ESTIMATE)}'", "ok", "about 1.0 GiB"),
        ("echo 'a module that prints'", "warning", "no estimate"),
        ("echo no torch here >&2; exit 1", "warning", "no estimate"),
        (None, "warning", "no estimate"),
    ],
)
def test_memory_is_estimated_by_the_python_outside_of_the_container(
    spec: JobSpec, tmp_path: Path, says: str | None, verdict: str, told: str
) -> None:
    """That of the image is not there, or is the system's, which knows nothing of the trainer."""
    outside, inside = tmp_path / "bin" / "python", tmp_path / "bin" / "python3"
    stand_in(tmp_path / "bin", "python3", f"echo '{json.dumps(ESTIMATE)}'")
    if says is not None:
        stand_in(tmp_path / "bin", "python", says)
    job = replace(
        spec, executor="local", script=str(DEFAULT_SCRIPT), python=str(inside), batch_python=str(outside),
        container=Container("pyxis", "image"), resources=replace(spec.resources, gpus_per_node=8),
    )  # fmt: skip
    check = input_checks.memory(job, os.environ)
    assert check is not None
    assert (check.verdict, check.value) == (verdict, told), check
    assert calls(tmp_path / "bin", "python3") == []


def test_the_table() -> None:
    found = [Check("nodes", "2 of 2"), Check("time", "99 of 60 min", "error", "It must be at most 60.\nAsk for less.")]
    assert checks.table(found).splitlines() == [
        "nodes  ok       2 of 2",
        "time   error    99 of 60 min",
        "                → It must be at most 60.",
        "                → Ask for less.",
    ]
    assert "\x1b[31merror" in checks.table(found, colours=True)
    error = checks.ChecksFailedError(found, "Nothing was submitted.")
    assert str(error) == "1 check failed: time. Nothing was submitted."
    assert [row["verdict"] for row in error.facts["checks"]] == ["ok", "error"]
    assert before.audit("a warning\naudit of the first 3 rows: 3 rows", is_refused=False)[0].value.startswith(
        "the first 3"
    )


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environ", "is_coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_the_table_has_colours_where_they_are_wanted(
    monkeypatch: pytest.MonkeyPatch, make_spec: Callable[..., JobSpec], environ: dict[str, str], is_coloured: bool
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    wrong = checks.Check("identity", "the same", "error", "Choose another name.")
    with pytest.raises(checks.ChecksFailedError):
        before.checked(make_spec(), "", environ, [wrong], audits=False)
    assert ("\x1b[31m" in terminal.getvalue()) == is_coloured
    assert not checks.takes_colours(io.StringIO(), environ)
