"""`python -m sft import-config`: files in the style of TRL, axolotl and LLaMA-Factory become settings that run, and
each of their keys is told of."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from tiny import losses, tiny_args, write_conversations

from sft.__main__ import main
from sft.arguments import load_args
from sft.config import Args
from sft.lora_args import LoraArgs
from sft.migration.mapping import Imported, imported
from sft.migration.tools import TOOLS, tool_of
from sft.setting_rules import REPORTS
from sft.train import train_with
from strict_settings import SettingsError, Source, read_yaml

STYLES = Path(__file__).resolve().parent / "migration"

EXPECTED: dict[str, dict[str, Any]] = {
    "trl-lora.yaml": {
        "model_name_or_path": "base", "param_dtype": "bfloat16", "train_file": "data/chat.jsonl",
        "dataset_num_proc": 8, "max_length": 2048, "packing": True, "train_on": "assistant",
        "output_dir": "runs/qwen-lora", "learning_rate": 2e-4, "lr_scheduler_type": "cosine", "warmup_ratio": 0.03,
        "num_train_epochs": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 8,
        "gradient_checkpointing": True, "bf16": True, "seed": 0, "logging_steps": 25, "report_to": "wandb",
        "lora": {"enabled": True, "r": 32, "alpha": 16, "target_modules": [], "dropout": 0.05},
    },
    "trl-full.yaml": {
        "model_name_or_path": "base", "train_files": {"data/chat.jsonl": 1, "data/more.jsonl": 1}, "train_on": "all",
        "max_length": 128, "learning_rate": 1e-3, "warmup_ratio": 0.1, "optim": "adamw", "weight_decay": 0.01,
        "max_grad_norm": 0.2, "num_train_epochs": 1, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1, "gradient_checkpointing": False, "liger": False, "report_to": "none",
        "logging_steps": 1, "save_steps": 0, "output_dir": "runs/trl-full", "lr_scheduler_type": "linear",
    },
    "axolotl-qlora.yaml": {
        "model_name_or_path": "base", "load_in_8bit": False, "load_in_4bit": True, "train_file": "data/alpaca.jsonl",
        "output_dir": "./outputs/qlora-out", "max_length": 4096, "packing": True, "report_to": "wandb",
        "run_name": "qlora-1", "gradient_accumulation_steps": 4, "per_device_train_batch_size": 2,
        "num_train_epochs": 4, "optim": "adamw", "lr_scheduler_type": "cosine", "learning_rate": 2e-4,
        "train_on": "assistant", "gradient_checkpointing": True, "logging_steps": 1, "warmup_steps": 10,
        "weight_decay": 0.0, "truncation": "drop", "per_device_eval_batch_size": 2,
        "lora": {"enabled": True, "r": 32, "alpha": 16, "dropout": 0.05, "target_modules": []},
    },
    "axolotl-full.yaml": {
        "model_name_or_path": "base", "chat_template_path": "chatml", "train_file": "data/sharegpt.jsonl",
        "eval_file": "data/held_out.jsonl", "max_length": 256, "packing": False, "truncation": "right",
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 3, "optim": "adamw",
        "lr_scheduler_type": "constant", "warmup_ratio": 0.1, "learning_rate": 1e-3, "weight_decay": 0.0,
        "max_grad_norm": 1.0, "bf16": False, "gradient_checkpointing": True, "activation_offload": True,
        "deepspeed": "ds_configs/zero3_offload.json", "eval_steps": 2, "save_total_limit": 1,
        "output_dir": "runs/axolotl-full", "per_device_eval_batch_size": 2,
    },
    "llamafactory-lora.yaml": {
        "model_name_or_path": "base", "trust_remote_code": True,
        "train_files": {"data/alpaca.jsonl": 1, "data/sharegpt.jsonl": 1}, "max_length": 2048,
        "max_train_samples": 1000, "dataset_num_proc": 16, "train_on": "last", "output_dir": "saves/qwen3/lora/sft",
        "logging_steps": 10, "save_steps": 500, "report_to": "none", "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8, "learning_rate": 1e-4, "num_train_epochs": 3.0,
        "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "bf16": True, "ddp_timeout": 180000000,
        "deepspeed": "ds_configs/zero2.json", "per_device_eval_batch_size": 1, "gradient_checkpointing": True,
        "lora": {"enabled": True, "r": 8, "alpha": 16, "target_modules": []},
    },
}  # fmt: skip

LOST = {
    "trl-lora.yaml": {"neftune_noise_alpha", "save_strategy", "push_to_hub", "hub_model_id"},
    "trl-full.yaml": {"datasets[1].fraction", "loss_type"},
    "axolotl-qlora.yaml": {"val_set_size", "saves_per_epoch", "special_tokens.eos_token"},
    "axolotl-full.yaml": {"save_steps", "tiled_mlp"},
    "llamafactory-lora.yaml": {"overwrite_output_dir", "val_size", "eval_steps"},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model, data in three forms, and the five files."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(STYLES, folder, dirs_exist_ok=True)
    data = folder / "data"
    for number, name in enumerate(("chat", "more", "held_out")):
        write_conversations(data / f"{name}.jsonl", 4, seed=number)
    alpaca = {"instruction": "Add.", "input": "2 and 2", "output": "4"}
    (data / "alpaca.jsonl").write_text(json.dumps(alpaca) + "\n")
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    (data / "sharegpt.jsonl").write_text(json.dumps({"conversations": turns}) + "\n")
    train_with(tiny_args(data / "chat.jsonl", folder / "base", max_steps=1))
    return folder


@pytest.fixture(autouse=True)
def working_dir(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


def read(file: str, tool: str | None = None) -> Imported:
    source = read_yaml(file)
    return imported(TOOLS[tool] if tool else tool_of(source.values, file), source, Path(file).resolve().parent)


def of(tool: str, **values: Any) -> Imported:
    return imported(TOOLS[tool], Source(values), Path())


def reasons(found: Imported) -> dict[str, str]:
    return {told.key: told.reason for told in [*found.lost, *found.changed, *found.idle]}


@pytest.mark.parametrize("file", EXPECTED)
def test_a_file_becomes_settings_that_are_valid(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import-config", file, "--output", str(tmp_path / "run.yaml")]) == 0
    assert "is checked. Next" in capsys.readouterr().err
    written = read_yaml(tmp_path / "run.yaml").values
    assert written == EXPECTED[file]
    args = load_args(config=tmp_path / "run.yaml", world_size=1)
    assert args.model_name_or_path == "base"
    assert list(args.train_sources) == list(EXPECTED[file].get("train_files") or [EXPECTED[file]["train_file"]])


@pytest.mark.parametrize("file", EXPECTED)
def test_each_key_is_told_of(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    found, values = read(file), read_yaml(file).values
    told = {one.key.partition(".")[0].partition("[")[0] for one in [*found.lost, *found.idle]}
    assert set(values) <= told | set(found.carried)
    assert {one.key for one in found.lost} == LOST[file]
    assert main(["import-config", file]) == 0
    captured = capsys.readouterr()
    for one in [*found.lost, *found.changed]:
        assert str(one) in captured.out
        assert str(one) in captured.err
    assert all(one.key in captured.out for one in found.idle)


def test_no_key_of_the_files_is_unknown() -> None:
    unknown = [one.key for file in EXPECTED for one in read(file).lost if "not known" in one.reason]
    assert unknown == []


def test_imported_settings_train(tmp_path: Path) -> None:
    settings = str(tmp_path / "run.yaml")
    assert main(["import-config", "trl-full.yaml", "--output", settings]) == 0
    assert main(["train", settings, "--output_dir", str(tmp_path / "out")]) == 0
    assert len(losses(tmp_path / "out")) == 4  # 8 rows of two files, 2 at a time
    used = json.loads((tmp_path / "out" / "arguments.json").read_text())
    assert (used["train_on"], used["max_grad_norm"], used["lr_scheduler_type"]) == ("all", 0.2, "linear")


def test_another_file_is_refused_or_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("seed: 1\n")
    assert main(["import-config", "trl-full.yaml", "--output", str(tmp_path / "run.yaml")]) == 2
    assert "it must be a new file" in capsys.readouterr().err
    assert (tmp_path / "run.yaml").read_text() == "seed: 1\n"
    (tmp_path / "other.yaml").write_text("colour: red\n")
    assert main(["import-config", str(tmp_path / "other.yaml")]) == 2
    assert "--from trl | axolotl | llamafactory" in capsys.readouterr().err
    assert main(["import-config", str(tmp_path / "other.yaml"), "--from", "trl"]) == 0
    said = capsys.readouterr().err
    assert "not carried over: colour ('red'): not known as a key of TRL" in said
    assert "These settings are not checked; with --output RUN.yaml they are." in said
    assert "meant?" not in said
    values = "base_model: base\nsequence_len: 64\nmicro_batch_size: 2\nlearning_rate: 1.0e-4\n"
    (tmp_path / "axolotl.yaml").write_text(values)
    assert main(["import-config", str(tmp_path / "axolotl.yaml"), "--from", "trl"]) == 0
    assert "4 of its keys are known to axolotl, 1 to TRL. Is --from axolotl meant?" in capsys.readouterr().err


def test_what_is_missing_is_left_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "theirs.yaml").write_text("model_name_or_path: base\nstage: sft\ndataset: gone\ntemplate: qwen3\n")
    assert main(["import-config", str(tmp_path / "theirs.yaml"), "--output", str(tmp_path / "run.yaml")]) == 0
    said = capsys.readouterr().err
    assert "dataset_info.json does not have it" in said
    assert "to do:" in said
    assert "train_file is empty" in said


@pytest.mark.parametrize(
    ("tool", "values", "problem"),
    [
        ("axolotl", {"rl": "dpo"}, "rl is 'dpo'; it must be left out"),
        ("llamafactory", {"stage": "ppo"}, "stage is 'ppo'; it must be sft"),
        ("llamafactory", {"finetuning_type": "freeze"}, "it must be lora or full"),
    ],
)
def test_what_is_no_supervised_fine_tuning_is_refused(tool: str, values: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match="it must") as caught:
        of(tool, **values)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("tool", "values", "expected"),
    [
        ("trl", {"lr_scheduler_type": "constant", "warmup_ratio": 0.1}, {"warmup_steps": 0}),
        ("trl", {"max_grad_norm": 0}, {"max_grad_norm": 1e9}),
        ("trl", {"max_steps": 7}, {"max_steps": 7}),
        ("trl", {"truncation_mode": "keep_end"}, {"truncation": "left"}),
        ("trl", {"load_in_4bit": True, "use_peft": True}, {"load_in_4bit": True, "lora.enabled": True}),
        ("trl", {"fsdp": "full_shard auto_wrap"}, {"fsdp": True}),
        (
            "trl",
            {"dataset_name": "me/data", "dataset_config": "en", "eval_strategy": "epoch"},
            {"train_file": "me/data:en", "eval_file": "me/data:en@test"},
        ),
        ("trl", {"report_to": "mlflow"}, {"report_to": "mlflow"}),
        ("trl", {"report_to": ["tensorboard", "trackio"]}, {"report_to": "trackio"}),
        ("llamafactory", {"report_to": ["mlflow", "wandb", "swanlab"]}, {"report_to": ["wandb", "mlflow"]}),
        ("trl", {"report_to": "all"}, {"report_to": "tensorboard"}),
        ("axolotl", {"use_mlflow": True}, {"report_to": "mlflow"}),
        ("axolotl", {"wandb_project": "p", "use_trackio": True}, {"report_to": ["wandb", "trackio"]}),
        ("axolotl", {"use_wandb": False, "use_mlflow": False}, {"report_to": None}),
        ("trl", {"max_length": None}, {"max_length": None}),
        ("trl", {"seed": 1}, {"max_length": 1024}),
        ("axolotl", {"learning_rate": 1.0}, {"max_length": 512, "warmup_ratio": 0.03, "truncation": "drop"}),
        ("axolotl", {"deepspeed": {"zero_optimization": {"stage": 1}}}, {"deepspeed": "ds_configs/zero1.json"}),
        ("axolotl", {"context_parallel_size": 4}, {"sequence_parallel_size": 4}),
        (
            "axolotl",
            {"datasets": [{"path": "me/d", "split": "test", "type": {"field_instruction": "q", "field_output": "a"}}]},
            {"train_file": "me/d@test", "columns": {"instruction": "q", "output": "a"}},
        ),
        ("axolotl", {"datasets": [{"path": "d", "field_messages": "talk"}]}, {"columns": {"messages": "talk"}}),
        ("llamafactory", {"lora_rank": 4}, {"lora.r": 4, "lora.alpha": 8}),
        ("llamafactory", {"quantization_bit": 8}, {"load_in_8bit": True}),
        ("llamafactory", {"dataset_dir": "ONLINE", "dataset": "a/b, c/d"}, {"train_files": {"a/b": 1, "c/d": 1}}),
        ("llamafactory", {"max_samples": 9}, {"max_train_samples": 9, "max_eval_samples": None}),
        ("llamafactory", {"max_samples": 9, "eval_dataset": "d"}, {"max_train_samples": 9, "max_eval_samples": 9}),
        ("llamafactory", {"lora_target": "q_proj,v_proj"}, {"lora.target_modules": ["q_proj", "v_proj"]}),
    ],
)  # fmt: skip
def test_values(tool: str, values: dict[str, Any], expected: dict[str, Any]) -> None:
    settings = of(tool, **values).settings
    assert {name: settings.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("tool", "values", "key", "words"),
    [
        ("trl", {"seed": 1}, "assistant_only_loss", "TRL trains every token"),
        ("trl", {"lr_scheduler_type": "polynomial"}, "lr_scheduler_type", "only cosine"),
        ("trl", {"optim": "adafactor"}, "optim", "there is only adamw"),
        ("trl", {"fp16": True}, "fp16", "bfloat16"),
        ("trl", {"use_peft": False, "lora_r": 8}, "lora_r", "use_peft is off"),
        ("trl", {"resume_from_checkpoint": "out/checkpoint-5"}, "resume_from_checkpoint", "cannot be read"),
        ("trl", {"fsdp": "full_shard offload"}, "fsdp", "nothing is offloaded"),
        ("trl", {"report_to": "comet_ml"}, "report_to", "beside it wandb, mlflow, trackio"),
        ("trl", {"report_to": ["wandb", "comet_ml"]}, "report_to", "without comet_ml"),
        ("trl", {"max_length": None}, "max_length", "truncated, by default to 2,048"),
        ("axolotl", {"mlflow_tracking_uri": "http://here"}, "mlflow_tracking_uri", "MLFLOW_TRACKING_URI"),
        ("axolotl", {"datasets": [{"path": "d", "type": "completion"}]}, "datasets.type", "raw text"),
        ("axolotl", {"datasets": [{"path": "s3://b/x"}]}, "datasets.path", "Copy the data"),
        ("axolotl", {"datasets": [{"path": "d", "roles_to_train": ["user"]}]}, "datasets.roles_to_train", "train_on"),
        ("axolotl", {"early_stopping_patience": 3}, "early_stopping_patience", "held-out"),
        ("axolotl", {"chat_template": "llama3"}, "chat_template", "own template"),
        ("llamafactory", {"packing": True}, "packing", "never see each other"),
        ("llamafactory", {"use_galore": True}, "use_galore", "AdamW"),
        ("llamafactory", {"galore_rank": 16}, "galore_rank", "AdamW"),
    ],
)
def test_remarks(tool: str, values: dict[str, Any], key: str, words: str) -> None:
    assert words in reasons(of(tool, **values))[key]


def test_what_means_something_else_stands_among_the_remarks() -> None:
    found = of("trl", max_length=None)
    assert [told.key for told in found.changed if told.value is None] == ["max_length", "assistant_only_loss"]


@pytest.mark.parametrize("name", REPORTS)
def test_what_we_report_to_is_carried_over(name: str) -> None:
    assert of("trl", report_to=name).settings["report_to"] == name


@pytest.mark.parametrize("name", TOOLS)
def test_the_tables_name_settings_that_are_there(name: str) -> None:
    ours = {field.name for field in fields(Args)} | {f"lora.{field.name}" for field in fields(LoraArgs)}
    named = {word for key in TOOLS[name].keys for word in key.becomes.split(", ") if key.kind == "carried"}
    assert {word for word in named if word != "–" and not word.startswith("with `")} <= ours
    assert {default.setting for default in TOOLS[name].defaults} <= ours
    names = [key.name for key in TOOLS[name].keys]
    assert sorted(names) == sorted(set(names))
