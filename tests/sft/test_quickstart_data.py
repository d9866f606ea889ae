"""The quick start's files are those that the generator writes, and what is held out really is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sft.quickstart
from sft.quickstart import DEMO_ANSWER, DEMO_QUESTION
from sft.quickstart.conversations import DAY_PHRASINGS, DAYS, NUMBERS, DaySum
from sft.quickstart.generate import MAX_LENGTH_TOKENS, VOCAB_SIZE, write_all

HERE = Path(sft.quickstart.__file__).parent
FILES = (
    "train.jsonl",
    "eval.jsonl",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/chat_template.jinja",
)
Messages = list[dict[str, str]]


def load(name: str) -> list[Messages]:
    return [json.loads(line)["messages"] for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def asked(rows: list[Messages]) -> list[str]:
    return [message["content"] for row in rows for message in row if message["role"] == "user"]


@pytest.fixture(scope="module")
def train() -> list[Messages]:
    return load("train.jsonl")


@pytest.fixture(scope="module")
def held_out() -> list[Messages]:
    return load("eval.jsonl")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(HERE / "tokenizer")


def test_a_fresh_generation_equals_the_committed_files(tmp_path: Path) -> None:
    write_all(tmp_path)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == set(FILES)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (HERE / name).read_bytes(), name


def test_committed_files_are_small() -> None:
    assert sum((HERE / name).stat().st_size for name in FILES) < 400_000


def test_the_tokenizer_uses_the_shared_template() -> None:
    shared = HERE.parent / "templates" / "chatml.jinja"
    assert (HERE / "tokenizer" / "chat_template.jinja").read_bytes() == shared.read_bytes()


def test_rows_are_distinct_and_alternate_between_user_and_assistant(
    train: list[Messages], held_out: list[Messages]
) -> None:
    rows = train + held_out
    assert len({json.dumps(row) for row in rows}) == len(rows)
    for row in rows:
        assert [message["role"] for message in row] == ["user", "assistant"] * (len(row) // 2)
        assert len(row) >= 2


def test_no_eval_conversation_starts_with_a_question_from_train(
    train: list[Messages], held_out: list[Messages]
) -> None:
    assert not {row[0]["content"] for row in held_out} & set(asked(train))


def test_held_out_sums_are_trained_in_no_wording(train: list[Messages], held_out: list[Messages]) -> None:
    held_out_sums = {day_sum for row in held_out if (day_sum := day_sum_of(row[0]["content"]))}
    train_sums = {day_sum for question in asked(train) if (day_sum := day_sum_of(question))}
    assert len(held_out_sums) == 7
    assert len(train_sums) == 84 - 7
    assert not held_out_sums & train_sums


def test_follow_ups_in_train_never_ask_for_a_held_out_sum(train: list[Messages], held_out: list[Messages]) -> None:
    held_out_answers = {row[0]["content"]: row[1]["content"] for row in held_out}
    held_out_sums = [day_sum for question in held_out_answers if (day_sum := day_sum_of(question))]
    for row in train:
        if len(row) == 4 and " that?" in row[2]["content"]:
            named = row[1]["content"].removesuffix(".").split()[-1]
            forbidden = {day_sum.span + " " + day_sum.direction for day_sum in held_out_sums if day_sum.day == named}
            assert not any(f" {words} " in row[2]["content"] for words in forbidden), row


def test_the_demo_question_is_held_out_and_its_answer_right(train: list[Messages], held_out: list[Messages]) -> None:
    assert DEMO_QUESTION not in (HERE / "train.jsonl").read_text(encoding="utf-8")
    assert [{"role": "user", "content": DEMO_QUESTION}, {"role": "assistant", "content": DEMO_ANSWER}] in held_out
    _, _, _, number, _, _, day = DEMO_QUESTION.removesuffix("?").split()
    counted = NUMBERS[: NUMBERS.index(number) + 1]
    days = [DAYS[(DAYS.index(day) + offset) % 7] for offset in range(1, len(counted) + 1)]
    expected = ", ".join(f"{name}: {day}" for name, day in zip(counted, days, strict=True))
    assert expected.lower() + "." == DEMO_ANSWER.lower()
    assert DaySum(day, len(counted), "after").exchange(DAY_PHRASINGS[0]) == (DEMO_QUESTION, DEMO_ANSWER)


def test_answers_count_by_the_calendar() -> None:
    assert DaySum("Saturday", 2, "after").exchange("").answer == "One: Sunday, two: Monday."
    assert DaySum("Tuesday", 3, "before").exchange("").answer == "One: Monday, two: Sunday, three: Saturday."
    assert DaySum("Friday", 6, "after").target == "Thursday"
    assert DaySum("Friday", 1, "before").exchange("{span_capital} {forward}, {ahead}").question == (
        "One day back, was it one day ago"
    )


def test_every_text_round_trips(tokenizer: Any, train: list[Messages], held_out: list[Messages]) -> None:
    contents = [message["content"] for row in train + held_out for message in row]
    for content in [*contents, "naïve 日曜日 🙂\n\t\x00", " leading and trailing  "]:
        assert tokenizer.decode(tokenizer(content)["input_ids"]) == content


def test_the_vocabulary_covers_all_bytes_and_is_small(tokenizer: Any) -> None:
    pre_tokenizers = pytest.importorskip("tokenizers").pre_tokenizers
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(tokenizer.get_vocab())
    assert len(pre_tokenizers.ByteLevel.alphabet()) == 256
    assert len(tokenizer) <= VOCAB_SIZE
    special = {token: tokenizer.convert_tokens_to_ids(token) for token in ("<|pad|>", "<|im_start|>", "<|im_end|>")}
    assert special == {"<|pad|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|pad|>")


def test_rendering_frames_every_message(tokenizer: Any, train: list[Messages], held_out: list[Messages]) -> None:
    for row in train + held_out:
        expected = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in row)
        assert tokenizer.apply_chat_template(row, tokenize=False) == expected
        assert expected.endswith("<|im_end|>\n")


def test_the_generation_prompt_continues_the_conversation(tokenizer: Any, held_out: list[Messages]) -> None:
    prompt = tokenizer.apply_chat_template(held_out[0][:1], tokenize=False, add_generation_prompt=True)
    assert tokenizer.apply_chat_template(held_out[0], tokenize=False).startswith(prompt)
    assert prompt.endswith("<|im_start|>assistant\n")


def test_generation_marks_the_answers_with_their_end(tokenizer: Any, train: list[Messages]) -> None:
    row = next(row for row in train if len(row) == 4)
    encoded = tokenizer.apply_chat_template(row, return_dict=True, return_assistant_tokens_mask=True)
    trained = [
        id_ for id_, is_trained in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if is_trained
    ]
    assert tokenizer.decode(trained) == "".join(message["content"] + "<|im_end|>" for message in row[1::2])


def test_conversations_fit_the_model(tokenizer: Any, train: list[Messages], held_out: list[Messages]) -> None:
    lengths = [len(tokenizer.apply_chat_template(row, return_dict=True)["input_ids"]) for row in train + held_out]
    yaml = pytest.importorskip("yaml")
    settings = yaml.safe_load((HERE / "run.yaml").read_text(encoding="utf-8"))
    assert max(lengths) <= settings["max_length"] <= settings["model_config"]["max_position_embeddings"]
    assert settings["model_config"]["max_position_embeddings"] == MAX_LENGTH_TOKENS
    assert settings["model_config"]["vocab_size"] == len(tokenizer)
    assert settings["model_config"]["eos_token_id"] == tokenizer.eos_token_id
    assert settings["model_config"]["pad_token_id"] == tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "critic", "content": "No."}, "role is critic; it must be"),
        ({"role": "assistant", "content": None}, "is not text; it must be a string"),
        ({"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}, "a tool call has no function"),
    ],
)
def test_the_template_refuses_what_it_cannot_render(tokenizer: Any, message: dict[str, Any], reason: str) -> None:
    jinja2 = pytest.importorskip("jinja2")
    with pytest.raises(jinja2.TemplateError, match=reason):
        tokenizer.apply_chat_template([message], tokenize=False)


def test_system_and_tool_messages_are_plain_text(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "tool", "content": "42"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>tool\n42<|im_end|>\n"


def day_sum_of(question: str) -> DaySum | None:
    """The sum that a question spells out, in any of the phrasings; None for other questions and follow-ups."""
    return QUESTIONS.get(question)


QUESTIONS = {
    day_sum.exchange(phrasing).question: day_sum
    for day in DAYS
    for num_days in range(1, len(NUMBERS) + 1)
    for direction in ("after", "before")
    for day_sum in [DaySum(day, num_days, direction)]
    for phrasing in DAY_PHRASINGS
}
