"""A run's weights as a folder to hand on: from the final model or a checkpoint, whole, merged or an adapter."""

from __future__ import annotations

import json
import re
import resource
import shutil
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import answer_of, tiny_args, write_answers, write_conversations

from sft.__main__ import main
from sft.errors import SftError
from sft.export_check import probe_logits, prove
from sft.lora_args import LoraArgs
from sft.model import build_model, require_mergeable
from sft.tokenizer import build_tokenizer
from sft.train import train_with
from strict_settings import SettingsError


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


@pytest.mark.parametrize(("name", "source"), [("full", "newest"), ("full", "final"), ("lora", "final")])
def test_what_was_trained_with_the_kernels_of_a_gpu_is_exported_without_one(
    runs: Path, tmp_path: Path, name: str, source: str
) -> None:
    shutil.copytree(runs / name, tmp_path / name)
    settings = json.loads((runs / name / "arguments.json").read_text())
    settings |= {"liger": True, "attn_implementation": "flash_attention_2", "mlp_tile_tokens": 8}
    settings |= {"gradient_checkpointing": True, "activation_offload": True, "load_in_4bit": name == "lora"}
    (tmp_path / name / "arguments.json").write_text(json.dumps(settings))
    found = exported(tmp_path, tmp_path, name, "--from", source)
    (weights,) = (path for path in (runs / name).glob("*model.safetensors"))
    for key, tensor in load_file(weights).items():
        torch.testing.assert_close(load_file(found / weights.name)[key], tensor, rtol=0, atol=1e-6)


def test_number_format_and_shards(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = exported(runs, tmp_path, "full", "--dtype", "bfloat16", "--max-shard-gb", "0.00002")
    said = capsys.readouterr().out
    shards = sorted(found.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert {tensor.dtype for path in shards for tensor in load_file(path).values()} == {torch.bfloat16}
    expected = logits(runs / "full")
    rounding = (logits(found) - expected).abs().max() / expected.abs().max()
    assert 1e-4 < rounding < 0.1
    told = re.search(
        r"trained weights in bfloat16 to 0 of the largest, and differ by (\S+) from those in float32", said
    )
    assert told is not None
    assert 1e-4 < float(told[1]) < 0.1  # in bfloat16 it computes otherwise, too
    assert told[0] in (found / "README.md").read_text()


def test_what_is_not_what_was_trained_is_refused(runs: Path) -> None:
    expected = logits(runs / "full")
    template = (runs / "full" / "chat_template.jinja").read_text()
    found = prove(runs / "full", expected, template, torch.float32, tolerance=1e-5, exact=expected)
    assert found.num_tokens == len(expected)
    with pytest.raises(SftError, match="logits that differ"):
        prove(runs / "full", expected + 1, template, torch.float32, tolerance=1e-5, exact=expected)
    with pytest.raises(SftError, match="another chat template"):
        prove(runs / "full", expected, template + " ", torch.float32, tolerance=1e-5, exact=expected)


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
    summary = json.loads((runs / "full" / "training_log.json").read_text())[-1]
    assert f"- {summary['num_trained_tokens']:,} of the {summary['num_tokens']:,} tokens seen so far" in card


@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_final_model_without_its_weights_is_none(
    runs: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / name, tmp_path / name)
    for path in (tmp_path / name).glob("*.safetensors"):
        path.unlink()  # as where the run was killed between configuration and weights
    words = ["export", str(tmp_path / name), "--no-check", "--output"]
    assert main([*words, str(tmp_path / "final"), "--from", "final"]) == 2
    assert "has written no final model yet" in capsys.readouterr().err
    assert main(["chat", str(tmp_path / name)]) == 2
    assert "hold a finished model" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "newest")]) == 0
    assert "after step 4" in (tmp_path / "newest" / "README.md").read_text()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("layer", "why"), [("embed_tokens", "not linear"), ("lm_head", "another layer has too"), ("q_proj", "")]
)
def test_what_cannot_be_merged_is_refused_before_it_is_trained_or_written(tmp_path: Path, layer: str, why: str) -> None:
    lora = LoraArgs(r=2, target_modules=(layer,), merge=True)
    args = tiny_args(tmp_path / "data.jsonl", tmp_path / "run", lora=lora)
    tokenizer = build_tokenizer(args)
    if not why:
        build_model(args, tokenizer)
        return
    with pytest.raises(SettingsError, match=f"lora.merge is true; it must be false with an adapter on {layer}.*{why}"):
        build_model(args, tokenizer)
    model = build_model(replace(args, lora=replace(lora, merge=False)), tokenizer).model
    with pytest.raises(SettingsError, match="--merge is true"):
        require_mergeable(model, "--merge")


def test_a_damaged_checkpoint_is_refused(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        (["--push", "my model!", "--yes"], "--push is 'my model!'; it must be a name on the hub"),
        (["--public"], "--public is true; it must come with --push"),
        (["--max-shard-gb", "no"], "--max-shard-gb is"),
        (["--max-shard-gb", "inf"], "--max-shard-gb is"),
    ],
)
def test_wrong_options_are_told(
    runs: Path, tmp_path: Path, words: list[str], message: str, hub: type[Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(runs / "full"), "--output", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert hub.asked == []


@pytest.mark.parametrize("words", [["--dtype", "float16"], ["--max-shard-gb", "1"]])
def test_what_an_adapter_does_not_heed_is_refused(
    runs: Path, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(runs / "lora"), "--output", str(tmp_path / "out"), *words]) == 2
    assert f"{words[0]} is '{words[1]}'; it must be left out for an adapter" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_full_folder_is_not_written_to(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(runs / "full"), "--output", str(runs / "lora")]) == 2
    assert "--output is" in capsys.readouterr().err
    assert main(["export", str(runs)]) == 2
    assert "must be a run directory" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_to_is_told_before_a_model_is_loaded(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("sft.trained_weights.weights_of", lambda *_: pytest.fail("the model was loaded"))
    assert main(["export", str(runs / "full"), "--output", str(tmp_path / "file" / "out")]) == 13
    assert "cannot be written: Not a directory. Choose another --output." in capsys.readouterr().err


def test_half_a_model_is_not_left_there(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", str(runs / "full"), "--output", str(tmp_path / "out")]
    weights = (runs / "full" / "model.safetensors").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (weights // 2, before[1]))
    try:
        assert main(words) == 13
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    assert main(words) == 0
    assert (tmp_path / "real" / "model.safetensors").is_file()
    assert "# out\n" in (tmp_path / "real" / "README.md").read_text()


def test_nobody_uploads_without_a_token(
    runs: Path, tmp_path: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert main(["export", str(runs / "full"), "--output", str(tmp_path / "out"), "--push", "me/it", "--yes"]) == 2
    assert "it must come with a token of the hub. Set HF_TOKEN" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert hub.asked == []


class Hub:
    """Stands in for the hub: remembers what is asked of it, and keeps a repository that is there as it was."""

    asked: list[Any]
    private: dict[str, bool]
    """Repository → whether only some see it."""

    def create_repo(self, name: str, **options: Any) -> None:
        self.asked.append((name, options))
        self.private.setdefault(name, options["private"])

    def repo_info(self, name: str) -> Any:
        return types.SimpleNamespace(private=self.private[name])

    def upload_folder(self, **options: Any) -> None:
        self.asked.append(options)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    """An empty hub, and somebody who is known to it."""
    Hub.asked, Hub.private = [], {}
    monkeypatch.setenv("HF_TOKEN", "a token")
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    return Hub


def test_nothing_is_uploaded_without_consent_and_privately_with_it(runs: Path, tmp_path: Path, hub: type[Hub]) -> None:
    exported(runs, tmp_path, "full", "--push", "me/it", "--yes", "--no-check")
    assert hub.asked == [
        ("me/it", {"private": True, "exist_ok": True}),
        {"repo_id": "me/it", "folder_path": str(tmp_path / "out")},
    ]


@pytest.mark.parametrize(("words", "was_private"), [((), False), (("--public",), True)])
def test_nothing_is_uploaded_where_others_see_it_than_was_agreed_to(
    runs: Path, tmp_path: Path, hub: type[Hub], capsys: pytest.CaptureFixture[str], words: tuple[str, ...],
    was_private: bool,
) -> None:  # fmt: skip
    hub.private["me/it"] = was_private
    output = ["--output", str(tmp_path / "out")]
    assert main(["export", str(runs / "full"), *output, "--push", "me/it", "--yes", "--no-check", *words]) == 2
    assert "as was agreed to" in capsys.readouterr().err
    assert [each for each in hub.asked if isinstance(each, dict)] == []
