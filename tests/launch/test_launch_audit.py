"""The quick audit that `launch submit` runs before it submits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import QWEN3, TOKENIZER, write_conversations

from launch import submit
from launch.spec import DEFAULT_SCRIPT, ROOT, JobSpec, Resources


def spec_of(folder: Path, *script_args: str, script: str = str(DEFAULT_SCRIPT)) -> JobSpec:
    return JobSpec(
        name="x",
        run_dir=str(folder / "runs" / "x"),
        executor="local",
        launcher="torchrun",
        script=script,
        script_args=("--config", "run.yaml", *script_args),
        working_dir=str(folder),
        python=sys.executable,
        env={},
        resources=Resources(nodes=2, procs_per_node=1, cpus_per_task=1),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of four conversations; the third row of bad.jsonl has no answer."""
    write_conversations(tmp_path / "train.jsonl", 4)
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    lines[2] = json.dumps({"messages": [{"role": "user", "content": "?"}]})
    (tmp_path / "bad.jsonl").write_text("\n".join(lines) + "\n")
    settings = {"model_config": QWEN3, "tokenizer_name": TOKENIZER, "train_file": "train.jsonl"}
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    return tmp_path


def submitted(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch", "submit", "--executor", "local", "--config", "run.yaml", "--name", "x"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_bad_rows_are_refused_before_anything_is_submitted(folder: Path) -> None:
    done = submitted(folder, "--", "--train_file", "bad.jsonl")
    assert done.returncode == 3
    assert "bad.jsonl:3" in done.stderr
    assert "no message has the role `assistant`" in done.stderr
    assert "--skip-audit" in done.stderr
    assert done.stdout == ""
    assert not (folder / "runs").exists()


def test_a_dry_run_does_not_look_at_the_data(folder: Path) -> None:
    done = submitted(folder, "--dry-run", "--", "--train_file", "bad.jsonl")
    assert (done.returncode, "audit" in done.stderr) == (0, False)


@pytest.mark.ranks
def test_skip_audit_submits_without_a_look(folder: Path) -> None:
    """The run itself then meets the row, and ends with the same code."""
    done = submitted(folder, "--skip-audit", "--wait", "--", "--train_file", "bad.jsonl", "--report_to=none")
    assert done.returncode == 3
    assert "run      x" in done.stdout
    assert "--skip-audit" not in done.stderr
    assert (folder / "runs" / "x" / "submission.json").exists()


def test_good_data_is_described(folder: Path) -> None:
    said = submit.audit_data(spec_of(folder), os.environ)
    assert said.startswith("audit of the data: 4 rows, 0 refused; 4 documents, ")


def test_skipped_rows_are_a_warning(folder: Path) -> None:
    spec = spec_of(folder, "--train_file", "bad.jsonl", "--on_bad_row=skip")
    said = submit.audit_data(spec, os.environ)
    assert "warning: 1 row refused" in said
    assert "bad.jsonl:3" in said


def test_a_tokenizer_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(submit.ScriptRefusedError, match="tokenizer_name") as refused:
        submit.audit_data(spec_of(folder, "--tokenizer_name", str(folder / "none")), os.environ)
    assert refused.value.exit_code == 2


def test_the_data_of_another_script_is_its_own_affair(folder: Path) -> None:
    assert submit.audit_data(spec_of(folder, "--train_file", "bad.jsonl", script="probe.py"), os.environ) == ""


def test_an_audit_without_end_does_not_hinder_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "AUDIT_TIMEOUT_S", 0.1)
    assert "nothing is known" in submit.audit_data(spec_of(folder), os.environ)
