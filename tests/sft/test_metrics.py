"""Measures of text against values by hand and by a plain definition, and intervals against what is known of them."""

from __future__ import annotations

import random
import re
import string
import unicodedata
from functools import cache
from typing import Literal

import numpy as np
import pytest

from sft.intervals import compare, estimate, sign_flip_p
from sft.metrics import (
    answer_of,
    exact_match,
    longest_common_subsequence,
    normalised,
    normalised_match,
    numeric_match,
    regex_match,
    rouge_l,
    token_f1,
)


def test_exact_match_heeds_all_but_white_space_around() -> None:
    assert exact_match(" Paris.\n", "Paris.") == 1.0
    assert exact_match("paris.", "Paris.") == 0.0


def test_normalised_match_leaves_out_case_punctuation_and_articles() -> None:
    assert normalised("The  «Answer»: an apple， a pear。") == "answer apple pear"
    assert normalised_match("The cat.", "cat") == 1.0
    assert normalised_match("cats", "cat") == 0.0


@pytest.mark.parametrize("sign", string.punctuation)
def test_normalised_match_leaves_out_ascii_symbols_as_squad_does(sign: str) -> None:
    assert normalised(f"{sign}5 {sign} b{sign}") == "5 b"


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKD"])
def test_the_spelling_of_a_character_makes_no_difference(form: Literal["NFC", "NFD", "NFKD"]) -> None:
    text = "Café Ångström 한국어 नहीं ﬁx"
    spelt = unicodedata.normalize(form, text)
    assert normalised_match(spelt, text) == token_f1(spelt, text) == rouge_l(spelt, text) == 1.0


def test_marks_belong_to_words() -> None:
    assert rouge_l("की", "का") == 0.0
    assert rouge_l("राम की किताब", "राम का किताब") == pytest.approx(2 / 3)
    assert normalised("a\u0331 a") == "a\u0331"  # no article, for all that it begins like one


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [("a b c", "b c d", 2 * 2 / (2 + 3)), ("x x", "x", 2 / 3), ("", "", 1.0), ("", "word", 0.0), ("the", "a", 1.0)],
)
def test_token_f1(answer: str, reference: str, expected: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("police killed the gunman", "police kill the gunman", 3 / 4),  # the example of Lin, 2004
        ("the gunman kill police", "police kill the gunman", 2 / 4),
        ("Grüße, Welt!", "grüße welt", 1.0),
        ("a", "", 0.0),
    ],
)
def test_rouge_l(answer: str, reference: str, expected: float) -> None:
    assert rouge_l(answer, reference) == pytest.approx(expected)


def test_the_longest_common_subsequence_is_that_of_its_definition() -> None:
    rng = random.Random(0)
    for _ in range(100):
        first, second = (tuple(rng.choices("abcd", k=rng.randint(0, 12))) for _ in range(2))

        @cache
        def length(i: int, j: int, a: tuple[str, ...] = first, b: tuple[str, ...] = second) -> int:
            if i == len(a) or j == len(b):
                return 0
            return 1 + length(i + 1, j + 1) if a[i] == b[j] else max(length(i + 1, j), length(i, j + 1))

        assert longest_common_subsequence(first, second) == length(0, 0)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("so it is 1,234.50.", "step 1 … #### 1234.5", 1.0),
        ("#### 7\n", "#### 7", 1.0),
        ("#### 7, and not 8", "#### 8", 1.0),
        ("7", "#### 8", 0.0),
        ("no number", "#### 8", 0.0),
        ("it costs $18", "$18", 1.0),
        ("−3", "-3", 1.0),
        (".5", "0.5", 1.0),
        ("it is $.50", ".5", 1.0),
        ("5", ".5", 0.0),
        ("1,2,3", "123", 0.0),
        ("1,2,3", "3", 1.0),
        ("1,234,567", "1234567", 1.0),
        ("1,2345", "12345", 0.0),
        ("version 1.2.3", "3", 1.0),
        ("between 5-10", "10", 1.0),
        ("COVID-19", "19", 1.0),
        ("5 %-10 %", "10", 1.0),
        ("$5-$10", "10", 1.0),
        ("(-3)", "-3", 1.0),
        ("-$5", "-5", 1.0),
        ("-$5", "5", 0.0),
        ("$-5", "-$5", 1.0),
        ("5", "5-10", None),
        ("6", "1,2,3", None),
        ("10", "10 %", 1.0),
        ("#### Final answer\n\n42", "#### 42", 1.0),
        ("42", "#### Final answer\n\n42", 1.0),
        ("It is 42.\n#### Done", "42", 1.0),
        ("#### Step 1\n7\n#### Final answer\n**42**", "42", 1.0),
        ("####\n42", "42", 1.0),
        ("4", "on July 4, we met", None),
        ("4", "no number", None),
    ],
)
def test_numeric_match(answer: str, reference: str, expected: float | None) -> None:
    assert numeric_match(answer, reference) == expected


def test_a_regular_expression_compares_its_group() -> None:
    plain, grouped = regex_match(re.compile("yes")), regex_match(re.compile(r"Answer: (\w)"))
    assert (plain("oh yes", "no"), plain("no", "yes")) == (1.0, 0.0)
    assert (grouped("Answer: B", "Answer: B"), grouped("Answer: C", "Answer: B"), grouped("?", "Answer: B")) == (
        1,
        0,
        0,
    )
    assert grouped("Answer: B", "B") is None


def test_thoughts_are_no_answer() -> None:
    assert answer_of("<think>7? </think> no</think>\n\n8 ") == "8"
    assert answer_of(" 8") == "8"
    assert len(answer_of("Hello! " * 100_000)) == 699_999  # in time that grows with the length alone


def test_intervals_hold_the_mean_nineteen_times_of_twenty() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        found = estimate(generator.random(60) < 0.3, seed=seed)
        held += found.low <= 0.3 <= found.high
    assert 0.90 <= held / 200 <= 0.99


def test_an_estimate_of_a_ratio_is_not_the_mean_of_ratios() -> None:
    found = estimate([10.0, 1.0], [10.0, 4.0])
    assert found.value == pytest.approx(11 / 14)
    assert found == estimate([10.0, 1.0], [10.0, 4.0])
    assert found.low == pytest.approx(0.25)
    assert found.high == pytest.approx(1.0)


def test_p_values_of_models_that_are_alike_are_uniform_and_small_where_they_differ() -> None:
    generator = np.random.default_rng(0)
    alike = [compare(generator.random(50) < 0.5, generator.random(50) < 0.5, seed=seed).p < 0.05 for seed in range(200)]
    assert sum(alike) <= 20
    better = generator.random(200) < 0.6
    found = compare(better, better & (generator.random(200) < 0.5))
    assert found.p < 1e-3
    assert 0 < found.low < found.difference < found.high
    assert sign_flip_p(np.zeros(5)) == 1.0
    assert sign_flip_p([1.0, 1.0, 1.0]) == pytest.approx(0.25)  # 2 of 8 signs
    assert sign_flip_p([1.0, 1.0, 1.001]) == pytest.approx(0.25, abs=0.02)
    assert sign_flip_p(np.ones(3000)) == 0.0
    assert sign_flip_p([1.0, -1.0]) == pytest.approx(1.0)
