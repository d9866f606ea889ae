"""The bundled ChatML template on all that a conversation may hold: what it writes, and what of it is trained."""

from __future__ import annotations

import json
import os
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from tiny import TOKENIZER

from sft.config import ROOT
from sft.formats import Conversation
from sft.masking import Document, Masker
from sft.sources import read_conversations

TEMPLATE = (ROOT / "sft" / "templates" / "chatml.jinja").read_text(encoding="utf-8")
ASKED = {"role": "user", "content": "Weather?"}
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}
CALLS = [
    {"type": "function", "function": {"name": "look", "arguments": {"city": "Zürich", "days": [1, None]}}},
    {"type": "function", "id": "c2", "function": {"name": "look", "arguments": {}}},
]
CALLED = {"role": "assistant", "content": "", "reasoning_content": "I must look.", "tool_calls": CALLS}
RESULT, SAID = {"role": "tool", "content": "sunny"}, {"role": "assistant", "content": "Sunny."}
SCHEMAS = f"""You can call these functions:
<tools>
{json.dumps(TOOL)}
</tools>
To call one, write its name and arguments as JSON between tags:
<tool_call>
{{"name": ..., "arguments": {{...}}}}
</tool_call>"""
CALL_TEXT = """<tool_call>
{"name": "look", "arguments": {"city": "Zürich", "days": [1, null]}}
</tool_call>
<tool_call>
{"name": "look", "arguments": {}}
</tool_call>"""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def render(tokenizer: Any, *messages: dict[str, Any], tools: Any = None, **options: Any) -> str:
    return str(tokenizer.apply_chat_template(list(messages), tools=tools, tokenize=False, **options))


def trained(tokenizer: Any, document: Document) -> list[str]:
    pairs = zip(document.input_ids, document.trained, strict=True)
    runs = groupby(pairs, key=lambda pair: pair[1])
    return [tokenizer.decode([token_id for token_id, _ in run]) for is_trained, run in runs if is_trained]


def test_reasoning_calls_and_results(tokenizer: Any) -> None:
    assert render(tokenizer, ASKED, CALLED, RESULT, SAID) == (
        "<|im_start|>user\nWeather?<|im_end|>\n"
        f"<|im_start|>assistant\n<think>\nI must look.\n</think>\n\n{CALL_TEXT}<|im_end|>\n"
        "<|im_start|>tool\nsunny<|im_end|>\n<|im_start|>assistant\nSunny.<|im_end|>\n"
    )
    spoken = {**CALLED, "content": "One moment.", "tool_calls": CALLS[1:]}
    assert "</think>\n\nOne moment.\n<tool_call>\n{" in render(tokenizer, ASKED, spoken)


def test_schemas_stand_in_the_system_message(tokenizer: Any) -> None:
    system = {"role": "system", "content": "Be brief."}
    assert render(tokenizer, ASKED, tools=[TOOL]).startswith(
        f"<|im_start|>system\n{SCHEMAS}<|im_end|>\n<|im_start|>user"
    )
    assert render(tokenizer, system, ASKED, tools=[TOOL]).startswith(
        f"<|im_start|>system\nBe brief.\n\n{SCHEMAS}<|im_end|>\n<|im_start|>user\n"
    )
    assert render(tokenizer, {**system, "content": ""}, ASKED, tools=[TOOL]).count("<|im_start|>system") == 1
    assert "<tools>" not in render(tokenizer, system, ASKED)


def test_arguments_as_servers_get_them_are_written_alike(tokenizer: Any) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": json.dumps({"days": 2})}}
    told = render(tokenizer, ASKED, {"role": "assistant", "content": "", "tool_calls": [call]})
    call["function"] = {"name": "look", "arguments": {"days": 2}}
    assert told == render(tokenizer, ASKED, {"role": "assistant", "content": "", "tool_calls": [call]})


def test_the_generation_prompt_continues_every_turn(tokenizer: Any) -> None:
    messages = [ASKED, CALLED, RESULT, SAID]
    whole = render(tokenizer, *messages, tools=[TOOL])
    for end in (1, 3):
        prompt = render(tokenizer, *messages[:end], tools=[TOOL], add_generation_prompt=True)
        assert whole.startswith(prompt)


def test_what_is_trained_of_a_call(tokenizer: Any) -> None:
    (document,) = Masker(tokenizer).documents(Conversation((ASKED, CALLED, RESULT, SAID), "t:1", tools=(TOOL,)))
    expected = tokenizer.apply_chat_template([ASKED, CALLED, RESULT, SAID], tools=[TOOL], return_dict=True)
    assert document.input_ids == expected["input_ids"]
    assert trained(tokenizer, document) == [
        f"<think>\nI must look.\n</think>\n\n{CALL_TEXT}<|im_end|>",
        "Sunny.<|im_end|>",
    ]


def test_a_developer_has_a_turn_of_its_own(tokenizer: Any) -> None:
    told = render(tokenizer, {"role": "developer", "content": "Be brief."}, ASKED)
    assert told.startswith("<|im_start|>developer\nBe brief.<|im_end|>\n<|im_start|>user\n")


@pytest.mark.parametrize("name", ["glaive_toolcall_en_demo.json", "reason_tool_use_demo_50.jsonl"])
def test_every_row_of_public_tool_data_can_be_trained_with_it(tokenizer: Any, name: str) -> None:
    if "CLEANSFT_TEST_DATA" not in os.environ:
        pytest.skip("CLEANSFT_TEST_DATA does not name the folder of public test data")
    masker = Masker(tokenizer)
    for item in read_conversations(str(Path(os.environ["CLEANSFT_TEST_DATA"]) / "conversations" / name)):
        assert isinstance(item, Conversation)
        (document,) = masker.documents(item)
        turns = [message for message in item.messages if message["role"] == "assistant"]
        told = trained(tokenizer, document)
        assert len(told) == len(turns)
        for text, turn in zip(told, turns, strict=True):
            assert text.endswith(f"{turn['content']}<|im_end|>") or "tool_calls" in turn
            assert text.count("<tool_call>") == len(turn.get("tool_calls", ())) + turn["content"].count("<tool_call>")
            assert turn.get("reasoning_content", "") in text
