"""Profiles: where they are found, what `init` makes of a cluster, and what becomes of them in the script."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest_golden import check_golden
from made_runs import stand_in

from launch import command, profiles, script, settings, site
from launch.__main__ import main
from launch.command import NodeFacts
from launch.errors import LaunchError
from launch.rendezvous import Rendezvous
from launch.settings import LaunchSettings
from launch.site import Container
from launch.spec import ROOT, JobSpec
from strict_settings import SettingsError, build, read_yaml

MakeSpec = Callable[..., JobSpec]
GPUS = """\
debug|debug|2|gpu:a100:2(S:0)|32|257000|1:00:00|a100|up
gpu|gpu*|12|gpu:h100:8(S:0-1)|192|2063000+|2-00:00:00|h100,ib|up
gpu|gpu*|4|gpu:a100:8|128|1031000|2-00:00:00|a100|up
broken|broken|9|gpu:h100:8|192|2063000|infinite|h100|down
cpu|cpu|40|(null)|64|250000|infinite|(null)|up
"""
CPUS = "debug|debug*|2|(null)|8|16000|1:00:00|(null)|up\nurgent|urgent|2|(null)|8|16000|1:00:00|(null)|up\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, a home, and a cluster of stand-ins."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(profiles.VARIABLE, raising=False)
    bin_dir = tmp_path / "bin"
    (tmp_path / "nodes").write_text(GPUS)
    short = "cut -d'|' -f1-5,7"  # what `submit` asks for
    asked = f'case "$*" in *%a*) cat {tmp_path}/nodes;; *%c*) {short} {tmp_path}/nodes;; *) echo gpu;; esac'
    stand_in(bin_dir, "sinfo", asked)
    stand_in(bin_dir, "scontrol", "echo 'ClusterName             = big.site'; echo 'KillWait = 30 sec'")
    stand_in(bin_dir, "sacctmgr", "echo 'team-a|normal,high'; echo 'team-b|normal'")
    stand_in(bin_dir, "sbatch", "exit 1")
    monkeypatch.setenv("PATH", f"{bin_dir}:/usr/bin:/bin")
    (tmp_path / "probe.py").write_text("")
    return tmp_path


@pytest.mark.parametrize(("name", "nodes"), [("gpus", GPUS), ("cpus", CPUS)])
def test_what_is_proposed(name: str, nodes: str, tmp_path: Path) -> None:
    """The whole text; it is read without a problem, and asks for what a node has."""
    kinds = profiles.parse_nodes(nodes)
    kind = profiles.chosen_kind(kinds, None)
    accounts = {"team-a": "normal,high", "team-b": "normal"} if name == "gpus" else {}
    text = profiles.proposal(kinds, kind, "site", "ada", accounts)
    check_golden(f"profile-{name}.yaml", text)
    (tmp_path / "site.yaml").write_text(text)
    read = build(LaunchSettings, read_yaml(tmp_path / "site.yaml"))
    if name == "gpus":
        assert (read.partition, read.gpus_per_node, read.cpus_per_gpu, read.mem_gb_per_gpu) == ("gpu", 8, 24, 239)
        assert (read.time_min, read.account) == (1440, "team-a")
    else:
        assert (read.partition, read.gpus_per_node, read.cpus_per_task, read.mem_gb) == ("debug", 0, 8, 14)
        assert (read.time_min, read.account) == (60, None)


def test_which_nodes_it_is_for() -> None:
    kinds = profiles.parse_nodes(GPUS)
    assert profiles.chosen_kind(kinds, None).features == "h100,ib"
    assert profiles.chosen_kind(kinds, "cpu").num_cpus == 64
    assert profiles.chosen_kind(kinds, "broken").num_nodes == 9  # it is asked for by its name
    with pytest.raises(
        LaunchError, match="--partition is 'gpus'; it must be a partition of this cluster: broken, cpu, "
    ):
        profiles.chosen_kind(kinds, "gpus")
    with pytest.raises(LaunchError, match="sinfo names no partition"):
        profiles.chosen_kind([], None)


def test_from_init_to_a_dry_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profiles", "list"]) == 0
    assert "no profile; `python -m launch profiles init` makes one. Examples:\n" in capsys.readouterr().out
    assert main(["profiles", "init"]) == 0
    path = folder / "home" / ".config" / "cleansft" / "profiles" / "big-site.yaml"
    assert f"# wrote {path}\n" in capsys.readouterr().out
    assert path.stat().st_mode & 0o777 == 0o644  # it holds no secrets, and is for others too
    assert main(["profiles", "init"]) == 2
    assert f"{path} exists; it must not be overwritten." in capsys.readouterr().err
    assert main(["profiles", "init", "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == path.read_text()
    assert main(["profiles", "init", "small", "--partition", "cpu", "--project"]) == 0
    assert (folder / "slurm" / "profiles" / "small.yaml").exists()
    capsys.readouterr()
    assert main(["profiles", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["small", "big-site"]
    assert main(["profiles", "show", "small"]) == 0
    assert "partition: cpu" in capsys.readouterr().out
    words = ["submit", "--nodes", "2", "--script", "probe.py", "--profile", "big-site", "--dry-run"]
    assert main(words) == 0
    plan = capsys.readouterr().out
    for option in ("--partition=gpu", "--account=team-a", "--time=1440", "--gpus-per-node=8", "--cpus-per-task=192"):
        assert f"#SBATCH {option}\n" in plan
    assert f"export TRITON_CACHE_DIR=/tmp/cleansft-{_user()}/triton\n" in plan
    assert "export NCCL_DEBUG=WARN\n" in plan


def _user() -> str:
    import getpass

    return getpass.getuser()


def test_the_environment_names_a_profile(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, partition in (("one", "debug"), ("two", "cpu")):
        path = folder / "slurm" / "profiles" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name} of them\npartition: {partition}\n")
    monkeypatch.setenv(profiles.VARIABLE, "one")
    words = ["print", "--script", "probe.py"]
    assert main(words) == 0
    assert "--partition=debug\n" in capsys.readouterr().out
    assert main([*words, "--profile", "two"]) == 0
    assert "--partition=cpu\n" in capsys.readouterr().out
    assert main(["profiles", "list"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("* one  one of them")
    assert "CLEANSFT_PROFILE names it" in said
    monkeypatch.setenv(profiles.VARIABLE, "thre")
    assert main(words) == 2
    assert "profile is 'thre'; it must be a file or the name of a profile" in capsys.readouterr().err


def test_the_project_s_profile_hides_the_user_s(folder: Path) -> None:
    places = profiles.folders(folder, folder / "home")
    for place in places:
        place.mkdir(parents=True)
        (place / "a.yaml").write_text("")
    assert profiles.path_of("a", folder, folder / "home") == places[0] / "a.yaml"
    assert list(profiles.all_profiles(folder, folder / "home")) == [places[0] / "a.yaml"]
    with pytest.raises(SettingsError, match="Did you mean 'a'"):
        profiles.path_of("aa", folder, folder / "home")


@pytest.mark.parametrize("path", profiles.examples(), ids=lambda path: path.stem)
def test_examples_are_valid(path: Path) -> None:
    assert build(LaunchSettings, read_yaml(path)).partition is not None
    assert path.read_text().startswith("# Example: ")


def test_there_are_examples() -> None:
    assert len(profiles.examples()) >= 4


# --- what becomes of it


def resolved(folder: Path, **launch: Any) -> JobSpec:
    (folder / "site.yaml").write_text(json.dumps(launch))  # JSON is YAML
    request = settings.Request(profile="site.yaml", options=("--script=probe.py",), name="x")
    return settings.resolve(settings.read(request, folder, folder), "slurm", folder)


def test_shares_of_a_node(folder: Path) -> None:
    spec = resolved(folder, gpus_per_node=4, cpus_per_gpu=12, mem_gb_per_gpu=100)
    assert (spec.procs_per_node, spec.cpus_per_task, spec.resources.mem_gb) == (4, 48, 400)
    spec = resolved(folder, gpus_per_node=4, cpus_per_gpu=12, mem_gb_per_gpu=100, cpus_per_task=9, mem_gb=8)
    assert (spec.cpus_per_task, spec.resources.mem_gb) == (9, 8)
    spec = resolved(folder, gres="gpu:h100:8,nvme:1", cpus_per_gpu=2)
    assert (spec.procs_per_node, spec.cpus_per_task) == (8, 16)
    text = script.script_text(spec)
    assert "#SBATCH --gres=gpu:h100:8,nvme:1\n" in text
    assert "--gpus-per-node" not in text


@pytest.mark.parametrize(
    ("kind", "image", "gpus"), [("pyxis", "nvcr.io#nvidia/pytorch:25.01", 8), ("apptainer", "/shared/it's.sif", 4)]
)
def test_script_with_a_container_and_modules(make_spec: MakeSpec, kind: Any, image: str, gpus: int) -> None:
    container = Container(kind, image, ("/data", "/home/me", "/scratch/x:/scratch"), "/opt/venv/bin/python")
    spec = make_spec(
        container=container, batch_python="/venv/bin/python", python=container.python, gpus_per_node=gpus,
        modules=("cuda/12.6", "nccl"), setup=("ulimit -l unlimited",),
    )  # fmt: skip
    text = script.script_text(spec)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    check_golden(f"submit-{kind}.sh", text.replace(str(ROOT), "/ROOT"))
    assert JobSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_container_sees_the_files_of_its_job_wherever_they_are(make_spec: MakeSpec) -> None:
    files = {"config": "/settings/a/run.yaml", "env_file": "/secrets/env", "found_env_file": "/home/me/my project/.env"}
    text = script.script_text(make_spec(container=Container("apptainer", "/i.sif"), **files))
    (bind,) = [
        word for line in text.splitlines() if "--bind=" in line for word in shlex.split(line) if "--bind" in word
    ]
    folders = bind.removeprefix("--bind=").split(",")
    assert {"/settings/a", "/secrets", "/home/me/my project", "/code", "/shared/runs/demo"} <= set(folders)
    assert "/settings/a" not in script.script_text(make_spec(**files))


def test_modules_are_loaded_by_a_shell_that_does_not_know_them_yet(tmp_path: Path, make_spec: MakeSpec) -> None:
    lines = site.module_lines(("cuda/12.6", "nccl"))
    define = 'module() { echo "module $*"; }'
    done = subprocess.run(
        ["bash", "-c", "\n".join(["set -e -o pipefail", define, *lines])], capture_output=True, text=True, check=True
    )
    assert done.stdout == "module load cuda/12.6 nccl\n"
    missing = subprocess.run(
        ["bash", "-c", "\n".join(["set -e -o pipefail", *lines, "echo went on"])],
        capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert missing.returncode != 0  # and says which command is missing, before Python starts
    assert "module" in missing.stderr
    assert "went on" not in missing.stdout


def test_interface_and_caches_reach_the_ranks(make_spec: MakeSpec) -> None:
    spec = make_spec(interface="ib0", cache_dir="/tmp/c", env={"TRITON_CACHE_DIR": "/mine"})
    meeting = Rendezvous("17.0", "10.0.0.5", "23456", 1, ("n1", "n2"))
    facts = NodeFacts(inherited=frozenset({"TORCH_EXTENSIONS_DIR"}), interface="ib0", accelerator=None)
    environment = command.node_environment(spec, meeting, "0", facts)
    assert environment["TRITON_CACHE_DIR"] == "/mine"  # what the run says comes first
    assert environment["TORCHINDUCTOR_CACHE_DIR"] == "/tmp/c/inductor"
    assert "TORCH_EXTENSIONS_DIR" not in environment  # what the job has already stays
    assert "export NCCL_SOCKET_IFNAME=ib0\n" in script.plan_text(spec, ())


def test_a_cache_that_others_could_write_to_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a" / "cache"
    site.make_private(path)
    site.make_private(path)
    assert path.stat().st_mode & 0o777 == 0o700
    path.chmod(0o777)
    with pytest.raises(LaunchError, match="it must be your folder, writable by no other"):
        site.make_private(path)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(LaunchError, match="it must be your folder"):
        site.make_private(tmp_path / "link")


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        (
            {"container": {"kind": "docker", "image": "x"}},
            "container.kind is 'docker'; it must be one of pyxis, apptainer",
        ),
        ({"container": {"kind": "pyxis"}}, "image"),
        ({"container": {"kind": "pyxis", "image": "x", "mounts": ["data"]}}, "container.mounts is 'data'; it must be"),
        ({"modules": ["cuda; rm -r x"]}, "modules is 'cuda; rm -r x'; it must be the name of a module"),
        ({"interface": "ib 0"}, "interface is 'ib 0'; it must be the name of a network interface"),
        ({"cache_dir": "cache"}, "cache_dir is 'cache'; it must be an absolute path"),
        ({"gres": "gpu 8"}, "gres is 'gpu 8'; it must be one word"),
    ],
)
def test_refusals(folder: Path, launch: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        resolved(folder, **launch)
    assert message in str(error.value)


def test_no_container_without_slurm(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "c.yaml").write_text("container: {kind: pyxis, image: x}\n")
    assert main(["print", "--script", "probe.py", "--executor", "local", "--profile", "c.yaml"]) == 2
    assert "container is 'pyxis'; it must not be given where the nodes run on this machine" in capsys.readouterr().err
    assert os.listdir(folder / "bin")


# --- a user's own defaults of sbatch


@pytest.mark.parametrize(
    ("limit", "time_min"),
    [("90", 90), ("90:00", 90), ("1:30:00", 90), ("1-12", 2160), ("1-12:30", 2190), ("0", None), ("UNLIMITED", None)],
)
def test_a_time_limit_as_sbatch_takes_it(limit: str, time_min: int | None) -> None:
    assert profiles.sbatch_defaults({"SBATCH_TIMELIMIT": limit}).values.get("time_min") == time_min


def test_a_user_s_own_defaults_count_where_nobody_says_otherwise(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {"ACCOUNT": "lab", "PARTITION": "cpu", "QOS": "high", "CONSTRAINT": "", "TIMELIMIT": "45"}
    for name, value in own.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    monkeypatch.setenv("SBATCH_EXCLUSIVE", "1")  # no setting
    (folder / "site.yaml").write_text("account: team\n")
    words = ["submit", "--executor", "slurm", "--script", "probe.py", "--dry-run"]

    def asked(*more: str) -> set[str]:
        assert main([*words, *more]) == 0
        lines = capsys.readouterr().out.splitlines()
        wanted = ("account", "partition", "qos", "constraint", "time", "exclusive")
        return {line[10:] for line in lines if line.startswith(tuple(f"#SBATCH --{name}" for name in wanted))}

    assert asked() == {"account=lab", "partition=cpu", "qos=high", "time=45"}
    changed = {"account=team", "partition=gpu", "qos=high", "time=45"}
    assert asked("--profile", "site.yaml", "--partition", "gpu") == changed
    monkeypatch.setenv("SBATCH_PARTITION", "cpus")
    assert main(words) == 2
    assert "SBATCH_PARTITION: partition is 'cpus'; it must be a partition of this cluster" in capsys.readouterr().err


def test_stages_have_them_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "lab")
    stages = {"one": {"script": "probe.py"}}
    (folder / "stages.yaml").write_text(json.dumps({"launch": {"executor": "slurm"}, "stages": stages}))
    assert main(["stages", "stages.yaml", "--dry-run"]) == 0
    assert "#SBATCH --account=lab\n" in capsys.readouterr().out
