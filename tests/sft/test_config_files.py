"""Settings as people write them: other spellings, files beside files, wrong batch sizes, the script's options."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import TOKENIZER, write_conversations

from sft.arguments import load_args
from sft.config import ROOT, Args
from sft.lora_args import LoraArgs
from sft.train import main
from strict_settings import SettingsError

WORDS = ["--model_config", "{model_type: qwen3}", "--tokenizer_name", TOKENIZER]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory apart from that of the settings file, with data in both."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        write_conversations(tmp_path / name / f"{name}.jsonl", 1)
        write_conversations(tmp_path / name / "both.jsonl", 1)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def load(folder: Path, text: str, *words: str) -> Args:
    base = f"model_config: {{model_type: qwen3}}\ntokenizer_name: {TOKENIZER}\n"
    (folder / "there" / "run.yaml").write_text(base + text)
    return load_args(words, config=folder / "there" / "run.yaml")


def refusal(folder: Path, text: str, *words: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(folder, text, *words)
    return str(caught.value).replace(f"{folder}/", "")


SPELLINGS: list[tuple[str, str, Any]] = [
    ("max_seq_length", "max_length", 64),
    ("max_length", "max_length", 64),
    ("train_file", "train_file", "owner/data"),
    ("dataset", "train_file", "owner/data"),
    ("per_device_batch_size", "per_device_train_batch_size", 3),
    ("accumulation_steps", "gradient_accumulation_steps", 3),
    ("epochs", "num_train_epochs", 3),
    ("max_grad", "max_grad_norm", 0.5),
    ("path_chat_template", "chat_template_path", str(ROOT / "sft/templates/chatml.jinja")),
]


@pytest.mark.parametrize(("spelling", "name", "value"), SPELLINGS, ids=[spelling for spelling, _, _ in SPELLINGS])
def test_every_spelling_of_the_issue_works_in_the_file_and_as_an_option(
    folder: Path, spelling: str, name: str, value: Any
) -> None:
    data = "" if name == "train_file" else "train_file: owner/data\n"
    assert getattr(load(folder, f"{data}{spelling}: {value}\n"), name) == value
    assert getattr(load(folder, data, f"--{spelling}", str(value)), name) == value


def test_the_first_word_may_be_the_data_or_the_settings_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    (tmp_path / "run.yaml").write_text(f"model_name: owner/name\ntrain_file: {tmp_path}/rows.jsonl\n")
    by_data = load_args([f"{tmp_path}/rows.jsonl", "--model_name", "owner/name"])
    assert by_data == load_args([f"{tmp_path}/run.yaml"])
    with pytest.raises(SettingsError, match=r"--config is .*; it must be given once"):
        load_args([f"{tmp_path}/run.yaml", "--config", "other.yaml"])


def test_model_name_is_model_name_or_path() -> None:
    assert load_args(["--model_name=owner/name", "--dataset=owner/data"]).model_name_or_path == "owner/name"


def test_an_option_wins_over_the_file_whatever_the_spelling(folder: Path) -> None:
    text = "train_file: there.jsonl\nmax_seq_length: 64\nlora: {r: 4, alpha: 8, dropout: 0.1}\n"
    args = load(folder, text, "--max_length", "32", "--lora.alpha", "9")
    assert args.max_length == 32
    assert args.lora == LoraArgs(enabled=True, r=4, alpha=9.0, dropout=0.1)


def test_lora_is_off_unless_named_and_can_be_kept_off() -> None:
    assert not load_args([*WORDS, "--dataset", "a/b"]).lora.enabled
    assert load_args([*WORDS, "--dataset", "a/b", "--lora", "{}"]).lora.enabled
    assert not load_args([*WORDS, "--dataset", "a/b", "--lora", '{"r": 4, "enabled": false}']).lora.enabled


def test_a_learning_rate_that_is_given_wins_over_both_defaults() -> None:
    assert Args(learning_rate=3e-4).peak_learning_rate == 3e-4
    assert Args(learning_rate=3e-4, lora=LoraArgs()).peak_learning_rate == 3e-4
    assert Args(lora=LoraArgs(enabled=False)).peak_learning_rate == 5e-6


def test_a_file_is_looked_for_in_the_working_directory_and_then_beside_the_settings(folder: Path) -> None:
    assert load(folder, "train_file: there.jsonl\n").train_file == str(folder / "there" / "there.jsonl")
    assert load(folder, "train_file: here.jsonl\n").train_file == "here.jsonl"
    assert load(folder, "train_file: both.jsonl\n").train_file == "both.jsonl"
    assert load(folder, "", "--train_file", "there.jsonl").train_file == str(folder / "there" / "there.jsonl")


def test_settings_named_by_a_relative_path_find_their_neighbours(folder: Path) -> None:
    load(folder, "train_file: there.jsonl\n")
    args = load_args(["--config=../there/run.yaml"])
    assert Path(str(args.train_file)).resolve() == folder / "there" / "there.jsonl"


def test_what_can_be_a_hub_name_is_not_taken_for_a_missing_file(folder: Path) -> None:
    assert load(folder, "dataset: owner/data\n").train_file == "owner/data"
    assert load(folder, "dataset: data\n").train_file == "data"


@pytest.mark.parametrize("value", ["gone.jsonl", "./gone", "/gone/data", "a/b/c", "~/gone"])
def test_a_missing_file_is_named_with_its_line(folder: Path, value: str) -> None:
    message = refusal(folder, f"seed: 1\ntrain_file: {value}\n")
    assert message.startswith(f"there/run.yaml:4: train_file is '{value}'; it must be there.")
    assert message.count("\n") == 0


LATER: list[tuple[str, list[str], str]] = [
    ("activation_offload: true\ngradient_checkpointing: true\n", [], "run.yaml:5: activation_offload is true;"),
    ("lora: {r: 4, target_modules: [nope]}\n", [], "run.yaml:5: lora.target_modules is ('nope',);"),
    ("liger: true\n", ["--liger", "true"], "--liger: liger is true; it must be false on a cpu."),
]


@pytest.mark.parametrize(("text", "words", "expected"), LATER, ids=["file", "nested", "option"])
def test_what_shows_with_the_model_alone_is_told_with_its_place_too(
    folder: Path, text: str, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = "hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 2"
    model = f"model_config: {{model_type: qwen3, {sizes}}}\n"
    rest = f"tokenizer_name: {TOKENIZER}\ntrain_file: here.jsonl\nchat_template_path: chatml\n"
    Path("run.yaml").write_text(model + rest + text)
    assert main(["--config", "run.yaml", "--output_dir", str(folder / "out"), *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {expected}")


def test_what_the_machine_lacks_is_told_at_once_and_before_the_data_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed
    options = {"liger": "true", "gradient_checkpointing": "true", "activation_offload": "true", "optim": "adamw_8bit"}
    Path("here.jsonl").write_text("no data")
    words = [f"--{name}={value}" for name, value in options.items()]
    assert main(["here.jsonl", *WORDS, "--output_dir", str(folder / "out"), *words]) == 2
    told = [line.split(";")[0].removeprefix("error: ") for line in capsys.readouterr().err.splitlines()]
    assert told == [
        "--liger: liger is true",
        "--activation_offload: activation_offload is true",
        "--optim: optim is 'adamw_8bit'",
    ]


def test_heads_that_cannot_be_shared_out_are_refused_with_the_settings(folder: Path) -> None:
    model = "--model_config={model_type: qwen3, num_attention_heads: 6}"
    words = ["--train_file=here.jsonl", "--sequence_parallel_size=4", model]
    message = refusal(folder, "", *words)
    assert "sequence_parallel_size is 4; it must divide the model's 6 attention heads." in message


def test_tiles_under_zero3_are_refused_before_anything_starts(folder: Path) -> None:
    text = "train_file: here.jsonl\nmlp_tile_tokens: 64\ndeepspeed: ds_configs/zero3.json\n"
    message = refusal(folder, text)
    assert message.startswith("there/run.yaml:4: mlp_tile_tokens is 64; it must not be given with ZeRO-3.")
    assert load(folder, text, "--deepspeed", "ds_configs/zero2.json").mlp_tile_tokens == 64


def test_a_missing_file_is_named_by_its_other_spelling_and_by_its_option(folder: Path) -> None:
    message = refusal(folder, "dataset: gone.jsonl\nchat_template_path: gone.jinja\n", "--eval_file", "gone.json")
    assert [line.split(" is ")[0] for line in sorted(message.splitlines())] == [
        "--eval_file: eval_file",
        "there/run.yaml:3: train_file",
        "there/run.yaml:4: chat_template_path",
    ]


def test_everything_that_is_wrong_is_told_at_once(folder: Path) -> None:
    text = "train_file: here.jsonl\nmax_length: 010\nlerning_rate: 1e-5\nlora: {r: 0}\nbf16: yes\nlearning_rate: .nan\n"
    lines = sorted(refusal(folder, text, "--seed", "-1").splitlines())
    assert [line.split(" is ")[0] for line in lines] == [
        "--seed: seed",
        "there/run.yaml:4: max_length",
        "there/run.yaml:5: the key 'lerning_rate'",
        "there/run.yaml:6: lora.r",
        "there/run.yaml:7: bf16",
        "there/run.yaml:8: learning_rate",
    ]
    assert "Did you mean 'learning_rate'?" in lines[2]


@pytest.mark.parametrize(
    ("world_size", "batch", "message"),
    [
        (2, 10, "must be a multiple of 4 = 2 processes × 2 per_device_train_batch_size. Take 8 or 12."),
        (4, 6, "must be a multiple of 8 = 4 processes × 2 per_device_train_batch_size. Take 8."),
    ],
)
def test_batch_arithmetic_is_explained_with_sizes_that_work(world_size: int, batch: int, message: str) -> None:
    args = Args(train_batch_size=batch, per_device_train_batch_size=2)
    with pytest.raises(SettingsError) as caught:
        args.accumulation_steps(world_size)
    assert message in str(caught.value)


def test_accumulation_follows_from_the_whole_batch() -> None:
    args = Args(train_batch_size=24, per_device_train_batch_size=2)
    assert [args.accumulation_steps(world_size) for world_size in (1, 2, 4, 12)] == [12, 6, 3, 1]
    assert Args(gradient_accumulation_steps=5).accumulation_steps(7) == 5


def test_processes_that_share_their_rows_count_once() -> None:
    args = Args(train_batch_size=24, per_device_train_batch_size=2, sequence_parallel_size=4)
    assert [args.accumulation_steps(world_size) for world_size in (4, 8, 16)] == [12, 6, 3]
    assert [args.rows_per_step(world_size) for world_size in (4, 8, 16)] == [24, 24, 24]
    assert Args(sequence_parallel_size=2, gradient_accumulation_steps=3).rows_per_step(4) == 2 * 8 * 3
    with pytest.raises(SettingsError, match="must be a multiple of 4 = 2 sequence groups × 2"):
        Args(train_batch_size=6, per_device_train_batch_size=2, sequence_parallel_size=4).rows_per_step(8)


@pytest.mark.parametrize(
    ("size", "world_size", "message"),
    [
        (4, 6, "sequence_parallel_size is 4; it must divide the number of processes, 6. Take 1 or 2 or 3 or 6, or "),
        (2, 1, "it must divide the number of processes, 1. Take 1, or start a multiple of 2 processes."),
    ],
)
def test_groups_that_do_not_fit_the_world_are_refused(size: int, world_size: int, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Args(sequence_parallel_size=size).accumulation_steps(world_size)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config"], "--config is empty; it must be followed by a YAML file."),
        (["--config", "--seed", "3"], "--config is empty; it must be followed by a YAML file."),
        (["--config=a.yaml", "--config", "b.yaml"], "it must be given once."),
        (["--config", "gone.yaml"], "the settings file is 'gone.yaml'; it must be a file that can be read."),
    ],
)
def test_a_settings_file_is_given_once_and_must_be_there(words: list[str], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_args(words)
    assert message in str(caught.value)


@pytest.mark.parametrize("option", ["--local_rank=0", "--local-rank=1"])
def test_what_launchers_add_to_the_options_is_taken(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(ROOT / "sft/quickstart/run.yaml"), "--check", option]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("rank", ["0", "1"])
def test_wrong_settings_end_with_code_2_and_are_told_in_the_log_of_every_rank(
    rank: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    assert main(["--sede", "3"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: the option --sede is unknown; it must be a known setting. Did you mean 'seed'?"
    ]


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["--zero", "2"], "Write --deepspeed ds_configs/zero2.json (or zero0, zero1, zero3);"),
        (["--procs-per-node=2"], "It is an option of `python -m launch`, or of `launch:` in the settings file."),
    ],
)
def test_an_option_of_the_launcher_is_told_as_one(
    words: list[str], remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    option = words[0].partition("=")[0]
    rule = "is unknown; it must be a known setting."
    assert capsys.readouterr().err.startswith(f"error: the option {option} {rule} {remedy}")


def test_a_batch_that_does_not_fit_the_world_is_refused_by_the_check(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    words = ["--config", str(ROOT / "sft/quickstart/run.yaml"), "--train_batch_size", "64", "--check"]
    assert main(words) == 2
    assert "--train_batch_size: train_batch_size is 64; it must be a multiple of 48" in capsys.readouterr().err


def test_the_script_by_its_path_checks_settings_from_any_folder_without_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    (tmp_path / "transformers.py").write_text("raise ImportError('transformers was imported')")
    (tmp_path / "run.yaml").write_text("train_file: gone.jsonl\nmodel_name: a/b\nmax_length: true\n")
    script = [sys.executable, str(ROOT / "sft/train.py")]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*script, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    wrong = run("--config", "run.yaml", "--check")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: run.yaml:3: max_length is true; it must be a whole number")
    helped = run("--help")
    assert helped.returncode == 0
    assert "--learning_rate" in helped.stdout
    assert "path_chat_template = chat_template_path" in helped.stdout
