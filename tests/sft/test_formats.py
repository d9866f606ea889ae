"""Rows of every form that is taken, as conversations; what is refused stands in test_bad_rows.py."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft.errors import DataError
from sft.formats import Columns, Conversation, conversation
from sft.sources import read_conversations

ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
FROM_HUMAN = {"from": "human", "value": "q"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
SCHEMA = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": SCHEMA}


def convert(row: Any, **columns: str) -> Conversation:
    return conversation(row, "rows.jsonl:1", Columns(columns))


def messages(row: Any, **columns: str) -> list[dict[str, Any]]:
    return [dict(message) for message in convert(row, **columns).messages]


def turn(**message: Any) -> dict[str, Any]:
    """The assistant's turn of a row, after conversion."""
    return messages({"messages": [ASKED, {"role": "assistant", **message}]})[1]


@pytest.mark.parametrize(
    ("row", "expected", "form"),
    [
        ({"messages": [ASKED, SAID]}, [ASKED, SAID], "messages"),
        ({"messages": json.dumps([ASKED, SAID])}, [ASKED, SAID], "messages"),
        ({"conversations": [ASKED, SAID]}, [ASKED, SAID], "messages"),
        ({"conversations": [FROM_HUMAN, {"from": "gpt", "value": "a"}]}, [ASKED, SAID], "sharegpt"),
        ({"messages": [{"from": "system", "value": "s"}, FROM_HUMAN, {"from": "chatgpt", "value": "a"}]},
         [SYSTEM, ASKED, SAID], "sharegpt"),
        ({"prompt": "q", "response": "a"}, [ASKED, SAID], "prompt/response"),
        ({"prompt": "q", "completion": "a", "id": 7}, [ASKED, SAID], "prompt/completion"),
        ({"prompt": [SYSTEM, ASKED], "completion": [SAID]}, [SYSTEM, ASKED, SAID], "prompt/completion"),
        ({"prompt": [ASKED], "response": "a"}, [ASKED, SAID], "prompt/response"),
        ({"question": "q", "answer": "a", "system": "s"}, [SYSTEM, ASKED, SAID], "question/answer"),
        ({"instruction": "q", "output": "a"}, [ASKED, SAID], "alpaca"),
        ({"instruction": "q", "input": "", "output": "a", "text": "q\na"}, [ASKED, SAID], "alpaca"),
        ({"instruction": "", "input": "q", "output": "a", "history": None}, [ASKED, SAID], "alpaca"),
        ({"instruction": "q", "input": "i", "output": "a", "system": "s", "history": [["q", "a"]]},
         [SYSTEM, ASKED, SAID, {"role": "user", "content": "q\n\ni"}, SAID], "alpaca"),
    ],
)  # fmt: skip
def test_each_form_becomes_messages(row: dict[str, Any], expected: list[dict[str, Any]], form: str) -> None:
    assert messages(row) == expected
    assert convert(row).format == form


@pytest.mark.parametrize(
    ("spelling", "role"),
    [("Human", "user"), ("USER ", "user"), ("gpt", "assistant"), ("model", "assistant"), ("developer", "developer")],
)
def test_roles_in_other_spellings(spelling: str, role: str) -> None:
    row = {"conversations": [{"from": spelling, "value": "x"}, {"from": "gpt", "value": "a"}]}
    assert messages(row)[0]["role"] == role


def test_columns_are_mapped_and_what_is_mapped_is_what_is_meant() -> None:
    row = {"ask": "q", "reply": "a", "prompt": "no", "response": "no", "rules": "s", "dialog": [SAID]}
    assert messages(row, prompt="ask", response="reply", system="rules") == [SYSTEM, ASKED, SAID]
    assert messages({"messages": [SAID], "prompt": "q", "response": "a"}, prompt="prompt") == [ASKED, SAID]
    assert messages(row, messages="dialog") == [SAID]
    swapped = {"prompt": "a", "response": "q"}
    assert messages(swapped, prompt="response", response="prompt") == [ASKED, SAID]
    with pytest.raises(
        DataError, match="the row can be read as `messages` or `prompt/response`; it must be one of them"
    ):
        convert({"messages": [SAID], "prompt": "q", "response": "a"})


def test_a_column_that_is_null_is_not_there() -> None:
    row = {"messages": None, "prompt": "q", "response": "a", "system": None, "tools": None, "weight": None}
    assert convert({**row, "chat_template_kwargs": None}) == convert({"prompt": "q", "response": "a"})
    nulls = dict.fromkeys(("name", "tool_calls", "reasoning_content", "weight", "train", "tool_call_id"))
    assert messages({"messages": [{**ASKED, **nulls}, {**SAID, **nulls}]}) == [ASKED, SAID]


def test_an_empty_system_prompt_stays_one() -> None:
    assert messages({"prompt": "q", "response": "a", "system": ""})[0] == {"role": "system", "content": ""}
    assert messages({"messages": [SYSTEM, SAID], "system": ""}) == [SYSTEM, SAID]


def test_text_in_parts() -> None:
    parts = [
        {"type": "thinking", "thinking": "t"},
        {"type": "text", "text": "a"},
        "b",
        {"type": "output_text", "value": "c"},
    ]
    assert turn(content=parts) == {"role": "assistant", "content": "abc", "reasoning_content": "t"}
    parts = [
        {"type": "reasoning", "value": "t"},
        {"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
    ]
    assert turn(content=parts) == {"role": "assistant", "content": "", "reasoning_content": "t", "tool_calls": [CALL]}
    assert turn(content=[{"type": "text", "text": "a", "value": None}]) == SAID
    used = turn(content=[{"type": "tool_use", "id": "7", "name": "f", "input": {"x": 1}}])
    assert used["tool_calls"] == [{"id": "7", **CALL}]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_under_each_of_its_names(key: str) -> None:
    assert turn(content="a", **{key: "t"}) == {**SAID, "reasoning_content": "t"}
    assert turn(content="a", **{key: ""}) == SAID
    assert turn(**{key: "t"}) == {"role": "assistant", "content": "", "reasoning_content": "t"}


@pytest.mark.parametrize(
    "calls",
    [
        [CALL],
        CALL,
        json.dumps([CALL]),
        [json.dumps(CALL)],
        [{"name": "f", "arguments": {"x": 1}}],
        [{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
        [{"function": {"name": "f", "parameters": {"x": 1}}}],
        [{"name": "f", "arguments": {"x": 1}, "function": None}],
    ],
    ids=str,
)
def test_calls_in_each_spelling(calls: Any) -> None:
    assert turn(tool_calls=calls) == {"role": "assistant", "content": "", "tool_calls": [CALL]}


@pytest.mark.parametrize("arguments", [None, "", "{}", {}])
def test_a_call_without_arguments(arguments: Any) -> None:
    (call,) = turn(tool_calls=[{"id": "c1", "name": "f", "arguments": arguments}])["tool_calls"]
    assert call == {"type": "function", "id": "c1", "function": {"name": "f", "arguments": {}}}


def test_calls_of_sharegpt_and_their_results() -> None:
    calls = [{"name": "f", "arguments": {"x": 1}}]
    row = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": json.dumps(calls * 2)},
            {"from": "observation", "value": "[1]"},
            {"from": "gpt", "value": "a"},
        ],
        "tools": json.dumps([SCHEMA]),
        "system": "s",
    }
    called = {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}
    assert messages(row) == [SYSTEM, ASKED, called, {"role": "tool", "content": "[1]"}, SAID]
    assert convert(row).tools == (TOOL,)
    row["conversations"][1]["value"] = calls[0]
    assert messages(row)[2]["tool_calls"] == [CALL]


@pytest.mark.parametrize("tools", [[TOOL], [SCHEMA], SCHEMA, json.dumps([TOOL]), [json.dumps(SCHEMA)]], ids=str)
def test_tools_in_each_spelling(tools: Any) -> None:
    assert convert({"messages": [SAID], "tools": tools}).tools == (TOOL,)


@pytest.mark.parametrize("tools", [None, "", "[]", []])
def test_no_tools(tools: Any) -> None:
    assert convert({"messages": [SAID], "tools": tools}).tools == ()


def test_keys_that_only_templates_know_stay() -> None:
    result = {"role": "tool", "content": "r", "tool_call_id": "c1", "name": "f"}
    plan = {**SAID, "tool_plan": "p"}
    assert messages({"messages": [ASKED, plan, result, SAID]}) == [ASKED, plan, result, SAID]


@pytest.mark.parametrize(
    ("stated", "of_row", "weights"),
    [
        ([{}, {}], {}, ()),
        ([{}, {"weight": 1}], {"weight": 1.0}, ()),
        ([{}, {"train": False}, {}, {"train": True}], {}, (1, 0, 1, 1)),
        ([{"loss_weight": 0.0}, {"loss_weight": 1.0}], {}, (0, 1)),
        ([{}, {"weight": 0.5}], {"weight": 4}, (4, 2)),
        ([{}, {"train": True, "weight": 0.5}, {}, {"train": False, "weight": 3}], {}, (1, 0.5, 1, 0)),
        ([{}, {"training": False}, {}, {"weight": 2, "loss_weight": 2}], {}, (1, 0, 1, 2)),
    ],
)
def test_weights(stated: list[dict[str, Any]], of_row: dict[str, Any], weights: tuple[float, ...]) -> None:
    talk = [{**(SAID if index % 2 else ASKED), **own} for index, own in enumerate(stated)]
    found = convert({"messages": talk, **of_row})
    assert found.weights == weights
    assert [dict(message) for message in found.messages] == [
        SAID if index % 2 else ASKED for index in range(len(stated))
    ]


def test_answers_in_a_prompt_are_trained_only_where_they_say_so() -> None:
    row = {"prompt": [ASKED, SAID, ASKED], "completion": [SAID]}
    assert convert(row).weights == (1, 0, 1, 1)
    row["prompt"][1] = {**SAID, "train": True}
    assert convert(row).weights == ()


def test_an_empty_turn_may_stand_where_it_is_not_trained() -> None:
    assert convert({"messages": [ASKED, {"role": "assistant", "train": False}, ASKED, SAID]}).weights == (1, 0, 1, 1)


def test_a_row_has_variables_for_its_template() -> None:
    row = {"messages": [SAID], "chat_template_kwargs": {"enable_thinking": False, "effort": None}}
    assert convert(row).template_kwargs == {"enable_thinking": False}
    assert convert({**row, "chat_template_kwargs": '{"enable_thinking": true}'}).template_kwargs == {
        "enable_thinking": True
    }


@pytest.mark.parametrize(
    "talk",
    [
        [SAID],
        [SAID, ASKED],
        [ASKED, ASKED, SAID, SAID],
        [ASKED, SYSTEM, SAID],
        [SYSTEM, ASKED, SAID, SYSTEM, ASKED, SAID],
        [ASKED, SAID, {"role": "tool", "content": "r"}, {"role": "tool", "content": ""}, SAID],
        [{"role": "user", "content": " "}, SAID],
    ],
)
def test_orders_that_are_left_to_the_template(talk: list[dict[str, Any]]) -> None:
    assert messages({"messages": talk}) == talk


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: not text.isspace())


@given(question=texts, answer=texts)
def test_text_comes_through_every_form_as_it_is(question: str, answer: str) -> None:
    expected = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    rows: list[dict[str, Any]] = [
        {"messages": expected},
        {"messages": [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in expected]},
        {"conversations": turns},
        {"prompt": question, "response": answer},
        {"question": question, "answer": answer},
        {"instruction": question, "output": answer},
    ]
    assert [messages(row) for row in rows] == [expected] * len(rows)


KEYS = (
    "messages conversations role from content value type text tool_calls name arguments train weight prompt response "
    "instruction output tools function history system user assistant"
).split()
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS) | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(values)
def test_any_value_is_a_conversation_or_refused_with_a_sentence(value: Any) -> None:
    try:
        found, refusal = convert(value), None
    except DataError as error:
        found, refusal = None, str(error)
    if found is None:
        assert str(refusal).endswith(".")
        assert "NoneType" not in str(refusal)
    else:
        assert all(isinstance(message["content"], str) for message in found.messages)
        assert any(message["role"] == "assistant" for message in found.messages)
        assert len(found.weights) in (0, len(found.messages))


REAL_FILES = {
    "dolly_hhrlhf_train_small.jsonl": (1000, "prompt/response"),
    "fastchat_dummy_conversation.json": (500, "sharegpt"),
    "glaive_toolcall_en_demo.json": (300, "sharegpt"),
    "gsm8k_test.jsonl": (1319, "question/answer"),
    "gsm8k_train.jsonl": (7473, "question/answer"),
    "reason_tool_use_demo_50.jsonl": (50, "messages"),
    "v1_sft_demo.jsonl": (500, "messages"),
}


@pytest.fixture
def real_data() -> Path:
    if "CLEANSFT_TEST_DATA" not in os.environ:
        pytest.skip("CLEANSFT_TEST_DATA does not name the folder of public test data")
    return Path(os.environ["CLEANSFT_TEST_DATA"]) / "conversations"


@pytest.mark.parametrize("name", REAL_FILES)
def test_every_row_of_public_files_is_a_conversation(real_data: Path, name: str) -> None:
    num_rows, form = REAL_FILES[name]
    found = list(read_conversations(str(real_data / name)))
    assert [item for item in found if not isinstance(item, Conversation)] == []
    assert {item.format for item in found if isinstance(item, Conversation)} == {form}
    assert len(found) == num_rows


def test_a_whole_call_keeps_its_keys_and_their_order() -> None:
    function = {"arguments": '{"b": 1, "a": 2}', "strict": True, "name": "f"}
    (call,) = turn(tool_calls=[{"id": "c1", "index": 0, "function": function, "type": "function"}])["tool_calls"]
    assert list(call) == ["id", "index", "function", "type"]
    assert json.dumps(call["function"]) == '{"arguments": {"b": 1, "a": 2}, "strict": true, "name": "f"}'


def test_public_tool_calls_and_weights_arrive(real_data: Path) -> None:
    def talks(name: str) -> list[Conversation]:
        return [item for item in read_conversations(str(real_data / name)) if isinstance(item, Conversation)]

    def num_calls(found: list[Conversation]) -> int:
        return sum(len(message.get("tool_calls", ())) for talk in found for message in talk.messages)

    assert num_calls(talks("glaive_toolcall_en_demo.json")) == 211
    reasoned = talks("reason_tool_use_demo_50.jsonl")
    assert num_calls(reasoned) == 68
    assert sum("reasoning_content" in message for talk in reasoned for message in talk.messages) == 112
    assert sum(len(talk.tools) for talk in reasoned) == 121
    assert {talk.weights for talk in talks("v1_sft_demo.jsonl")} == {(0.0, 1.0)}
