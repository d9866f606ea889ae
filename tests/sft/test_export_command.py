"""A run's weights as a folder to hand on: from the final model or a checkpoint, whole, merged or an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import answer_of, tiny_args, write_answers, write_conversations

from sft.__main__ import main
from sft.errors import SftError
from sft.export_check import probe_logits, prove
from sft.train import train_with


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with checkpoints after steps 2 and 4: `full`, and `lora` on a random base."""
    folder = tmp_path_factory.mktemp("runs")
    data = write_conversations(folder / "data.jsonl", 8)
    common: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "eval_file": str(data), "eval_steps": 2}
    train_with(tiny_args(data, folder / "full", **common))
    train_with(tiny_args(data, folder / "lora", **common, lora={"r": 4}, learning_rate=1e-1))
    return folder


def logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    return probe_logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), torch.float32)


def exported(runs: Path, tmp_path: Path, name: str, *words: str) -> Path:
    assert main(["export", str(runs / name), "--output", str(tmp_path / "out"), *words]) == 0
    return tmp_path / "out"


@pytest.mark.parametrize("name", ["full", "lora"])
def test_the_newest_checkpoint_is_the_final_model(runs: Path, tmp_path: Path, name: str) -> None:
    found = exported(runs, tmp_path, name, "--from", "newest")
    for path in (runs / name).glob("*.safetensors"):
        expected, written = load_file(path), load_file(found / path.name)
        assert expected.keys() == written.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(written[key], tensor, rtol=0, atol=1e-6)


def test_an_earlier_checkpoint_is_another_model_that_works(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = exported(runs, tmp_path, "full", "--from", "step-00000002")
    assert "checked: " in capsys.readouterr().out
    assert (logits(found) - logits(runs / "full")).abs().max() > 1e-3
    assert (found / "chat_template.jinja").read_bytes() == (runs / "full" / "chat_template.jinja").read_bytes()
    stops = [
        json.loads((each / "generation_config.json").read_text())["eos_token_id"] for each in (found, runs / "full")
    ]
    assert stops[0] == stops[1]


def test_an_adapter_is_merged(runs: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    found = exported(runs, tmp_path, "lora", "--merge")
    adapted = AutoPeftModelForCausalLM.from_pretrained(runs / "lora")
    expected = probe_logits(adapted, torch.float32)
    assert (logits(found) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not (found / "adapter_config.json").exists()


def test_a_merged_adapter_answers_and_stops_by_itself(tmp_path: Path) -> None:
    data = write_answers(tmp_path / "data.jsonl")
    train_with(tiny_args(data, tmp_path / "base", max_steps=40, logging_steps=40))
    own: dict[str, Any] = {"model_config": None, "model_name_or_path": str(tmp_path / "base"), "lora": {"r": 4}}
    train_with(tiny_args(data, tmp_path / "lora", max_steps=2, save_steps=2, **own))
    assert answer_of(exported(tmp_path, tmp_path, "lora", "--from", "newest", "--merge"), "sun") == ("yes.", True)


def test_number_format_and_shards(runs: Path, tmp_path: Path) -> None:
    found = exported(runs, tmp_path, "full", "--dtype", "bfloat16", "--max-shard-gb", "0.00002")
    shards = sorted(found.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert {tensor.dtype for path in shards for tensor in load_file(path).values()} == {torch.bfloat16}
    assert (logits(found) - logits(runs / "full")).abs().max() < 0.1


def test_what_is_not_what_was_trained_is_refused(runs: Path) -> None:
    expected = logits(runs / "full")
    template = (runs / "full" / "chat_template.jinja").read_text()
    found = prove(runs / "full", expected, template, torch.float32, tolerance=1e-5)
    assert found.template_is_same
    with pytest.raises(SftError, match="logits that differ"):
        prove(runs / "full", expected + 1, template, torch.float32, tolerance=1e-5)
    with pytest.raises(SftError, match="another chat template"):
        prove(runs / "full", expected, template + " ", torch.float32, tolerance=1e-5)


def test_the_card_tells_what_was_trained(runs: Path, tmp_path: Path) -> None:
    words = ["evaluate", str(runs / "full"), str(runs / "data.jsonl"), "--max-new-tokens", "4"]
    assert main(words) == 0
    card = (exported(runs, tmp_path, "full", "--license", "apache-2.0") / "README.md").read_text()
    for text in (
        'license: "apache-2.0"',
        "held-out conversations",
        "`data.jsonl`",
        "| exact match |",
        "sha256",
        "full fine-tuning",
    ):
        assert text in card
    assert str(runs) not in card  # no path of this machine


def test_a_damaged_checkpoint_is_refused(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    shutil.copytree(runs / "full", tmp_path / "damaged")
    (part,) = (tmp_path / "damaged" / "checkpoints" / "step-00000004").glob("part-*.safetensors")
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(bytes(content))
    words = ["export", str(tmp_path / "damaged"), "--from", "newest", "--output", str(tmp_path / "out")]
    assert main(words) == 14
    assert "another sha256" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--from", "step-7"], "There is: step-00000002, step-00000004."),
        (["--merge"], "--merge is"),
        (["--push", "me/it"], "--push is 'me/it'; it must be agreed to"),
        (["--max-shard-gb", "no"], "--max-shard-gb is"),
    ],
)
def test_wrong_options_are_told(
    runs: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(runs / "full"), "--output", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_full_folder_is_not_written_to(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(runs / "full"), "--output", str(runs / "lora")]) == 2
    assert "--output is" in capsys.readouterr().err
    assert main(["export", str(runs)]) == 2
    assert "must be a run directory" in capsys.readouterr().err


def test_nothing_is_uploaded_without_consent_and_privately_with_it(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Hub:
        """Remembers what is asked of the hub."""

        def create_repo(self, name: str, **options: Any) -> None:
            asked.append((name, options))

        def upload_folder(self, **options: Any) -> None:
            asked.append(options)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    exported(runs, tmp_path, "full", "--push", "me/it", "--yes", "--no-check")
    assert asked == [
        ("me/it", {"private": True, "exist_ok": True}),
        {"repo_id": "me/it", "folder_path": str(tmp_path / "out")},
    ]
