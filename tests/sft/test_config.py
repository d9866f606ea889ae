"""Args: names, aliases, defaults, where files are looked for, and that it stays light."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import TOKENIZER, write_conversations

from sft.arguments import load_args
from sft.config import ALIASES, ROOT, Args
from strict_settings import SettingsError, field_docs

BASE = {"model_config": {"model_type": "qwen3"}, "tokenizer_name": TOKENIZER}


def load(tmp_path: Path, *words: str, **values: Any) -> Args:
    write_conversations(tmp_path / "train.jsonl", 1)
    text = "".join(
        f"{name}: {json.dumps(value)}\n" for name, value in ({"train_file": "train.jsonl"} | BASE | values).items()
    )
    (tmp_path / "run.yaml").write_text(text)
    return load_args(["--config", str(tmp_path / "run.yaml"), *words])


def test_defaults(tmp_path: Path) -> None:
    args = load(tmp_path)
    assert (args.max_length, args.peak_learning_rate, args.warmup_ratio) == (2048, 5e-6, 0.1293)
    assert (args.max_grad_norm, args.compile, args.lora.enabled) == (1.0, False, False)
    assert load(tmp_path, lora={"r": 4}).peak_learning_rate == 1e-4


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    args = load(tmp_path, "--learning_rate", "1e-5", "--lora.dropout", "0.1", learning_rate=1.0, lora={"r": 4})
    assert args.learning_rate == 1e-5
    assert (args.lora.enabled, args.lora.r, args.lora.dropout) == (True, 4, 0.1)


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_other_spellings(tmp_path: Path, alias: str) -> None:
    name = ALIASES[alias]
    value: Any = {"path_chat_template": "chatml", "max_grad": 0.5, "epochs": 2.0, "use_liger_kernel": True}.get(
        alias, 7
    )
    if alias in ("dataset", "validation_file"):
        value = write_conversations(tmp_path / "other.jsonl", 1).name
    if alias == "model_name":
        args = load_args(["--model_name", "owner/name", "--dataset", "owner/data"])
        assert (args.model_name_or_path, args.train_file) == ("owner/name", "owner/data")
        return
    values: dict[str, Any] = {alias: value}
    if alias == "dataset":
        write_conversations(tmp_path / "train.jsonl", 1)
        (tmp_path / "run.yaml").write_text(
            f"model_config: {{model_type: qwen3}}\ntokenizer_name: {TOKENIZER}\ndataset: {value}\n"
        )
        found = load_args(config=tmp_path / "run.yaml").train_file
    else:
        found = getattr(load(tmp_path, **values), name)
    assert str(value) in str(found)


def test_files_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    args = load(tmp_path, deepspeed="ds_configs/zero2.json", chat_template_path="chatml")
    assert args.train_file == str(tmp_path / "train.jsonl")
    assert args.deepspeed == str(ROOT / "ds_configs" / "zero2.json")
    assert args.chat_template_path == str(ROOT / "sft" / "templates" / "chatml.jinja")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eval_file": "gone.jsonl"}, r"run\.yaml:4: eval_file is 'gone\.jsonl'; it must be there"),
        ({"model_name_or_path": "x/y"}, "model_name_or_path is 'x/y'; it must be given, or model_config, and not both"),
        ({"fsdp": True, "deepspeed": "ds_configs/zero1.json"}, "fsdp is true; it must be false with deepspeed"),
        ({"fsdp_shard_size": 2}, "fsdp_shard_size is 2; it must come with fsdp: true"),
        ({"gradient_checkpointing_every": 2}, "gradient_checkpointing_every is 2; it must come with gradient_check"),
        ({"early_stopping_patience": 2}, "it must come with an eval_file"),
        ({"columns": {"questoin": "q"}}, r"columns is .*; it must have no keys but messages, prompt, response"),
        ({"train_file": None}, "train_file is empty; it must be given"),
        ({"train_files": {"train.jsonl": 1}}, "train_file is '.*'; it must not be given with train_files. Keep one"),
        ({"train_file": None, "train_files": {"a.jsonl": 1}}, r"train_files is 'a\.jsonl'; it must be there"),
        ({"train_file": None, "train_files": {"owner/data": 0}}, "train_files.owner/data is 0; it must be above 0"),
        ({"eval_file": "data.parquet@test"}, r"eval_file is 'data\.parquet@test'; it must be there"),
        ({"train_batch_size": 8, "gradient_accumulation_steps": 2}, "it must not be given with train_batch_size"),
        ({"tokenizer_name": None}, "tokenizer_name is empty; it must be given together with model_config"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load(tmp_path, **values)


def test_of_a_name_beside_a_config_only_that_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as refused:
        load(tmp_path, model_name_or_path="x/y", tokenizer_name=None)
    assert [problem.field for problem in refused.value.problems] == ["model_name_or_path"]


def test_several_sources_are_found_beside_the_settings_with_their_splits(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    sources = {"train.jsonl": 1, "data@test": 0.5, "data": 2, "owner/data@test": 1}
    found = load(tmp_path, train_file=None, train_files=sources, eval_file="data@dev")
    places = (f"{tmp_path}/train.jsonl", f"{tmp_path}/data@test", f"{tmp_path}/data", "owner/data@test")
    assert found.train_files == dict(zip(places, sources.values(), strict=True))
    assert found.eval_file == f"{tmp_path}/data@dev"


def test_every_field_is_documented_and_known_to_hf_argument_parser(tmp_path: Path) -> None:
    from transformers import HfArgumentParser

    assert set(field_docs(Args)) == {field.name for field in dataclasses.fields(Args)}
    (parsed,) = HfArgumentParser(Args).parse_args_into_dataclasses(["--learning_rate", "3e-5", "--bf16", "true"])
    assert (parsed.learning_rate, parsed.bf16) == (3e-5, True)
    (parsed,) = HfArgumentParser(Args).parse_dict({"lora": {"r": 4}, "train_file": "x"})
    assert parsed.lora.r == 4


def test_args_are_frozen_and_json(tmp_path: Path) -> None:
    args = load(tmp_path, lora={"r": 4})
    assert json.loads(json.dumps(args.to_json()))["lora"]["r"] == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        args.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("words", [["--help"], ["--check", "--config", "sft/quickstart/run.yaml", "--local_rank=0"]])
def test_settings_are_read_without_torch(words: list[str]) -> None:
    program = (
        "import sys; sys.path.insert(0, '.'); from sft.train import main; code = main(sys.argv[1:])\n"
        "assert not {'torch', 'transformers', 'deepspeed'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
