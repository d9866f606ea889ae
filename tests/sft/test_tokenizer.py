"""Tokenizers from names and bare files, and the stop tokens that a model's own settings name."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import TOKENIZER

from sft.config import ROOT, Args
from sft.formats import Conversation
from sft.masking import Masker
from sft.run_masker import masker_of
from sft.tokenizer import build_tokenizer, pad_token_id, stop_tokens
from strict_settings import SettingsError

ROLE_TOKENS = (  # as GLM has it: a turn ends where the next role's token begins
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_a_bare_tokenizer_file_is_enough(tmp_path: Path) -> None:
    shutil.copy(Path(TOKENIZER) / "tokenizer.json", tmp_path)
    found = build_tokenizer(Args(tokenizer_name=str(tmp_path), chat_template_path="sft/templates/chatml.jinja"))
    assert found.is_fast
    named = build_tokenizer(Args(tokenizer_name=str(tmp_path), chat_template_path="chatml"))
    assert named.chat_template == found.chat_template
    assert "<|im_start|>" in found.chat_template
    assert pad_token_id(found) == 0


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"], ids=["a folder", "not UTF-8"])
def test_a_chat_template_that_cannot_be_read_is_a_mistake_in_the_settings(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "template.jinja"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(
        SettingsError, match=r"chat_template_path is '.*template\.jinja'; it must be a text file in UTF-8"
    ):
        build_tokenizer(Args(tokenizer_name=TOKENIZER, chat_template_path=str(path)))


def test_a_folder_of_the_generic_class_is_loaded_as_auto_tokenizer_does_but_without_torch() -> None:
    from transformers import AutoTokenizer

    found, expected = build_tokenizer(Args(tokenizer_name=TOKENIZER)), AutoTokenizer.from_pretrained(TOKENIZER)
    assert type(found) is type(expected)
    assert found.init_kwargs.keys() == expected.init_kwargs.keys()
    assert found.chat_template == expected.chat_template
    assert found.special_tokens_map == expected.special_tokens_map
    assert found.backend_tokenizer.to_str() == expected.backend_tokenizer.to_str()
    code = (
        "import sys\nfrom sft.config import Args\nfrom sft.tokenizer import build_tokenizer, stop_tokens\n"
        "args = Args(tokenizer_name=sys.argv[1])\nstop_tokens(args, build_tokenizer(args))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, TOKENIZER], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    ("file", "more"),
    [
        ("config.json", {"model_type": "qwen2"}),
        ("tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}}),
    ],
)
def test_whatever_could_name_another_class_is_left_to_auto_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, more: dict[str, Any]
) -> None:
    folder = shutil.copytree(TOKENIZER, tmp_path / "tokenizer")
    known = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(known | more))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda name, **_: f"auto: {name}")
    assert build_tokenizer(Args(tokenizer_name=str(folder))) == f"auto: {folder}"


def test_the_models_own_stop_tokens_end_turns_also_where_the_next_message_writes_them(tmp_path: Path) -> None:
    args = Args(model_name_or_path=str(tmp_path))
    tokenizer = build_tokenizer(Args(tokenizer_name=TOKENIZER))
    assert stop_tokens(args, tokenizer) == ()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    tokenizer.chat_template = ROLE_TOKENS
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokenizer.eos_token_id or 0, user]}))
    assert "<|user|>" in stop_tokens(args, tokenizer)

    turns = zip(("user", "assistant") * 2, ("q", "a", "r", "b"), strict=True)
    talk = Conversation(tuple({"role": role, "content": text} for role, text in turns), "t:1")

    def trained(masker: Masker) -> list[str]:
        (document,) = masker.documents(talk)
        flags = zip(document.input_ids, document.trained, strict=True)
        return [tokenizer.decode([token]) for token, flag in flags if flag]

    assert trained(Masker(tokenizer)) == ["a", "b"]
    assert trained(Masker(tokenizer, stop_tokens=stop_tokens(args, tokenizer))) == ["a", "<|user|>", "b"]
    assert trained(masker_of(args, tokenizer)) == ["a", "<|user|>", "b"]
    assert trained(masker_of(args, tokenizer, has_model=False)) == ["a", "b"]


def test_all_that_shows_what_is_trained_has_the_masker_of_the_training() -> None:
    makers = {path.stem for path in (ROOT / "sft").glob("*.py") if re.search(r"\bMasker\(", path.read_text())}
    assert makers == {"masking", "run_masker"}
