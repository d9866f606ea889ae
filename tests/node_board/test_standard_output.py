"""A full disk behind standard output and error: words are lost, and the exit code is what it would have been."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from node_board import standard_output
from node_board.standard_output import tolerant
from sft.history import History

ROOT = Path(standard_output.__file__).parents[1]


def code_of(*words: str) -> int:
    """Exit code of a Python process whose standard output and error are full."""
    with open("/dev/full", "w") as full:
        environ = {"PYTHONPATH": str(ROOT)}
        return subprocess.run([sys.executable, *words], stdout=full, stderr=full, env=environ, check=False).returncode


@pytest.mark.parametrize("options", [(), ("-u",)])
def test_an_exit_code_stands_where_nothing_can_be_said(options: tuple[str, ...]) -> None:
    assert code_of(*options, str(ROOT / "sft" / "train.py"), "--no_such_setting=1") == 2
    assert code_of(*options, str(ROOT / "sft" / "train.py"), "--help") == 0


def test_a_progress_bar_goes_on_over_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", tolerant(full))
        monkeypatch.setattr(sys, "stdout", tolerant(full))
        with History(tmp_path, 3, is_main=True, tensorboard=False) as history:
            history.start(0)
            for step in range(1, 4):
                history.log_eval({"step": step, "eval_loss": 1.0})
                history.advance(step)
                print("said", flush=True)
    assert (tmp_path / "training_log.json").is_file()


def test_a_stream_writes_as_it_did(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w", encoding="latin-1", errors="replace", buffering=1) as file:
        file.write("first, ")
        stream = tolerant(file)
        stream.write("é€\n")
        stream.write("not ended")
        assert (tmp_path / "a").read_bytes() == b"first, \xe9?\n"
        stream.flush()
        assert (tmp_path / "a").read_bytes() == b"first, \xe9?\nnot ended"


def test_what_is_no_file_stays_as_it_is() -> None:
    text = io.StringIO()
    assert tolerant(text) is text


def test_other_errors_are_raised() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb", buffering=0) as file:
        text = io.TextIOWrapper(file, write_through=True)
        stream = tolerant(text)
        with pytest.raises(BrokenPipeError):
            stream.write("said")
