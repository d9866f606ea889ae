"""The examination inside a job: what becomes of it where a node is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_doctor import answers_of, wrong_hosts

from launch import attempts, doctor, jobs, limits, preflight, script
from launch.errors import LaunchError
from launch.examination import Answers
from launch.records import write_json
from launch.report import status_text
from launch.runs import Run, View, status_of
from launch.spec import JobSpec

MakeSpec = Callable[..., JobSpec]


class Cluster:
    """Stands for Slurm: what it is asked to do is written down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: Answers, num_nodes: int) -> None:
        self.told: list[tuple[str, ...]] = []
        self.refuses = False
        monkeypatch.setattr(doctor, "on_slurm", lambda *_: answers)
        monkeypatch.setattr(limits, "read_limits", lambda name: [limits.Limits("debug", num_nodes=num_nodes)])
        monkeypatch.setattr(jobs, "requeue", lambda job_id: self._do("requeue", job_id))
        monkeypatch.setattr(jobs, "exclude", lambda *words: self._do("exclude", *words))
        monkeypatch.setattr(preflight.signal, "signal", lambda *_: None)

    def _do(self, *words: str) -> None:
        if self.refuses:
            raise LaunchError("scontrol requeue 7 was refused: Requeue is disabled for the job")
        self.told.append(words)


def begun(make_spec: MakeSpec, run_dir: Path, **changes: Any) -> tuple[Path, dict[str, str]]:
    """A run whose first attempt has begun, and the environment of its job."""
    run_dir.mkdir(mode=0o700)
    write_json(run_dir / "job.json", make_spec(nodes=3, run_dir=str(run_dir), preflight=True, **changes).to_json())
    attempts.begin(run_dir, "7", {}, **({"successor": "8"} if changes.get("chain") == "singleton" else {}))
    return run_dir, {"SLURM_JOB_ID": "7", "CLEANSFT_ATTEMPT": "0", "SLURM_JOB_NODELIST": "n[1-3]"}


def test_nodes_that_are_well_are_used(make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, answers_of(3), num_nodes=9)
    run_dir, environ = begun(make_spec, tmp_path / "x", chain="requeue")
    assert preflight.main(run_dir, environ) == 0
    assert cluster.told == []
    assert attempts.read_end(run_dir, 0) is None
    assert json.loads((run_dir / "exit/0/preflight.json").read_text())["wrong_nodes"] == []
    told = status_text(Run(run_dir), status_of(Run(run_dir), lambda: View("running")))
    assert "nodes    examined first: nothing is wrong with them" in told.splitlines()


@pytest.mark.parametrize("chain", ["requeue", "none", "singleton"])
def test_the_job_goes_elsewhere(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chain: str
) -> None:
    answers = answers_of(3)
    wrong_hosts(answers)
    cluster = Cluster(monkeypatch, answers, num_nodes=9)
    run_dir, environ = begun(make_spec, tmp_path / "x", chain=chain)
    assert preflight.main(run_dir, environ) == 17
    successor = [("exclude", "8", "n2")]
    assert cluster.told == (successor if chain == "singleton" else [("requeue", "7"), ("exclude", "7", "n2")])
    end = attempts.read_end(run_dir, 0)
    assert end is not None
    assert (end["again"], end["excluded"]) == (True, ["n2"])
    assert end["reason"] == "n2 excluded: n2 takes n3 for 10.0.0.99"
    assert "#SBATCH --exclude=n2\n" in (run_dir / "submit.sh").read_text()
    assert JobSpec.from_json(json.loads((run_dir / "job.json").read_text())).resources.exclude == "n2"
    attempts.begin(run_dir, "7", {})
    assert [attempt.number for attempt in attempts.history(run_dir, 3)] == [1]  # it counts for nothing


def test_where_there_is_no_elsewhere_the_run_ends(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = answers_of(3)
    wrong_hosts(answers)
    cluster = Cluster(monkeypatch, answers, num_nodes=3)
    run_dir, environ = begun(make_spec, tmp_path / "x", chain="requeue")
    assert preflight.main(run_dir, environ) == 17
    assert cluster.told == []
    end = attempts.read_end(run_dir, 0)
    assert end is not None
    assert not end["again"]
    assert end["reason"].endswith("partition 'debug' has no 3 nodes without n2")


def test_where_slurm_refuses_the_run_ends_and_says_so(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = answers_of(3)
    wrong_hosts(answers)
    cluster = Cluster(monkeypatch, answers, num_nodes=9)
    cluster.refuses = True
    run_dir, environ = begun(make_spec, tmp_path / "x", chain="none")
    assert preflight.main(run_dir, environ) == 17
    end = attempts.read_end(run_dir, 0)
    assert end is not None
    assert not end["again"]
    assert "Requeue is disabled" in end["reason"]


def test_it_is_in_the_script_only_where_it_is_asked_for(make_spec: MakeSpec) -> None:
    assert "launch.preflight" not in script.script_text(make_spec())
    text = script.script_text(make_spec(preflight=True))
    assert text.index("launch.batch begin") < text.index("-m launch.preflight /shared/runs/demo") < text.index("srun")
