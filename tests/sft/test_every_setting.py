"""Every setting is documented, is in the reference, and has a test that shows its effect; here are those tests that
stand nowhere else."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from settings_shown import SHOWN
from tiny import QWEN3, tiny_args, write_conversations

from sft import encoding_cache, evaluation, loop, train, world
from sft.__main__ import main
from sft.config import ALIASES, ROOT, Args
from sft.lora_args import LoraArgs
from sft.model import build_model
from sft.settings_page import settings_page
from sft.tokenizer import build_tokenizer
from sft.train import train_with
from strict_settings import SettingsError, field_docs

TESTS = ROOT / "tests"
SCENARIOS = TESTS / "ranks" / "scenarios.py"


def settings() -> Iterator[tuple[str, str]]:
    """Each setting, also as `lora.r`, and what is said of it."""
    for cls, prefix in ((Args, ""), (LoraArgs, "lora.")):
        docs = field_docs(cls)
        yield from ((f"{prefix}{field.name}", docs.get(field.name, "")) for field in dataclasses.fields(cls))


@cache
def definitions(path: Path) -> dict[str, str]:
    """Name → source, of what a file of tests defines at its top."""
    text = path.read_text(encoding="utf-8")
    lines, found = text.splitlines(), {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            found[node.name] = "\n".join(lines[first - 1 : node.end_lineno])
        elif isinstance(node, ast.Assign):
            found |= {ast.unparse(target): ast.unparse(node) for target in node.targets}
    return found


def shown_by(path: Path, name: str) -> str:
    """The source of a test, of what it uses of its own file, and of the scenario that it runs."""
    known, texts, waiting = definitions(path), dict[str, str](), [name]
    while waiting:
        name = waiting.pop()
        texts[name] = known[name]
        waiting += [word for word in re.findall(r"\w+", texts[name]) if word in known and word not in texts]
    text = "\n".join(texts.values())
    return "\n".join([text, *(definitions(SCENARIOS)[each] for each in re.findall(r'run_scenario\("(\w+)"', text))])


def test_each_has_its_words_its_place_in_the_reference_and_a_test() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for name, words in settings():
        assert len(words) > 10, name
        assert f"\n### `{name}`\n" in page, name
    assert sorted(SHOWN) == sorted(name for name, _ in settings())


@pytest.mark.parametrize("name", SHOWN)
def test_the_test_of_its_effect_is_there_and_names_it(name: str) -> None:
    file, test = SHOWN[name]
    setting = name.rpartition(".")[2]
    spellings = [setting, *(alias for alias, of in ALIASES.items() if of == setting)]
    assert re.search(rf"(?<![\w.])({'|'.join(spellings)})\b", shown_by(TESTS / file, test)), SHOWN[name]


def test_the_reference_is_that_of_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings"]) == 0
    assert capsys.readouterr().out == settings_page()
    remedy = "python -m sft settings > docs/settings.md"
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == settings_page(), remedy
    assert "*whole number, at least 1; default `8`; also `per_device_batch_size`*" in settings_page()
    assert "*`right` or `left` or `drop`; default `right`*" in settings_page()
    for page in set(re.findall(r"\]\(([\w.-]+)\)", settings_page())):
        assert (ROOT / "docs" / page).is_file(), page
    assert main(["settings", "seed"]) == 2


def test_code_that_comes_with_a_model_runs_where_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    own = tmp_path / "model"
    args = tiny_args(tmp_path / "none", tmp_path)
    build_model(args, build_tokenizer(args)).model.save_pretrained(own)
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    config = json.loads((own / "config.json").read_text()) | {"model_type": "own", "auto_map": classes}
    (own / "config.json").write_text(json.dumps(config))
    (own / "own.py").write_text(
        "from transformers import Qwen3Config, Qwen3ForCausalLM\n"
        "class OwnConfig(Qwen3Config):\n    model_type = 'own'\n"
        "class OwnForCausalLM(Qwen3ForCausalLM):\n    config_class = OwnConfig\n"
    )
    args = dataclasses.replace(args, model_config=None, model_name_or_path=str(own))
    with pytest.raises(SettingsError, match=r"^model_name_or_path is .*trust_remote_code"):
        build_model(args, build_tokenizer(args))
    trusting = dataclasses.replace(args, trust_remote_code=True)
    assert type(build_model(trusting, build_tokenizer(args)).model).__name__ == "OwnForCausalLM"


def test_the_template_sees_its_variables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chatml = (ROOT / "sft" / "templates" / "chatml.jinja").read_text()
    (tmp_path / "own.jinja").write_text("{{- '<|im_start|>system\\n' ~ mood ~ '<|im_end|>\\n' -}}" + chatml)
    data = write_conversations(tmp_path / "data.jsonl", 1)
    words = ["inspect", str(data), f"--chat_template_path={tmp_path / 'own.jinja'}", "--json"]
    assert main([*words, "--template_kwargs={mood: merry}"]) == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    tokenizer = build_tokenizer(tiny_args(data, tmp_path))
    assert tokenizer.decode(row["input_ids"]).startswith("<|im_start|>system\nmerry<|im_end|>")


def test_rows_are_read_as_the_settings_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = json.dumps({"ask": "sun", "reply": "moon"}) + "\n"
    (tmp_path / "train.jsonl").write_text(row * 5)
    (tmp_path / "eval.jsonl").write_text(row * 5)
    own: dict[str, Any] = {"columns": {"prompt": "ask", "response": "reply"}, "eval_file": str(tmp_path / "eval.jsonl")}
    own |= {"max_train_samples": 3, "max_eval_samples": 2, "max_steps": 1}
    train_with(tiny_args(tmp_path / "train.jsonl", tmp_path / "run", **own))
    said = capsys.readouterr().out
    assert "train.jsonl: 3 documents" in said
    assert "eval.jsonl: 2 documents" in said


def test_rows_are_encoded_by_so_many_processes_into_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Workers(encoding_cache.Workers):
        def __init__(self, task: Any, num_processes: int) -> None:
            asked.append(num_processes)
            super().__init__(task, 1)

    monkeypatch.setattr(encoding_cache, "Workers", Workers)
    data = write_conversations(tmp_path / "data.jsonl", 3)
    own: dict[str, Any] = {"dataset_num_proc": 3, "dataset_cache_dir": str(tmp_path / "cache")}
    train_with(tiny_args(data, tmp_path / "run", max_steps=1, **own))
    assert asked == [3]
    assert len(list((tmp_path / "cache").glob("*/ids.bin"))) == 1


def test_an_evaluation_takes_so_many_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    collate = evaluation.collate_flat

    def counted(documents: Any, pad_token_id: int) -> Any:
        sizes.append(len(documents))
        return collate(documents, pad_token_id)

    monkeypatch.setattr(evaluation, "collate_flat", counted)
    data = write_conversations(tmp_path / "data.jsonl", 6)
    for size in (2, 3):
        own: dict[str, Any] = {"eval_file": str(data), "per_device_eval_batch_size": size, "max_steps": 1}
        train_with(tiny_args(data, tmp_path / f"{size}", **own))
    assert sizes == [2, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("own", "layers", "results", "saved"),
    [
        ({"bf16": True}, torch.float32, torch.bfloat16, torch.float32),
        ({"bf16": False, "save_dtype": "float16"}, torch.float32, torch.float32, torch.float16),
        ({"bf16": None, "param_dtype": "bfloat16"}, torch.bfloat16, torch.bfloat16, torch.float32),
    ],
    ids=["bf16", "save_dtype", "param_dtype"],
)
def test_half_precision_is_what_was_asked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own: dict[str, Any],
    layers: torch.dtype,
    results: torch.dtype,
    saved: torch.dtype,
) -> None:
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    build_engine = train.build_engine

    def watched(*words: Any) -> Any:
        built, engine = build_engine(*words)
        layer = built.model.model.layers[0].mlp.up_proj
        layer.register_forward_hook(lambda module, _, result: seen.append((module.weight.dtype, result.dtype)))
        return built, engine

    monkeypatch.setattr(train, "build_engine", watched)
    data = write_conversations(tmp_path / "data.jsonl", 2)
    train_with(tiny_args(data, tmp_path / "run", max_steps=1, **own))
    assert seen[-1] == (layers, results)
    assert {tensor.dtype for tensor in load_file(tmp_path / "run" / "model.safetensors").values()} == {saved}


def test_feed_forward_blocks_take_so_many_tokens_at_a_time(tmp_path: Path) -> None:
    args = tiny_args(tmp_path / "none", tmp_path, mlp_tile_tokens=4)
    model = build_model(args, build_tokenizer(args)).model
    sizes: list[int] = []
    model.model.layers[0].mlp.up_proj.register_forward_pre_hook(lambda _, given: sizes.append(given[0].shape[-2]))
    with torch.no_grad():
        model(torch.arange(10).unsqueeze(0))
    assert sizes == [4, 4, 2]


def test_collectives_wait_as_long_as_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class BegunError(Exception):
        pass

    def begin(*_: Any, timeout: timedelta, **__: Any) -> None:
        raise BegunError(timeout)

    monkeypatch.setattr(world.dist, "init_process_group", begin)
    with pytest.raises(BegunError) as begun:
        train_with(tiny_args(tmp_path / "none", tmp_path, fsdp=True, ddp_timeout=7))
    assert begun.value.args == (timedelta(seconds=7),)


def test_weights_are_compared_every_so_many_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    monkeypatch.setattr(loop, "check_replicas", lambda model, size, every, step, world: steps.append(step))
    data = write_conversations(tmp_path / "data.jsonl", 2)
    train_with(tiny_args(data, tmp_path / "run", max_steps=5, parameter_check_steps=2))
    assert steps == [2, 4]


def test_so_many_checkpoints_are_kept(tmp_path: Path) -> None:
    data = write_conversations(tmp_path / "data.jsonl", 2)
    train_with(tiny_args(data, tmp_path / "run", max_steps=5, save_steps=1, save_total_limit=3))
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert kept == ["step-00000003", "step-00000004", "step-00000005"]


def test_adapters_are_those_of_the_settings(tmp_path: Path) -> None:
    def model(**lora: Any) -> Any:
        args = tiny_args(tmp_path / "none", tmp_path, model_config=QWEN3, lora=lora)
        return build_model(args, build_tokenizer(args)).model

    adapted = model(r=3, alpha=7.5, dropout=0.25, target_modules=("q_proj",))
    layers = {name: module for name, module in adapted.named_modules() if hasattr(module, "lora_A")}
    assert {name.rpartition(".")[2] for name in layers} == {"q_proj"}
    for layer in layers.values():
        assert layer.lora_A["default"].weight.shape[0] == 3
        assert layer.scaling["default"] == 2.5
        assert layer.lora_dropout["default"].p == 0.25
    assert all(parameter.requires_grad == ("lora_" in name) for name, parameter in adapted.named_parameters())
    assert not any("lora_" in name for name, _ in model(enabled=False, r=3).named_parameters())
