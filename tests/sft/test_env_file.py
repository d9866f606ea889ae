"""A `.env` where a command is run without the launcher: two names of it are taken, where nobody has set them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import TOKENIZER, tiny_args

import sft.__main__
import sft.evaluate
from sft import env_file
from sft.train import run_training, train_with
from strict_settings import SettingsError

NAMES = ("WANDB_API_KEY", "HF_TOKEN")


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `.env` in the working directory, with both names and another; none of them is set."""
    for name in (*NAMES, "PYTHONSTARTUP"):
        monkeypatch.setenv(name, "to be restored")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    env_file._tell.cache_clear()
    path = tmp_path / ".env"
    path.write_text("export WANDB_API_KEY='one'\nHF_TOKEN=two\nPYTHONSTARTUP=/elsewhere\n")
    path.chmod(0o600)
    return path


def taken() -> list[str | None]:
    return [os.environ.get(name) for name in (*NAMES, "PYTHONSTARTUP")]


def of_the_command() -> None:
    assert sft.__main__.main(["train", "--config", "./none.yaml"]) == 2


def of_the_scripts() -> None:
    with pytest.raises(SettingsError, match="be there"):
        sft.evaluate.main(["./no-model", "no-data.jsonl"])


def of_training() -> None:
    with pytest.raises(SettingsError, match="tokenizer_name is"):
        train_with(tiny_args(Path("data.jsonl"), Path("run"), tokenizer_name="./gone"))


def of_the_function() -> None:
    words = {"model_config": {"model_type": "qwen3"}, "tokenizer_name": TOKENIZER}
    Path("data.jsonl").write_text("no JSON")
    with pytest.raises(Exception, match="JSON"):
        run_training(None, **words, train_file="data.jsonl", output_dir="run", report_to="none", max_steps=1)


@pytest.mark.parametrize("entry", [of_the_command, of_the_scripts, of_training, of_the_function])
def test_each_way_in_reads_it(written: Path, entry: Callable[[], None]) -> None:
    entry()
    assert taken() == ["one", "two", None]


def test_commands_that_ask_nobody_leave_it_alone(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written.chmod(0o644)
    assert sft.__main__.main(["settings"]) == 0
    assert capsys.readouterr().err == ""


def test_what_is_set_stays(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "mine")
    of_the_command()
    assert taken() == ["one", "mine", None]


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"HF_TOKEN=hf_secret\n", 0o644, "mode 0644"),
        (b"HF_TOKEN=hf_secret\nnonsense\n", 0o600, ":2 must be NAME=VALUE"),
        (b"HF_TOKEN=hf_secret\n\xff\n", 0o600, "text in UTF-8"),
    ],
)
def test_one_that_is_not_as_it_must_be_is_told_once_and_not_read(
    written: Path, capsys: pytest.CaptureFixture[str], content: bytes, mode: int, said: str
) -> None:
    written.write_bytes(content)
    written.chmod(mode)
    of_the_command()
    of_the_command()
    told = capsys.readouterr().err
    assert told.count(said) == 1
    assert "hf_secret" not in told
    assert taken() == [None, None, None]
