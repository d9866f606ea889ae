"""The judge itself: a mask that is right passes, and whatever is changed in it is found."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sft.formats import Conversation
from sft.masking import Document, Masker, MaskError

from .cases import BUILDERS, Case, case
from .control_tokens import stop_strings, tokenizer_for
from .judge import Judge
from .replies import covered

TEMPLATES = Path(__file__).parent / "templates"


def judge_and_documents(template: str, of: Case) -> tuple[Judge, list[Document]]:
    text = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    tokenizer = tokenizer_for(template, text)
    judge = Judge(tokenizer, of, stop_strings(template, text))
    return judge, Masker(tokenizer).documents(of.conversation)


def by_hand(judge: Judge, *parts: tuple[str, bool]) -> Document:
    """A document of pieces of text, each trained or not."""
    ids, trained = [], []
    for text, is_trained in parts:
        piece = judge.renders.encoded(text)[0]
        ids += piece
        trained += [is_trained] * len(piece)
    return Document(ids, trained)


def test_a_mask_written_by_hand_is_exact() -> None:
    judge, _ = judge_and_documents("chatml", case("plain, 2 turns"))
    q1, a1, q2, a2 = (message["content"] for message in judge.renders.messages)
    document = by_hand(
        judge,
        (f"<|im_start|>user\n{q1}<|im_end|>\n<|im_start|>assistant\n", False),
        (f"{a1}<|im_end|>", True),
        (f"\n<|im_start|>user\n{q2}<|im_end|>\n<|im_start|>assistant\n", False),
        (f"{a2}<|im_end|>", True),
        ("\n", False),
    )
    assert judge.judge([document]).outcome == "exact"


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("chatml", "plain, 2 turns"),
        ("forgets-thinking", "think field, 2 turns"),
        ("channels", "tool, thought"),
        ("calls-as-xml", "tool, chain"),
        ("thinks-always", "think inline, 2 turns"),
        ("counts", "plain, 2 turns"),
    ],
)
def test_every_single_token_whose_flag_is_turned_is_found(template: str, name: str) -> None:
    judge, documents = judge_and_documents(template, case(name))
    assert judge.judge(documents).outcome == "exact"
    missed = []
    for number, document in enumerate(documents):
        for token in range(len(document)):
            trained = [flag != (at == token) for at, flag in enumerate(document.trained)]
            changed = [*documents]
            changed[number] = dataclasses.replace(document, trained=trained)
            if judge.judge(changed).outcome != "WRONG":
                missed.append(judge.tokenizer.decode(document.input_ids[max(0, token - 3) : token + 1]))
    assert missed == []


def test_other_ids_a_document_too_many_and_one_too_few_are_found() -> None:
    judge, documents = judge_and_documents("forgets-thinking", case("think field, 2 turns"))
    first, second = documents
    reasons = [
        judge.judge(changed).reason
        for changed in (
            [first],
            [first, second, second],
            [],
            [dataclasses.replace(first, input_ids=[first.input_ids[0], *first.input_ids]), second],
            [dataclasses.replace(first, input_ids=[first.input_ids[0] + 1, *first.input_ids[1:]]), second],
        )
    ]
    assert [reason.split(" is ")[-1].split(":")[0] for reason in reasons] == [
        "trained never",
        "trained 2 times",
        "no document and no refusal",
        "document 0",
        "document 0",
    ]


def test_history_trained_as_it_is_rendered_later_is_found() -> None:
    """The single render of a template that forgets reasoning: the first answer stands there without its reasoning."""
    judge, _ = judge_and_documents("forgets-thinking", case("think field, 2 turns"))
    _, a1, _, a2 = (message["content"] for message in judge.renders.messages)
    assert judge.renders.full is not None
    before, rest = judge.renders.full.split(a1)
    middle, last = rest.split("<think>")
    assert a2 in last
    document = by_hand(
        judge,
        (before, False),
        (f"{a1}<|im_end|>", True),
        (middle.removeprefix("<|im_end|>"), False),
        (f"<think>{last}".rstrip(), True),
        ("\n", False),
    )
    verdict = judge.judge([document])
    assert verdict.outcome == "WRONG"
    assert "which it would write at inference" in verdict.reason


def test_the_stop_token_of_history_in_place_of_the_one_at_inference_is_found() -> None:
    judge, _ = judge_and_documents("channels", case("plain, 2 turns"))
    q1, a1, q2, a2 = (message["content"] for message in judge.renders.messages)
    document = by_hand(
        judge,
        (f"<|start|>user<|message|>{q1}<|end|><|start|>assistant", False),
        (f"<|channel|>final<|message|>{a1}<|end|>", True),
        (f"<|start|>user<|message|>{q2}<|end|><|start|>assistant", False),
        (f"<|channel|>final<|message|>{a2}<|return|>", True),
    )
    assert judge.judge([document]).reason.startswith("messages[1]: at inference it ends with '<|return|>'")


def test_weights_that_are_lost_or_changed_are_found() -> None:
    plain = case("plain, 2 turns")
    weights = (0.0, 0.5, 0.0, 2.0)
    conversation = dataclasses.replace(plain.conversation, weights=weights)
    judge, documents = judge_and_documents("chatml", dataclasses.replace(plain, conversation=conversation))
    assert judge.judge(documents).outcome == "exact"
    (document,) = documents
    assert document.weights is not None
    lost = dataclasses.replace(document, weights=None)
    doubled = dataclasses.replace(document, weights=[2 * weight for weight in document.weights])
    everywhere = dataclasses.replace(document, weights=[weight or 1.0 for weight in document.weights])
    assert [judge.judge([changed]).outcome for changed in (lost, doubled, everywhere)] == ["WRONG"] * 3


def test_a_template_without_a_stop_token_must_be_named_in_the_notes() -> None:
    judge, documents = judge_and_documents("no-stop", case("plain, 1 turn"))
    assert judge.judge(documents).outcome == "exact"
    silent = [dataclasses.replace(document, notes=()) for document in documents]
    assert judge.judge(silent).reason.endswith("without a stop token, and no note says so")


def test_what_a_template_drops_in_silence_is_found() -> None:
    text = (TEMPLATES / "drops-results.jinja").read_text(encoding="utf-8")
    judge = Judge(tokenizer_for("drops-results", text), case("tool, 1 call"), ("<|im_end|>",))
    assert judge.renders.full is not None
    before, answer = judge.renders.full.rsplit("assistant\n", 1)
    first, call = before.split("assistant\n", 1)
    end = "<|im_end|>"
    call, middle = call.split(end)
    parts = [(f"{first}assistant\n", False), (call + end, True), (f"{middle}assistant\n", False)]
    document = by_hand(judge, *parts, (answer.rstrip(), True), ("\n", False))
    assert judge.judge([document]).reason == "the template drops all of messages[2] (tool), and nothing says so"
    noted = dataclasses.replace(document, notes=("the template leaves out the result",))
    assert judge.judge([noted]).outcome == "not rendered"


def test_a_refusal_counts_as_not_rendered_only_if_the_template_drops_something() -> None:
    text = (TEMPLATES / "drops-results.jinja").read_text(encoding="utf-8")
    tokenizer = tokenizer_for("drops-results", text)
    for name, outcome in (("tool, 1 call", "not rendered"), ("plain, 1 turn", "refused")):
        assert Judge(tokenizer, case(name), ("<|im_end|>",)).judge(MaskError("no")).outcome == outcome


@pytest.mark.parametrize(
    ("gap", "prompt", "expected"),
    [
        (["<A>", "</think>"], ["<A>", "<think>", "</think>"], "<A></think>"),
        (["<A>", "</think>"], ["<A>", "<think>"], "<A>"),
        (["<A>", "\n\n"], ["<A>", "\n"], "<A>\n"),
        (["x", "\n", "<A>", "\n"], ["x", "<A>", "\n"], "x\n<A>\n"),
        (["<A>", "<think>", "\n", "</think>"], ["<A>", "<think>", "\n\n"], "<A><think>\n"),
        ([], ["<A>"], ""),
    ],
)
def test_what_a_prompt_covers(gap: list[str], prompt: list[str], expected: str) -> None:
    assert "".join(gap)[: covered(gap, prompt)] == expected


@pytest.mark.parametrize("name", BUILDERS)
def test_every_word_of_a_case_exists_once(name: str) -> None:
    built: Conversation = case(name).conversation
    words = [word for group in (case(name).words, case(name).reasoning) for own in group.values() for word in own]
    words += case(name).schema
    assert len(words) == len(set(words))
    text = repr(built.messages).lower() + repr(built.tools)
    assert [word for word in words if text.count(word) != 1] == []
