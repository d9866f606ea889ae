"""The ways in which masks of other trainers fail, a test for each. The numbers are those of our study of the field.

1 to 8: what templates do. What data does: test_failure_modes_of_data.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sft.batching import IGNORED_LABEL, collate
from sft.formats import Conversation
from sft.masking import Masker, MaskError

from .control_tokens import stop_strings, tokenizer_for
from .talks import TEMPLATES, load, rendered_ids, stretches, talk, template
from .tokenizers_made import with_bos_of_its_own

STOP_BY_NEXT = ("inst-stop-in-next", "stop-within", "numbered-tokens")
"""Templates whose stop token the next message writes, so that the last answer has none."""
NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))


@pytest.mark.parametrize("name", NAMES)
def test_failure_mode_01_no_template_gives_a_mask_of_zeros(name: str) -> None:
    tokenizer = load(name)
    (document,) = Masker(tokenizer).documents(talk("bofu dike", "gapi nazo"))
    (text,) = stretches(tokenizer, document)
    stops = [stop for stop in stop_strings(name, template(name)) if stop != "none"]
    answer = "GAPI NAZO" if name == "shouts" else "gapi nazo"
    assert answer in text
    rest = text.split(answer)[1].strip()
    assert rest in (stops or [""]) or (rest == "" and name in STOP_BY_NEXT)


@pytest.mark.parametrize("name", ["chatml", "markers", "headings"])
def test_failure_mode_01_a_row_of_which_nothing_would_be_trained_is_refused(name: str) -> None:
    with pytest.raises(MaskError):
        Masker(load(name)).documents(talk("bofu", "gapi", weights=(0.0, 0.0)))
    with pytest.raises(MaskError):
        Masker(load(name)).documents(Conversation(({"role": "user", "content": "bofu"},), "row:1"))


MARKED_FIRST = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
    "{% else %}<|user|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    "text", [MARKED_FIRST, MARKED_FIRST.replace("{% generation %}", "").replace("{% endgeneration %}", "")]
)
def test_failure_mode_02_a_mask_does_not_run_on_into_the_users_turn(text: str) -> None:
    tokenizer = tokenizer_for("marked first", text)
    messages = (
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "bofu dike"},
        {"role": "assistant", "content": "gapi"},
        {"role": "user", "content": "nazo"},
    )
    (document,) = Masker(tokenizer).documents(Conversation(messages, "row:1"))
    assert document.input_ids == rendered_ids(tokenizer, messages)
    assert stretches(tokenizer, document) == ["a<|end|>", "gapi<|end|>"]


@pytest.mark.parametrize("thinks", [False, True])
def test_failure_mode_03_a_template_that_rewrites_history_gives_each_turn_as_it_is_at_inference(thinks: bool) -> None:
    tokenizer = load("forgets-thinking")
    thoughts = ["<think>\nrilu mese\n</think>\n\n", "<think>\nvota kapu\n</think>\n\n"] if thinks else ["", ""]
    messages = talk("bofu", thoughts[0] + "gapi", "dike", thoughts[1] + "nazo").messages
    documents = Masker(tokenizer).documents(Conversation(messages, "row:1"))
    found = sorted((stretches(tokenizer, document), document.input_ids) for document in documents)
    whole, first = rendered_ids(tokenizer, messages), rendered_ids(tokenizer, messages[:2])
    if thinks:
        expected = [([f"{thoughts[0]}gapi<|im_end|>"], first), ([f"{thoughts[1]}nazo<|im_end|>"], whole)]
    else:
        expected = [(["gapi<|im_end|>", "nazo<|im_end|>"], whole)]
    assert found == sorted(expected)


UNLIKE_THEIR_PROMPT = ("opens-thinking", "counts", "names-blank-prompt", "splits-reasoning", "no-generation-prompt")
"""Templates whose generation prompt is not how their answers begin, in text or in tokens."""


@pytest.mark.parametrize("name", sorted({*NAMES} - {*UNLIKE_THEIR_PROMPT}))
def test_failure_mode_04_what_is_trained_continues_what_the_saved_tokenizer_gives_at_inference(
    name: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = load(name)
    messages = talk("bofu dike", "gapi nazo", "rilu", "mese vota").messages
    documents = Masker(tokenizer).documents(Conversation(messages, "row:1"))
    tokenizer.save_pretrained(tmp_path)
    served = AutoTokenizer.from_pretrained(tmp_path)
    starts = []
    for document in documents:
        flags = [False, *document.trained]
        for start in [at for at in range(len(document)) if flags[at + 1] and not flags[at]]:
            starts.append(list(document.input_ids[:start]))
    prompts = [rendered_ids(served, messages[:end], add_generation_prompt=True) for end in (1, 3)]
    assert sorted(starts) == sorted(prompts)


@pytest.mark.parametrize("name", ["closed-thinking", "thinks-always", "quotes-the-question", "chatml", "channels"])
def test_failure_mode_05_template_scaffold_is_not_trained(name: str) -> None:
    tokenizer = load(name)
    messages = talk("bofu", "gapi", "dike", "nazo").messages
    for document in Masker(tokenizer).documents(Conversation(messages, "row:1")):
        for end in (1, 3):
            prompt = rendered_ids(tokenizer, messages[:end], add_generation_prompt=True)
            if document.input_ids[: len(prompt)] == prompt:
                header = len(prompt) - len(rendered_ids(tokenizer, messages[:end]))
                assert header > 0
                assert not any(document.trained[len(prompt) - header : len(prompt)])
    assert not any("\n\n</think>" in text for text in stretches(tokenizer, document))


@pytest.mark.parametrize("name", NAMES)
def test_failure_mode_06_every_turn_trains_its_stop_token_or_the_notes_name_its_lack(name: str) -> None:
    tokenizer, stops = load(name), stop_strings(name, template(name))
    masker = Masker(tokenizer)
    documents = masker.documents(talk("bofu", "gapi", "dike", "nazo"))
    stop_ids = {tokenizer.convert_tokens_to_ids(stop) for stop in stops if stop != "none"}
    for document in documents:
        noted = any("stop token" in note for note in document.notes)
        flags = [*document.trained, False]
        ends = [document.input_ids[at] for at in range(len(document)) if flags[at] and not flags[at + 1]]
        assert ends
        assert all(token_id in stop_ids for token_id in ends) or noted
        assert noted == (name in ("headings", "no-stop", *STOP_BY_NEXT))
    assert masker.stop_token_ids <= stop_ids
    assert bool(masker.stop_token_ids) == bool(stop_ids)


def test_failure_mode_06_a_stop_token_that_the_next_message_writes_is_trained() -> None:
    for name, end in zip(STOP_BY_NEXT, ("</s>", "<|assistant_end|>", "\n<extra_id_1>"), strict=True):
        tokenizer = load(name)
        (document,) = Masker(tokenizer).documents(talk("bofu", "gapi", "dike", "nazo"))
        assert [text.rstrip() for text in stretches(tokenizer, document)] == [f"gapi{end}", "nazo"]


@pytest.mark.parametrize("name", ["chatml", "trims", "indices"])
def test_failure_mode_07_padding_with_the_end_of_turn_hides_no_end_of_turn(name: str) -> None:
    tokenizer = load(name)
    end = tokenizer.eos_token_id
    masker = Masker(tokenizer, pad_token_id=end)
    documents = [masker.documents(talk(*texts))[0] for texts in (("bofu", "a"), ("dike", "gapi nazo rilu mese"))]
    assert len(documents[0]) < len(documents[1])
    batch = collate(documents, end)
    for row, document in enumerate(documents):
        length = len(document)
        final = max(at for at in range(length) if document.trained[at])
        assert document.input_ids[final] == end
        assert batch.labels[row, final] == end
        assert torch.all(batch.labels[row, length:] == IGNORED_LABEL)
        assert not torch.any(batch.attention_mask[row, length:])


@pytest.mark.parametrize("name", ["trims", "dated", "inst-stop-in-next", "chatml"])
def test_failure_mode_08_the_beginning_of_text_stands_once(name: str) -> None:
    tokenizer = with_bos_of_its_own(load(name))
    plain = tokenizer("bofu")["input_ids"]
    assert plain[0] == tokenizer.bos_token_id  # the tokenizer does add one where it is not told otherwise
    (document,) = Masker(tokenizer).documents(talk("bofu", "gapi", "dike", "nazo"))
    assert list(document.input_ids).count(tokenizer.bos_token_id) == (0 if name == "chatml" else 1)
    assert document.input_ids == rendered_ids(tokenizer, talk("bofu", "gapi", "dike", "nazo").messages)
