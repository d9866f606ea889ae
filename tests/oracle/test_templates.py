"""Exact, or refused with the reason: on templates of our own that show each difficulty, and on those that real models
ship, where the folder of them is at hand (CLEANSFT_TEST_DATA)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sft.masking import Masker

from .cases import BUILDERS, GROUPS, case
from .control_tokens import BUNDLED_TOKENIZER, tokenizer_for
from .coverage import judged, shares
from .results import columns, outcome

OWN = sorted((Path(__file__).parent / "templates").glob("*.jinja"))
DATA = Path(os.environ["CLEANSFT_TEST_DATA"]) if "CLEANSFT_TEST_DATA" in os.environ else None
REAL = sorted((DATA / "chat_templates").glob("*.jinja")) if DATA else []
BARS = {"plain": 1.0, "system": 1.0, "reasoning": 0.95, "tools": 0.90}
"""Group → share of the cases that a template renders at all which must be exact."""
MODES = ("as_rendered", "unroll")

needs_data = pytest.mark.skipif(not REAL, reason="CLEANSFT_TEST_DATA names no folder with chat_templates/")


def real_tokenizer() -> Path:
    assert DATA is not None
    return DATA / "tokenizers" / "dolma2" / "tokenizer.json"


def wrong(template: Path, tokenizer: Path, mode: str = "as_rendered", *, markup_is_special: bool = False) -> list[str]:
    verdicts = judged(template, tokenizer, mode, markup_is_special)
    return [f"{name}: {verdict.reason}" for name, verdict in verdicts.items() if verdict.outcome == "WRONG"]


@pytest.mark.parametrize("template", OWN, ids=lambda path: path.stem)
@pytest.mark.parametrize("mode", MODES)
def test_own_template_is_masked_right(template: Path, mode: str) -> None:
    assert wrong(template, BUNDLED_TOKENIZER, mode) == []


@pytest.mark.parametrize("template", OWN, ids=lambda path: path.stem)
def test_own_template_is_masked_right_with_markup_as_special_tokens(template: Path) -> None:
    assert wrong(template, BUNDLED_TOKENIZER, markup_is_special=True) == []


@pytest.mark.parametrize("group", GROUPS)
def test_own_templates_are_masked_and_not_refused(group: str) -> None:
    exact, rendered = shares({path.stem: judged(path, BUNDLED_TOKENIZER) for path in OWN})[group]
    assert rendered >= 30
    assert exact / rendered >= BARS[group]


@pytest.mark.parametrize("template", OWN, ids=lambda path: path.stem)
def test_refuse_mode_refuses_what_does_not_continue_its_prompt_and_nothing_else(template: Path) -> None:
    refusing, default = judged(template, BUNDLED_TOKENIZER, "refuse"), judged(template, BUNDLED_TOKENIZER)
    assert wrong(template, BUNDLED_TOKENIZER, "refuse") == []
    for name in BUILDERS:
        if default[name].outcome == "exact":
            mismatch = "prompt mismatch" in default[name].remarks
            assert (name, refusing[name].outcome) == (name, "refused" if mismatch else "exact")


def other_than_alone(template: Path, tokenizer_file: Path) -> list[str]:
    """The cases that come out otherwise among many of their form than alone, with a new masker."""
    text = template.read_text(encoding="utf-8")
    tokenizer = tokenizer_for(template.stem, text, tokenizer_file)
    talks = [case(name, seed).conversation for seed in range(4) for name in BUILDERS]
    together, alone = Masker(tokenizer).encode(talks), Masker(tokenizer)
    return [
        f"{talk.source}: {columns(found)} instead of {columns(outcome(alone, talk))}"
        for talk, found in zip(talks, together, strict=True)
        if columns(found) != columns(outcome(alone, talk))
    ]


@pytest.mark.parametrize("template", OWN, ids=lambda path: path.stem)
def test_encoding_many_gives_what_encoding_one_gives(template: Path) -> None:
    assert other_than_alone(template, BUNDLED_TOKENIZER) == []


@needs_data
@pytest.mark.parametrize("template", REAL, ids=lambda path: path.stem)
def test_encoding_many_with_a_real_template_gives_what_encoding_one_gives(template: Path) -> None:
    assert other_than_alone(template, real_tokenizer()) == []


@needs_data
@pytest.mark.parametrize("template", REAL, ids=lambda path: path.stem)
def test_real_template_is_masked_right(template: Path) -> None:
    assert wrong(template, real_tokenizer()) == []


@needs_data
@pytest.mark.parametrize("template", REAL, ids=lambda path: path.stem)
def test_real_template_is_masked_right_with_markup_as_special_tokens(template: Path) -> None:
    assert wrong(template, real_tokenizer(), markup_is_special=True) == []


@needs_data
@pytest.mark.parametrize("template", REAL, ids=lambda path: path.stem)
def test_real_template_is_masked_right_under_its_true_prompt(template: Path) -> None:
    assert wrong(template, real_tokenizer(), "unroll") == []


@needs_data
@pytest.mark.parametrize("group", GROUPS)
def test_real_templates_are_masked_and_not_refused(group: str) -> None:
    exact, rendered = shares({path.stem: judged(path, real_tokenizer()) for path in REAL})[group]
    assert rendered >= 50
    assert exact / rendered >= BARS[group]
