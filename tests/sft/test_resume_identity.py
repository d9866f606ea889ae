"""A run goes on only as what it was: each difference is refused with both values, or accepted by its name."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import TOKENIZER, losses, tiny_args, write_conversations

from sft.config import Args
from sft.errors import ChangedError
from sft.lora_args import LoraArgs
from sft.train import main, train_with
from strict_settings import SettingsError


@pytest.fixture
def args(tmp_path: Path) -> Args:
    """Of a run that ended after 2 of 4 steps."""
    found = tiny_args(write_conversations(tmp_path / "train.jsonl", 12), tmp_path / "out", save_steps=2, max_steps=4)
    train_with(found)
    for path in (tmp_path / "out").glob("checkpoints/step-00000004"):
        path.rename(path.with_name("step-00000004.gone"))
    return found


def change_data(args: Args) -> None:
    with Path(str(args.train_file)).open("a") as file:
        file.write(Path(str(args.train_file)).read_text().splitlines()[0] + "\n")


def another_tokenizer(folder: Path, file_name: str, before: str, after: str) -> str:
    folder.mkdir()
    for path in Path(TOKENIZER).iterdir():
        text = path.read_text()
        if path.name == file_name:
            assert before in text
            text = text.replace(before, after, 1)
        (folder / path.name).write_text(text)
    return str(folder)


def test_changed_data_is_refused_with_both_hashes_until_it_is_accepted(args: Args, tmp_path: Path) -> None:
    change_data(args)
    with pytest.raises(ChangedError, match=r"data is [0-9a-f]{64}; it must be [0-9a-f]{64}, as in ") as caught:
        train_with(args)
    assert caught.value.exit_code == 16
    assert "accept_data_change: true" in str(caught.value)
    train_with(replace(args, accept_data_change=True))
    assert len(losses(tmp_path / "out")) == 4


def test_accepting_changed_data_accepts_nothing_else(args: Args) -> None:
    with pytest.raises(SettingsError, match="num_steps is 5; it must be 4"):
        train_with(replace(args, accept_data_change=True, max_steps=5))
    change_data(args)
    with pytest.raises(SettingsError, match="seed is 7; it must be 42"):
        train_with(replace(args, accept_data_change=True, seed=7))


def test_the_same_data_under_another_name_is_the_same(args: Args, tmp_path: Path) -> None:
    moved = tmp_path / "moved.jsonl"
    Path(str(args.train_file)).rename(moved)
    train_with(replace(args, train_file=str(moved)))


@pytest.mark.parametrize(
    ("key", "file_name", "before", "after"),
    [
        ("chat_template", "chat_template.jinja", "<|im_start|>", "{# changed #}<|im_start|>"),
        ("tokenizer", "tokenizer.json", '"lstrip": false', '"lstrip": true'),
    ],
)
def test_a_changed_template_or_tokenizer_is_refused_until_it_is_named(
    args: Args, tmp_path: Path, key: str, file_name: str, before: str, after: str
) -> None:
    changed = replace(args, tokenizer_name=another_tokenizer(tmp_path / "tokenizer", file_name, before, after))
    with pytest.raises(
        ChangedError, match=rf"{key} is [0-9a-f]{{64}}; it must be [0-9a-f]{{64}}, .*override: \[{key}\]"
    ):
        train_with(changed)
    train_with(replace(changed, resume_override=[key]))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("weight_decay", 0.5, r"weight_decay is 0\.5; it must be 0\.0"),
        ("template_kwargs", {"x": 1}, r"template_kwargs is .*; it must be \{\}"),
        ("lora", LoraArgs(r=2), r"lora is .*; it must be None"),
    ],
)
def test_a_changed_setting_is_refused_with_both_values(args: Args, key: str, value: Any, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        train_with(replace(args, **{key: value}))


def test_a_setting_that_is_named_may_change_and_takes_effect(
    args: Args, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = losses(tmp_path / "out")
    train_with(replace(args, max_grad_norm=1e-3, resume_override=["max_grad_norm"]))
    assert "warning: max_grad_norm was 1.0 and is 0.001 from now on" in capsys.readouterr().out
    found = losses(tmp_path / "out")
    assert found[:3] == before[:3]
    assert found[3] != before[3]


def test_a_key_that_is_none_is_refused(args: Args) -> None:
    with pytest.raises(
        SettingsError,
        match=r"resume_override is 'lerning_rate'; it must name settings of the trainer. Did you mean 'learning_rate'",
    ):
        train_with(replace(args, resume_override=["lerning_rate"]))


def test_an_adapter_of_another_size_does_not_fit(args: Args, tmp_path: Path) -> None:
    from sft.errors import CheckpointError

    own = replace(args, output_dir=str(tmp_path / "lora"), lora=LoraArgs(r=4))
    train_with(own)
    with pytest.raises(CheckpointError, match="It is of another model"):
        train_with(replace(own, lora=LoraArgs(r=2), resume_override=["lora"]))


def test_the_command_line_takes_both_settings(args: Args, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        f"--{name}={json.dumps(value) if not isinstance(value, str) else value}"
        for name, value in dataclasses.asdict(args).items()
        if value not in (None, {}, []) and name not in ("lora", "seed", "accept_data_change")
    ]
    change_data(args)
    assert main(words) == 16
    assert "error: data is " in capsys.readouterr().err
    assert main([*words, "--accept_data_change=true", '--resume_override=["seed"]', "--seed=3"]) == 0
    assert "seed was 42 and is 3" in capsys.readouterr().out
