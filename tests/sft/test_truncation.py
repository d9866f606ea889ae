"""Documents that are too long: what is cut, what is dropped, and that no header is cut in half and trained."""

from __future__ import annotations

import pytest
from tiny import TOKENIZER

from sft.config import ROOT
from sft.dataset import ConversationDataset
from sft.documents import Document
from sft.errors import DataError
from sft.formats import Conversation
from sft.masking import Masker, MaskOptions
from sft.truncation import NOTHING_LEFT, TOO_LONG, TRUNCATED, Truncation, fitted


def document(mask: str, turn_starts: tuple[int, ...] = ()) -> Document:
    return Document(list(range(len(mask))), [flag == "x" for flag in mask], None, (), turn_starts)


@pytest.mark.parametrize(
    ("mask", "truncation", "starts", "kept", "what"),
    [
        ("..xx", "right", (), [0, 1, 2, 3], None),
        ("..xx....", "right", (), [0, 1, 2, 3], None),  # what follows the last trained token makes nothing too long
        ("..xxx.", "right", (), [0, 1, 2, 3], TRUNCATED),
        (".x.....x", "right", (), [0, 1], TRUNCATED),
        ("....xx", "right", (), None, NOTHING_LEFT),
        ("xxxxxx", "drop", (), None, TOO_LONG),
        ("s.x.x.x", "left", (1, 3, 5), [0, 5, 6], TRUNCATED),
        (".x.x.x", "left", (0, 2, 4), [2, 3, 4, 5], TRUNCATED),
        (".x..x.", "left", (0, 2), [2, 3, 4], TRUNCATED),
        (".x.....x", "left", (0, 2), None, NOTHING_LEFT),
        ("..xxxx", "left", (0,), [0, 1, 2, 3], TRUNCATED),
    ],
)
def test_what_is_left(
    mask: str, truncation: Truncation, starts: tuple[int, ...], kept: list[int] | None, what: str | None
) -> None:
    found, reason = fitted(document(mask, starts), 4, truncation)
    assert (None if found is None else list(found.input_ids), reason) == (kept, what)
    if found is not None:
        assert list(found.trained) == [mask[index] == "x" for index in found.input_ids]


def masker(truncation: Truncation) -> Masker:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.chat_template = (ROOT / "sft" / "templates" / "chatml.jinja").read_text()
    return Masker(tokenizer, options=MaskOptions(truncation=truncation))


def conversation(*contents: str) -> Conversation:
    roles = ["system", *("user", "assistant") * len(contents)]
    messages = tuple(
        {"role": role, "content": text} for role, text in zip(roles, ["be brief", *contents], strict=False)
    )
    return Conversation(messages, "t.jsonl:1")


@pytest.mark.parametrize("truncation", ["right", "left"])
@pytest.mark.parametrize("max_length", range(8, 60, 3))
def test_failure_mode_18_every_trained_span_follows_its_whole_header(truncation: Truncation, max_length: int) -> None:
    how = masker(truncation)
    talk = conversation("first question", "first answer", "second question", "second answer", "third", "the end")
    from tokenizers import Tokenizer

    tokens = Tokenizer.from_str(how.parts.json)
    (whole,) = how.documents(talk)
    found, reason = fitted(whole, max_length, truncation)
    if found is None:
        assert reason == NOTHING_LEFT
        return
    assert len(found) <= max_length
    header = tokens.encode("<|im_start|>assistant\n", add_special_tokens=False).ids
    begins = [i for i, flag in enumerate(found.trained) if flag and not found.trained[i - 1]]
    assert begins
    for begin in begins:
        assert list(found.input_ids[begin - len(header) : begin]) == header
    assert found.trained[-1]
    text = tokens.decode(list(found.input_ids), skip_special_tokens=False)
    assert text.startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\n")
    if truncation == "left":
        assert "third" in text


def test_the_fast_way_tells_the_same_turn_starts() -> None:
    talks = [conversation("one", "two", "three", word) for word in ("four", "five", "six")]
    how = masker("left")
    slow = [how.documents(talk)[0].turn_starts for talk in talks]
    fast = [made[0].turn_starts for made in how.encode(talks) if isinstance(made, list)]
    assert slow == fast
    assert len(slow[0]) == 2


def test_failure_mode_17_a_prompt_that_fills_the_length_is_dropped_counted_and_never_trained() -> None:
    how = masker("right")
    short, long = conversation("hi", "yes"), conversation("many words " * 30, "yes")
    data = ConversationDataset([short, long], how, 30)
    assert (len(data), data.counts[NOTHING_LEFT]) == (1, 1)
    with pytest.raises(DataError, match=r"no row has a trained token within max_length 30\. Raise max_length\."):
        ConversationDataset([long], how, 30)


def test_failure_mode_15_labels_are_whole_numbers_and_some_are_trained() -> None:
    import torch

    batch = ConversationDataset([conversation("hi", "yes")], masker("right"), 100).batch([0])
    assert batch.input_ids.dtype == batch.labels.dtype == torch.long
    assert batch.num_trained_tokens > 0
