"""How close an answer is to the reference: the field's usual measures of text. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation

Metric = Callable[[str, str], float | None]
"""(answer, reference) → 0 to 1; None where the reference is none of the kind that it measures."""

_THOUGHT_END = re.compile(r".*</think(?:ing)?>", re.DOTALL)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"[-+−]?\d(?:[\d,]*\d)?(?:\.\d+)?(?:[eE][-+]?\d+)?")
_MARKED = re.compile(r"####\s*(.+)")


def answer_of(generation: str) -> str:
    """What a generation says in the end: what stands behind its thoughts (`</think>`), without white space around."""
    return _THOUGHT_END.sub("", generation, count=1).strip()


def exact_match(answer: str, reference: str) -> float:
    """1 if both are the same but for white space around them."""
    return float(answer.strip() == reference.strip())


def normalised_match(answer: str, reference: str) -> float:
    """1 if both are the same after `normalised`."""
    return float(normalised(answer) == normalised(reference))


def normalised(text: str) -> str:
    """Without case, punctuation, English articles and repeated white space (Rajpurkar et al., "SQuAD", 2016); any
    script's punctuation counts."""
    kept = "".join(each for each in text.casefold() if not unicodedata.category(each).startswith("P"))
    return " ".join(_ARTICLES.sub(" ", kept).split())


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the words of both after `normalised`, each word as often as it stands
    there (SQuAD). Where one of them has no words, 1 if neither has."""
    found, wanted = normalised(answer).split(), normalised(reference).split()
    return _f1(sum((Counter(found) & Counter(wanted)).values()), len(found), len(wanted))


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words (Lin, "ROUGE", 2004), without stemming. Words are runs of
    letters and digits of any script, without case."""
    found, wanted = (_WORD.findall(text.casefold()) for text in (answer, reference))
    return _f1(longest_common_subsequence(found, wanted), len(found), len(wanted))


def _f1(common: int, num_found: int, num_wanted: int) -> float:
    if not num_found or not num_wanted:
        return float(num_found == num_wanted)
    return 2 * common / (num_found + num_wanted)


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Its length, with a bit for each word of the first (Hyyrö, "Bit-parallel LCS-length computation", 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    everything = (1 << len(first)) - 1
    row = everything
    for word in second:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & everything
    return len(first) - row.bit_count()


def numeric_match(answer: str, reference: str) -> float | None:
    """1 if the answer's number is the reference's, as numbers: `1,000.0` is `1000`. The number stands behind `####`
    (GSM8K); where an answer has no such mark, its last number counts. None where the reference is no number itself and
    marks none."""
    marked = _MARKED.findall(reference)
    wanted = _number(marked[-1] if marked else reference, is_alone=not marked)
    if wanted is None:
        return None
    marks = _MARKED.findall(answer)
    return float(_number(marks[-1] if marks else answer, is_alone=False) == wanted)


def _number(text: str, *, is_alone: bool) -> Decimal | None:
    """The last number of a text; None if there is none, or with `is_alone` anything beside it but a currency sign, a
    per cent sign or a full stop."""
    found = _NUMBER.findall(text)
    if not found or (is_alone and text.strip().strip("$€£%. ") != found[-1]):
        return None
    try:
        return Decimal(found[-1].replace(",", "").replace("−", "-"))
    except InvalidOperation:
        return None


def regex_match(pattern: re.Pattern[str]) -> Metric:
    """A metric by a regular expression: 1 if it is found in the answer. If it has a group, what the group holds must be
    what it holds in the reference; None where it is not found there."""

    def metric(answer: str, reference: str) -> float | None:
        if not pattern.groups:
            return float(pattern.search(answer) is not None)
        wanted, found = pattern.search(reference), pattern.search(answer)
        return None if wanted is None else float(found is not None and found[1] == wanted[1])

    return metric


METRICS: Mapping[str, Metric] = {
    "exact": exact_match,
    "normalised": normalised_match,
    "f1": token_f1,
    "rouge_l": rouge_l,
    "numeric": numeric_match,
}
"""Name → metric."""
