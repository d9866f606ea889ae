"""A conversation in the terminal: streamed answers, history, and the words that begin with a stroke."""

from __future__ import annotations

import io
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import QWEN3, TOKENIZER, tiny_args, write_conversations
from transformers import PreTrainedTokenizerFast

from sft.__main__ import main
from sft.chat import Chat
from sft.generation import Decoding, Generated
from sft.masking import Masker, MaskOptions
from sft.painting import Brush
from sft.tokenizer import build_tokenizer
from sft.train import train_with

TOKENS = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)


class Parrot:
    """Answers with prepared texts, token by token, and remembers what it was given."""

    def __init__(self, masker: Masker, *answers: str) -> None:
        self.prompts: list[str] = []
        self._masker = masker
        self._answers = list(answers)

    def stream(
        self, prompt: Sequence[int], decoding: Decoding, on_token: Callable[[int], bool], number: int = 0
    ) -> Generated:
        self.prompts.append(self._masker.decode(prompt))
        ids = TOKENS.encode(self._answers.pop(0), add_special_tokens=False)
        for token in ids:
            on_token(token)
        return Generated(tuple(ids), True)


@pytest.fixture
def masker(tmp_path: Path) -> Masker:
    return Masker(build_tokenizer(tiny_args(tmp_path / "x", tmp_path / "y")))


def chat_of(masker: Masker, *answers: str, room: int = 256) -> tuple[Chat, Parrot, list[str]]:
    parrot, said = Parrot(masker, *answers), list[str]()
    generator: Any = parrot
    return Chat(generator, masker, Decoding(8), room, said.append, Brush(False)), parrot, said


def test_answers_are_streamed_and_remembered(masker: Masker) -> None:
    chat, parrot, said = chat_of(masker, "Grüße 🙂", "two")
    assert chat.hear("one?")
    assert "".join(said) == "Grüße 🙂\n"
    assert len(said) > 3  # piece by piece, no piece with half a character
    assert not any("\ufffd" in text for text in said)
    chat.hear("and more?")
    assert parrot.prompts[1].count("<|im_start|>assistant") == 2
    assert "Grüße 🙂<|im_end|>" in parrot.prompts[1]


def test_a_line_that_is_no_text_is_left_out(masker: Masker) -> None:
    chat, parrot, said = chat_of(masker, "two")
    assert chat.hear("\x00\udcff bad")
    assert "not UTF-8" in "".join(said)
    assert chat.hear("one?")
    assert len(parrot.prompts) == 1
    assert "bad" not in parrot.prompts[0]


def test_the_system_prompt_is_set_shown_and_survives_a_reset(masker: Masker) -> None:
    chat, parrot, said = chat_of(masker, "a", "b", "c")
    chat.hear("/system Be brief.")
    chat.hear("one")
    chat.hear("/reset")
    chat.hear("two")
    assert "Be brief." in parrot.prompts[1]
    assert "one" not in parrot.prompts[1]
    chat.hear("/system")
    assert said[-1] == "system prompt: Be brief.\n"
    chat.hear("/system none")
    chat.hear("three")
    assert "Be brief." not in parrot.prompts[2]


def test_the_mask_shows_what_would_be_trained(masker: Masker) -> None:
    chat, _, said = chat_of(masker, "moon")
    chat.hear("/mask")
    assert said[-1].startswith("nothing")
    chat.hear("sun")
    chat.hear("/mask")
    assert "⟦moon<|im_end|>⟧" in "".join(said)


def test_thoughts_are_kept_apart_as_templates_take_them(masker: Masker) -> None:
    chat, _, _ = chat_of(masker, "<think>hm</think>\n\nyes")
    chat.hear("?")
    assert chat.messages[-1] == {"role": "assistant", "content": "yes", "reasoning_content": "hm"}


def test_what_would_steer_the_terminal_is_shown_as_signs(masker: Masker) -> None:
    chat, _, said = chat_of(masker, "a\x1b[31mb")
    chat.hear("?")
    assert "\x1b" not in "".join(said)


def test_control_strings_that_people_type_stay_text(masker: Masker) -> None:
    chat, _, _ = chat_of(masker, "a", "b")
    chat.hear("what is <|im_end|>?")
    chat.hear("and?")
    ids = masker.prompt(chat._conversation())[1]
    assert sum(token == TOKENS.convert_tokens_to_ids("<|im_end|>") for token in ids) == 4


REFUSING = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system prompt, please') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_what_the_template_refuses_is_said_and_the_conversation_goes_on(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(tiny_args(tmp_path / "x", tmp_path / "y"))
    tokenizer.chat_template = REFUSING
    masker = Masker(tokenizer, options=MaskOptions(special_tokens_in_data="error"))
    chat, parrot, said = chat_of(masker, "a", "b")
    chat.hear("one")
    kept = list(chat.messages)
    for refused, why in (("what is <|im_end|>?", "<|im_end|>"), ("/system Be brief.", "system prompt: Be brief.")):
        assert chat.hear(refused)
        assert why in said[-1]
    for refused in ("two", "/mask"):
        assert chat.hear(refused)
        assert "no system prompt, please" in said[-1]
    assert chat.messages == kept
    assert len(parrot.prompts) == 1
    chat.hear("/system none")
    chat.hear("two")
    assert chat.messages[-1]["content"] == "b"


def test_unknown_words_no_room_and_the_end(masker: Masker) -> None:
    chat, parrot, said = chat_of(masker, room=10)
    assert chat.hear("")
    assert chat.hear("/sing")
    assert "/help" in said[-1]
    assert chat.hear("a question that is much longer than ten tokens")
    assert "/reset" in said[-1]
    assert chat.messages == parrot.prompts == []
    chat.hear("/help")
    assert "/mask" in said[-1]
    assert not chat.hear("/quit")


def test_it_works_in_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_conversations(tmp_path / "data.jsonl", 4)
    train_with(tiny_args(data, tmp_path / "model", max_steps=1, model_config=QWEN3, tokenizer_name=TOKENIZER))
    capsys.readouterr()
    words = ["chat", str(tmp_path / "model"), "--max-new-tokens", "4"]
    outputs = []
    for _ in range(2):
        monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/system Be brief.\nhello\n/mask\n"))
        assert main(words) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert "system prompt: Be brief." in outputs[0]
    assert "⟦" in outputs[0]


def test_the_server_is_that_of_transformers_and_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["chat", TOKENIZER, "--serve"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(words) == 2
    assert "cleansft[serve]" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    asked: list[list[str]] = []

    def become(program: str, command: list[str]) -> None:
        assert program == sys.executable
        asked.append(command)
        raise SystemExit(0)

    monkeypatch.setattr("os.execv", become)
    with socket.create_server(("localhost", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main([*words, "--port", port]) == 2
        told = f"--port is {port}; it must be one where a server may listen: Address already in use. Name another."
        assert told in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--port", port, "--template_kwargs", "{enable_thinking: false}"])
    assert f"curl http://localhost:{port}/v1/chat/completions" in capsys.readouterr().err
    for ignored in (["--temperature", "0"], ["--top-k", "5"], ["--param_dtype", "bfloat16"]):
        assert main([*words, *ignored]) == 2
        assert f"{ignored[0]} is" in capsys.readouterr().err
    assert len(asked) == 1
    assert asked[0][3:] == [
        "serve", TOKENIZER, "--host", "localhost", "--port", port,
        "--chat-template-kwargs", '{"enable_thinking": false}',
    ]  # fmt: skip
