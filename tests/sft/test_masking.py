"""What is trained, judged by decoding it: the assistant's words and the end of turn, nothing else."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TOKENIZER

from sft.config import ROOT
from sft.formats import Conversation
from sft.masking import Document, Masker, MaskError, MaskOptions

WITH_MARKERS = (ROOT / "sft" / "templates" / "chatml.jinja").read_text()
PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FORGETFUL = (  # as templates of reasoning models do: earlier answers are rendered differently
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if loop.last or m.role != 'assistant' else 'gone' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def load(template: str) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.chat_template = template
    return tokenizer


def conversation(*contents: str, system: str | None = None) -> Conversation:
    roles = ("user", "assistant") * len(contents)
    turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return Conversation(tuple(([{"role": "system", "content": system}] if system is not None else []) + turns), "t:1")


def trained_texts(tokenizer: Any, document: Document) -> list[str]:
    pairs = zip(document.input_ids, document.trained, strict=True)
    runs = groupby(pairs, key=lambda pair: pair[1])
    return [tokenizer.decode([token_id for token_id, _ in run]) for is_trained, run in runs if is_trained]


@pytest.mark.parametrize("template", [WITH_MARKERS, PLAIN], ids=["markers", "prefix"])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_answers_and_their_ends_are_trained_and_nothing_else(template: str, system: str | None) -> None:
    tokenizer = load(template)
    talk = conversation("hello", "good day", "good day", "hello again", system=system)
    (document,) = Masker(tokenizer).documents(talk)
    expected = tokenizer.apply_chat_template(list(talk.messages), return_dict=True)["input_ids"]
    assert document.input_ids == expected
    assert trained_texts(tokenizer, document) == ["good day<|im_end|>", "hello again<|im_end|>"]


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(lambda text: "<|" not in text)


@settings(deadline=None, max_examples=60)
@given(contents=st.lists(words, min_size=2, max_size=6).filter(lambda contents: len(contents) % 2 == 0))
def test_both_methods_agree_on_any_text(contents: list[str]) -> None:
    documents = []
    for template in (WITH_MARKERS, PLAIN):
        tokenizer = load_cached(template)
        (document,) = Masker(tokenizer).documents(conversation(*contents))
        assert trained_texts(tokenizer, document) == [f"{answer}<|im_end|>" for answer in contents[1::2]]
        documents.append(document)
    assert documents[0] == documents[1]


_TOKENIZERS: dict[str, Any] = {}


def load_cached(template: str) -> Any:
    return _TOKENIZERS.setdefault(template, load(template))


def test_a_turn_that_the_template_rewrites_later_is_trained_under_its_own_prompt() -> None:
    tokenizer, talk = load(FORGETFUL), conversation("a", "b", "c", "d")
    documents = Masker(tokenizer).documents(talk)
    for document, end in zip(documents, (2, 4), strict=True):
        expected = tokenizer.apply_chat_template(list(talk.messages[:end]), return_dict=True)["input_ids"]
        assert document.input_ids == expected
    assert [trained_texts(tokenizer, document) for document in documents] == [["b<|im_end|>"], ["d<|im_end|>"]]
    assert any("renders it differently" in note for note in documents[0].notes)
    (whole,) = Masker(tokenizer, options=MaskOptions(history="as_rendered")).documents(talk)
    assert whole.input_ids == documents[1].input_ids


def test_the_users_repetition_of_the_answer_is_not_trained() -> None:
    tokenizer = load(PLAIN)
    (document,) = Masker(tokenizer).documents(conversation("Yes.", "Yes.", "Yes.", "Yes."))
    assert trained_texts(tokenizer, document) == ["Yes.<|im_end|>"] * 2


def test_a_one_token_answer_in_front_trains_no_user_token() -> None:
    tokenizer = load("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}")
    messages = ({"role": "assistant", "content": "a"}, {"role": "user", "content": "bcd"})
    template = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    tokenizer.chat_template = template + "{% else %}<|im_start|>{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(MaskError, match="no token"):
        Masker(tokenizer).documents(Conversation(messages, "t:1"))  # its only token is predicted from nothing


def test_padding_with_the_end_of_turn_hides_no_end_of_turn() -> None:
    from sft.batching import IGNORED_LABEL
    from sft.dataset import ConversationDataset

    tokenizer = load(PLAIN)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    masker = Masker(tokenizer, pad_token_id=end)
    data = ConversationDataset([conversation("a", "b"), conversation("a long one", "and more of it")], masker, 64)
    batch = data.batch([0, 1])
    for row, document in enumerate(data):
        length = len(document)
        assert batch.labels[row, :length].tolist().count(end) == 1
        assert set(batch.labels[row, length:].tolist()) <= {IGNORED_LABEL}
        assert batch.attention_mask[row].sum() == length


@pytest.mark.parametrize("template", [None, ""])
def test_without_a_chat_template_it_is_refused_with_a_remedy(template: str | None) -> None:
    tokenizer = load(PLAIN)
    tokenizer.chat_template = template
    with pytest.raises(MaskError, match="chat_template_path"):
        Masker(tokenizer)


def test_a_template_that_raises_is_named(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="no system here"):
        Masker(load("{{ raise_exception('no system here') }}")).documents(conversation("a", "b"))


def test_stop_tokens_are_collected_for_generation() -> None:
    tokenizer = load(PLAIN)
    masker = Masker(tokenizer)
    masker.documents(conversation("a", "b"))
    assert masker.stop_token_ids == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
