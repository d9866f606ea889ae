"""The lab's pure parts: configuration as text, options, the identity of processes. Needs neither root nor Slurm."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LAB_FOLDER = Path(__file__).parents[2] / "slurm" / "lab"
sys.path.insert(0, str(LAB_FOLDER))

import lab_cli  # noqa: E402
import lab_config  # noqa: E402
import lab_exec  # noqa: E402
import lab_state  # noqa: E402
from lab_config import LabError, LabOptions, LabPaths  # noqa: E402

PATHS = LabPaths(Path("/run/some-lab"))


def settings(text: str) -> dict[str, str]:
    """The settings of a slurm.conf, one word each; a repeated one is an error."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if line and not line.startswith(("#", "NodeName", "PartitionName")):
            name, _, value = line.partition("=")
            assert name not in found, name
            found[name] = value
    return found


@pytest.mark.parametrize(("num_nodes", "node_range"), [(1, "n1"), (2, "n[1-2]"), (64, "n[1-64]")])
def test_slurm_conf_names_all_nodes_in_both_partitions(num_nodes: int, node_range: str) -> None:
    text = lab_config.render_slurm_conf(LabOptions(num_nodes=num_nodes, cpus_per_node=4), PATHS)
    assert re.search(rf"^NodeName={re.escape(node_range)} CPUs=4 .*CoresPerSocket=4 ", text, re.MULTILINE)
    partitions = re.findall(r"^PartitionName=(\w+) Nodes=(\S+) .*PriorityTier=(\d+)", text, re.MULTILINE)
    assert partitions == [("debug", node_range, "1"), ("urgent", node_range, "10")]


def test_slurm_conf_holds_what_was_proven() -> None:
    found = settings(lab_config.render_slurm_conf(LabOptions(), PATHS))
    expected = {
        "SlurmctldHost": "ctl",
        "AuthInfo": "socket=/run/some-lab/munge/munge.socket,cred_expire=5",
        "SlurmdSpoolDir": "/run/some-lab/spool/%n",
        "SlurmdParameters": "config_overrides",
        "SelectTypeParameters": "CR_CPU",
        "KillWait": "5",
        "MinJobAge": "600",
        "JobRequeue": "1",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        "SlurmctldParameters": "preempt_send_user_signal",
        "AccountingStorageType": "accounting_storage/slurmdbd",
    }
    assert {name: found.get(name) for name in expected} == expected


def test_slurm_conf_without_accounting_and_gpus() -> None:
    options = LabOptions(accounting=False, gpus_per_node=0)
    text = lab_config.render_slurm_conf(options, PATHS)
    assert settings(text)["AccountingStorageType"] == "accounting_storage/none"
    assert "slurmdbd" not in text
    assert "Gres=" not in text
    assert lab_config.render_gres_conf(options, PATHS) == ""


@pytest.mark.parametrize(("num_gpus", "files"), [(1, "nvidia0"), (8, "nvidia[0-7]")])
def test_gres_conf(num_gpus: int, files: str) -> None:
    text = lab_config.render_gres_conf(LabOptions(gpus_per_node=num_gpus), PATHS)
    assert text.splitlines()[-1] == f"Name=gpu File=/run/some-lab/gpus/{files}"


@pytest.mark.parametrize("num_nodes", [1, 2, 64, lab_config.MAX_NUM_NODES])
def test_hosts_give_each_name_an_address_of_its_own(num_nodes: int) -> None:
    options = LabOptions(num_nodes=num_nodes)
    lines = [line.split() for line in lab_config.render_hosts(options).splitlines()]
    named = {line[1]: line[0] for line in lines if line[0].startswith("10.77.0.")}
    assert list(named) == ["ctl", *options.node_names]
    assert len(set(named.values())) == num_nodes + 1
    assert all(int(address.split(".")[-1]) < 255 for address in named.values())


@pytest.mark.parametrize(
    ("options", "field"),
    [({"num_nodes": 0}, "nodes"), ({"num_nodes": 201}, "nodes"), ({"cpus_per_node": 0}, "cpus-per-node")],
)
def test_options_out_of_range_are_refused(options: dict[str, int], field: str) -> None:
    with pytest.raises(LabError, match=f"^{field} is"):
        LabOptions(**options)


@pytest.mark.parametrize("folder", ["/tmp/a b", "/tmp/a#b", "/tmp/" + "x" * 100])
def test_folders_that_slurm_can_not_take_are_refused(folder: str) -> None:
    with pytest.raises(LabError, match=r"^dir is"):
        LabPaths(Path(folder))


def test_state_survives_being_written(tmp_path: Path) -> None:
    paths = LabPaths(tmp_path)
    state = lab_state.LabState(LabOptions(num_nodes=3), lab_state.boot_id(), True, {"n1": 5})
    state.processes["munged"] = lab_state.ProcessId(7, 8)
    lab_state.save_state(state, paths)
    assert lab_state.load_state(paths) == state


def test_state_of_an_earlier_boot_owns_nothing(tmp_path: Path) -> None:
    paths = LabPaths(tmp_path)
    state = lab_state.LabState(LabOptions(), "earlier", True, {"n1": 5}, {"munged": lab_state.ProcessId(1, 1)})
    lab_state.save_state(state, paths)
    loaded = lab_state.load_state(paths)
    assert loaded is not None
    assert (loaded.namespaces, loaded.processes) == ({}, {})


def test_a_process_is_known_by_its_start_time() -> None:
    with subprocess.Popen(["sleep", "100"]) as child:
        identity = lab_state.identify(child.pid)
        assert identity is not None
        namesake = lab_state.ProcessId(child.pid, identity.start_ticks - 1)
        namesake.send(signal.SIGKILL)
        assert child.poll() is None
        assert (identity.is_alive(), namesake.is_alive()) == (True, False)
        identity.send(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not identity.is_alive()
    identity.send(signal.SIGKILL)  # nothing to signal, no error


def test_a_folder_with_other_things_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(LabError, match=r"thesis\.tex"):
        lab_state.refuse_foreign_dir(LabPaths(tmp_path))
    with pytest.raises(LabError):
        lab_state.remove_dir(LabPaths(tmp_path))
    assert (tmp_path / "thesis.tex").exists()


def test_a_folder_that_other_users_can_not_enter_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "private" / "lab"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o700)
    with pytest.raises(LabError, match=r"mode 700"):
        lab_state.refuse_private_dir(LabPaths(folder))


@pytest.mark.parametrize("arguments", [[], ["--node"], ["--what", "x", "--", "ls"], ["--node", "n1", "--"]])
def test_exec_refuses_what_it_does_not_know(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert lab_exec.main(arguments, "/nowhere") == 2
    assert "usage" in capsys.readouterr().err


def test_exec_without_a_lab_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab_exec.main([f"--dir={tmp_path}", "--", "true"], "/nowhere") == 125
    assert "no lab in" in capsys.readouterr().err


def test_status_without_a_lab(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "lab"
    assert lab_cli.main(["status", "--dir", str(folder)], "/nowhere") == 1
    assert "no lab in" in capsys.readouterr().out
    assert not os.path.exists(folder)
