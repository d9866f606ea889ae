"""JobSpec and Resources: what they refuse, and the way through JSON."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.spec import JobSpec, Resources, name_problems


def test_json_round_trip(make_spec: Callable[..., JobSpec]) -> None:
    spec = make_spec(setup=("module load cuda",))
    assert JobSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@given(st.lists(st.text()), st.dictionaries(st.text(), st.text()))
def test_json_keeps_every_text(words: list[str], env: dict[str, str]) -> None:
    spec = JobSpec("a", "/a", "local", "torchrun", Resources(), "/s.py", tuple(words), "/", "python", env=env)
    assert JobSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize("name", ["a", "run-1.b_c", "x" * 100, "007"])
def test_good_names(name: str) -> None:
    assert not list(name_problems(name))


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "a\n", "ä", "x" * 101, "$(id)", "%j"])
def test_bad_names(name: str) -> None:
    (problem,) = name_problems(name)
    assert "--name" in str(problem)


@pytest.mark.parametrize("name", ["RANK", "MASTER_ADDR", "SLURM_JOB_ID", "CLEANSFT_RUN_DIR", "a-b", "1a", ""])
def test_variables_that_are_refused(make_spec: Callable[..., JobSpec], name: str) -> None:
    assert len(list(make_spec(env={name: "x"}).problems())) == 1


@pytest.mark.parametrize("run_dir", ["/a/%j/b", "/a\\b", "/a\nb"])
def test_paths_that_slurm_would_rewrite(make_spec: Callable[..., JobSpec], run_dir: str) -> None:
    (problem,) = make_spec(run_dir=run_dir).problems()
    assert "Slurm rewrites" in str(problem)


def test_words_that_sbatch_would_split() -> None:
    problems = list(Resources(partition="gpu; rm -rf", constraint="a100|h100", exclude="n[1-3,7]").problems())
    assert [problem.field for problem in problems] == ["partition"]
