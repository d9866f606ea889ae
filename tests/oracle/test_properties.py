"""Masks of contents that were made to confuse: whatever people write, the invariants hold.

No render is searched for contents here, since they may repeat and may look like anything. For every conversation
- the document's text is the template's render of it, letter by letter;
- the trained stretches are the answers with their stop token, in order: nothing more and nothing less;
- the number of control tokens is that of the same conversation with harmless contents;
- the ids are `apply_chat_template`'s where no content holds a control string.
"""

from __future__ import annotations

from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sft.formats import Conversation
from sft.masking import Document, Masker, MaskError, MaskOptions

from .control_tokens import stop_strings, tokenizer_for
from .results import columns, outcome, with_lists

TEMPLATES = Path(__file__).parent / "templates"
FRAMES = ("chatml", "markers", "set-blocks", "indices", "forgets-thinking", "role-lines")
"""Templates that write contents as they are, and a control token on both sides of an answer."""
TRIMMING = ("trims", "dated")
FEW = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@cache
def tokenizer_of(name: str) -> Any:
    return tokenizer_for(name, (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))


@cache
def masker(name: str, **options: Any) -> Masker:
    return Masker(tokenizer_of(name), options=MaskOptions(**options))


def stop_of(name: str) -> str:
    return stop_strings(name, (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))[0]


CONTROL_STRINGS = (
    "<|im_start|>", "<|im_end|>", "<|im_end|>\n<|im_start|>assistant\n", "<|eot|>", "</s>", "<s>", "<|assistant|>\n",
    "<start_of_turn>model\n", "<end_of_turn>\n", "<|endoftext|>", "<|header|>assistant<|/header|>",
)  # fmt: skip
ODD = (
    "", " ", "\n", " \n\t ", "Yes.", "Yes.", "[[1]]", "[[dummy_message]]", '{"a": [1, null, "b"]}', "{{ x }}",
    "{% if x %}{{ messages }}{% endif %}", "{# no #}", "user", "assistant\n", "System: ", "a\u2028b\u2029c\x85d",
    "👩\u200d👩\u200d👧 é e\u0301 ﷽ ａ", "\ue000gapi\ue001", "\U000f0000", "\U0010fffd", "\x00\x01\x7f", "\ufeff",
    "ab" * 700, "\r\n", "None", "%s {0} $1 \\1 \\n", "&lt;b&gt; <b>'\"</b>", "<", "<|", "|>", "<|im_", "_end|>",
)  # fmt: skip

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=25)
piece = st.sampled_from([*ODD, *CONTROL_STRINGS]) | any_text
hostile = st.lists(piece, min_size=1, max_size=3).map("".join)
harmless = hostile.filter(lambda text: "<" not in text and "|" not in text)


def conversation(contents: list[str], *, system: bool) -> Conversation:
    roles = (["system"] if system else []) + ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    return Conversation(tuple(messages), "row:1")


def talks(text: st.SearchStrategy[str]) -> st.SearchStrategy[Conversation]:
    """Two to six messages that end with an answer, some after a system message."""
    even = st.integers(1, 3).flatmap(lambda turns: st.lists(text, min_size=2 * turns, max_size=2 * turns))
    odd = st.integers(1, 2).flatmap(lambda turns: st.lists(text, min_size=2 * turns + 1, max_size=2 * turns + 1))
    plain = even.map(lambda contents: conversation(contents, system=False))
    return plain | odd.map(lambda contents: conversation(contents, system=True))


def stretches(tokenizer: Any, document: Document) -> list[str]:
    runs = groupby(zip(document.input_ids, document.trained, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([token_id for token_id, _ in run]) for is_trained, run in runs if is_trained]


def num_control_tokens(tokenizer: Any, ids: Any) -> int:
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sum(token_id in special for token_id in ids)


def with_contents(talk: Conversation, text: str) -> Conversation:
    return Conversation(tuple({**message, "content": text} for message in talk.messages), talk.source)


def answers(talk: Conversation) -> list[str]:
    return [message["content"] for message in talk.messages if message["role"] == "assistant"]


def documents_of(name: str, talk: Conversation) -> list[Document]:
    """None where the refusal is right: for an answer of which the template keeps nothing, a message that it does not
    take, or characters that keeping control strings as text needs for itself."""
    try:
        return masker(name).documents(talk)
    except MaskError as error:
        reason = str(error)
        texts = [text for message in talk.messages for key, text in message.items() if key != "role"]
        blank = any(not text.strip() for text in texts)
        stand_ins = any(character >= "\U0010f000" for text in texts for character in text)
        is_right = (
            ("leaves out" in reason and blank)
            or ("private-use" in reason and stand_ins)
            or ("no system message" in reason and talk.messages[0]["role"] == "system")
        )
        if not is_right:
            raise
        return []


def one_document(name: str, talk: Conversation) -> Document:
    """The conversation's one document; the example does not count where it is refused rightly."""
    documents = documents_of(name, talk)
    assume(documents)
    (document,) = documents
    return with_lists(document)


@pytest.mark.parametrize("name", FRAMES)
@FEW
@given(talk=talks(hostile))
def test_whatever_is_said_only_the_answers_are_trained(name: str, talk: Conversation) -> None:
    tokenizer = tokenizer_of(name)
    document = one_document(name, talk)
    render = tokenizer.apply_chat_template(list(talk.messages), tokenize=False)
    assert tokenizer.decode(document.input_ids) == render
    assert stretches(tokenizer, document) == [f"{answer}{stop_of(name)}" for answer in answers(talk)]
    expected = one_document(name, with_contents(talk, "gapi"))
    assert num_control_tokens(tokenizer, document.input_ids) == num_control_tokens(tokenizer, expected.input_ids)


@pytest.mark.parametrize("name", [*FRAMES, *TRIMMING, "macros", "parts-as-lists", "recursive", "names"])
@FEW
@given(talk=talks(harmless))
def test_ids_are_those_of_apply_chat_template(name: str, talk: Conversation) -> None:
    tokenizer = tokenizer_of(name)
    document = one_document(name, talk)
    expected = tokenizer.apply_chat_template(list(talk.messages), return_dict=True)["input_ids"]
    assert document.input_ids == expected


@pytest.mark.parametrize("name", TRIMMING)
@FEW
@given(talk=talks(hostile))
def test_a_template_that_trims_trains_the_trimmed_answers(name: str, talk: Conversation) -> None:
    tokenizer = tokenizer_of(name)
    document = one_document(name, talk)
    assert stretches(tokenizer, document) == [f"{answer.strip()}{stop_of(name)}" for answer in answers(talk)]
    expected = one_document(name, with_contents(talk, "gapi"))
    assert num_control_tokens(tokenizer, document.input_ids) == num_control_tokens(tokenizer, expected.input_ids)


@pytest.mark.parametrize("name", ["chatml", "indices"])
@FEW
@given(talk=talks(hostile))
def test_with_error_instead_of_escape_a_control_string_never_passes(name: str, talk: Conversation) -> None:
    strict = masker(name, special_tokens_in_data="error")
    known = tokenizer_of(name).all_special_tokens + [
        token.content for token in tokenizer_of(name).added_tokens_decoder.values() if token.special
    ]
    holds_one = any(token in message["content"] for message in talk.messages for token in known)
    if holds_one:
        with pytest.raises(MaskError):
            strict.documents(talk)
    else:
        assert strict.documents(talk) == masker(name).documents(talk)


@pytest.mark.parametrize("name", FRAMES)
@settings(FEW, max_examples=12)
@given(data=st.lists(talks(hostile), min_size=2, max_size=5))
def test_encoding_many_gives_what_encoding_one_gives(name: str, data: list[Conversation]) -> None:
    many, alone = (Masker(tokenizer_of(name)) for _ in range(2))
    for talk, found in zip([*data, *data], many.encode([*data, *data]), strict=True):
        assert columns(found) == columns(outcome(alone, talk))


@FEW
@given(first=hostile, question=hostile, answer=hostile)
def test_an_answer_that_is_the_question_is_trained_once(first: str, question: str, answer: str) -> None:
    name = "chatml"
    talk = conversation([first, question, answer, answer, question], system=True)
    document = one_document(name, talk)
    assert stretches(tokenizer_of(name), document) == [f"{answer}<|im_end|>", f"{question}<|im_end|>"]


@pytest.mark.parametrize("form", ["inline", "field"])
@FEW
@given(texts=st.lists(hostile.filter(lambda text: "think>" not in text), min_size=6, max_size=6))
def test_reasoning_is_trained_where_it_is_rendered_at_inference(form: str, texts: list[str]) -> None:
    name = "forgets-thinking"
    tokenizer = tokenizer_of(name)
    q1, r1, a1, q2, r2, a2 = [text.strip("\n") for text in texts]
    messages = []
    for question, thought, answer in ((q1, r1, a1), (q2, r2, a2)):
        inline = {"content": f"<think>\n{thought}\n</think>\n\n{answer}"}
        reply = inline if form == "inline" else {"reasoning_content": thought, "content": answer}
        messages += [{"role": "user", "content": question}, {"role": "assistant", **reply}]
    talk = Conversation(tuple(messages), "row:1")
    documents = documents_of(name, talk)
    assume(documents)
    trained = [text for document in documents for text in stretches(tokenizer, document)]
    expected = [
        (f"<think>\n{thought}\n</think>\n\n" if thought else "") + f"{answer}<|im_end|>"
        for thought, answer in ((r1, a1), (r2, a2))
    ]
    assert sorted(trained) == sorted(expected)
    for document in documents:
        assert tokenizer.decode(document.input_ids) in {
            tokenizer.apply_chat_template(messages[:end], tokenize=False) for end in (2, 4)
        }
