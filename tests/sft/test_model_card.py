"""The model card: it says of these weights what is known of them, whatever stands in the settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_args

from sft.model_card import Card, Told, model_card

DATA = {
    "counts": {
        "rows": 9, "bad rows": 1, "truncated": 2, "dropped: longer than max_length": 1, "documents": 8, "tokens": 400,
        "trained_tokens": 160,
    },
    "notes": {"no stop token ends the turn in this template": 8},
}  # fmt: skip
FIGURES = {"exact": {"value": 0.5, "low": 0.25, "high": 0.75, "num_rows": 8}}
RECORDS: list[dict[str, Any]] = [
    {"type": "train", "step": step, "loss": 4.0 / step, "num_tokens": 100 * step, "num_trained_tokens": 40 * step}
    for step in (1, 2, 4)
]
RECORDS += [{"type": "eval", "step": step, "eval_loss": 5.0 / step, "num_trained_tokens": 9} for step in (2, 4)]
RECORDS += [{**RECORDS[2], "type": "summary"}]


def card(settings: dict[str, Any] | None = None, **given: Any) -> Card:
    """The card of a model trained with these settings."""
    values: dict[str, Any] = {
        "name": "model",
        "args": tiny_args(Path("data.jsonl"), Path("run"), **(settings or {})),
        "told": Told(RECORDS, [{"data": "held_out.jsonl", "num_rows": 8, "figures": FIGURES}], {"train": DATA}),
        "template": "{{ messages }}",
        "step": None,
        "license_name": None,
        "proof": "the logits of 48 tokens are those of the training to 1e-06 of the largest",
        "is_adapter": False,
    }
    return model_card(**{**values, **given})


def test_the_card_of_the_final_model_has_all_that_is_known() -> None:
    text = card().text
    assert "training: 4.0000 at the first step, 1.0000 at the last" in text
    assert "1.2500 at last, best 1.2500 at step 4" in text
    assert "| exact match | 50.0 % | 25.0 % … 75.0 % |" in text
    assert "160 of the 400 tokens seen so far were trained (40%)" in text


def test_the_card_of_a_checkpoint_says_nothing_of_later_weights() -> None:
    found = card(step=2)
    assert "training: 4.0000 at the first step, 2.0000 at the last" in found.text
    assert "2.5000 at last, best 2.5000 at step 2" in found.text
    assert "exact match" not in found.text
    assert "None of the weights after step 2" in found.text
    assert "80 of the 200 tokens seen so far were trained (40%)" in found.text
    assert found.plot is None or found.plot != card().plot


def test_settings_that_hold_signs_of_markdown_do_not_break_the_table() -> None:
    prompt = "Say `a` | or ``b``\nor c"
    text = card({"system_prompt": prompt, "template_kwargs": {"a": "|", "b": "`"}}).text
    rows = [line for line in text.splitlines() if re.match(r"\| (system_prompt|template_kwargs) ", line)]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [3, 3]
    assert r'| ```"Say `a` \| or ``b``\nor c"``` |' in rows[0]
    assert r'| ``{"a": "\|", "b": "`"}`` |' in rows[1]


def test_the_data_are_told_as_training_counted_them() -> None:
    text = card().text
    assert "- `data.jsonl`, seen 1 × per epoch\n- 9 rows, of which 1 were refused and left out\n" in text
    assert "- 8 documents with 400 tokens, 160 of them trained\n- 2 documents truncated\n" in text
    assert "- 1 document dropped: longer than max_length" in text
    assert "refused and left out" not in card(told=Told(RECORDS, [], {})).text


def test_of_the_masks_only_what_holds_is_said() -> None:
    text = card().text
    assert "every assistant turn, and the token that ends it. Where they stand was proven" in text
    assert "- 8 documents: no stop token ends the turn in this template" in text
    assert "the last assistant turn, and" in card({"train_on": "last"}).text
    everything = card({"train_on": "all"}).text
    assert "- every token\n" in everything
    assert "proven" not in everything


@pytest.mark.parametrize(
    ("base", "named", "shown"),
    [("Qwen/Qwen3-0.6B", True, "Qwen/Qwen3-0.6B"), ("./base", False, "base"), ("/gone/base", False, "base")],
)
def test_the_base_model_is_named_where_others_can_find_it(base: str, named: bool, shown: str) -> None:
    text = card({"model_config": None, "model_name_or_path": base}).text
    assert (f'base_model: "{base}"' in text) == named
    assert f"A model from `{shown}`," in text
    assert "/gone" not in text
