"""How close an answer is to the reference: the field's usual measures of text. Pure."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation

Metric = Callable[[str, str], float | None]
"""(answer, reference) → 0 to 1; None where the reference is none of the kind that it measures."""

_THOUGHT_END = re.compile(r"</think(?:ing)?>")
_ARTICLES = ("a", "an", "the")
_CURRENCY = "$€£¥"
_NUMBER = re.compile(
    # A sign is none behind a letter, a digit, or what ends a number: `5-10`, `x-3`, `5 %-10 %`, `$5-$10`.
    rf"(?:(?<![^\W_])(?<![%)\]])(?<!\d[{_CURRENCY}])(?P<sign>[-+−])(?:[{_CURRENCY}] ?)?)?"
    # Commas stand before three digits each: `1,234`, but `1,2,3` are three numbers.
    r"(?P<digits>(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![^\W_])(?<!\.)\.\d+)(?:[eE][-+]?\d+)?)"
)
_ALONE = re.compile(rf"[{_CURRENCY}%\s]*(?:{_NUMBER.pattern})[{_CURRENCY}%.\s]*")
_MARK = "####"


def answer_of(generation: str) -> str:
    """What a generation says in the end: what stands behind its thoughts (`</think>`), without white space around."""
    return _THOUGHT_END.split(generation)[-1].strip()


def exact_match(answer: str, reference: str) -> float:
    """1 if both are the same but for white space around them."""
    return float(answer.strip() == reference.strip())


def normalised_match(answer: str, reference: str) -> float:
    """1 if both are the same after `normalised`."""
    return float(normalised(answer) == normalised(reference))


def normalised(text: str) -> str:
    """Without case, punctuation, English articles and repeated white space (Rajpurkar et al., "SQuAD", 2016); any
    script's punctuation counts, and ASCII's symbols. What Unicode calls compatible (NFKC) is the same."""
    kept = "".join(each for each in _folded(text) if not _is_punctuation(each))
    return " ".join(word for word in kept.split() if word not in _ARTICLES)


def _folded(text: str) -> str:
    """Without case, in one spelling of each character."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _words(text: str) -> list[str]:
    """Runs of letters, digits and marks such as vowel signs, of any script, without case."""
    return "".join(each if _is_of_a_word(each) else " " for each in _folded(text)).split()


def _is_of_a_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the words of both after `normalised`, each word as often as it stands
    there (SQuAD). Where one of them has no words, 1 if neither has."""
    found, wanted = normalised(answer).split(), normalised(reference).split()
    return _f1(sum((Counter(found) & Counter(wanted)).values()), len(found), len(wanted))


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words (Lin, "ROUGE", 2004), without stemming. Words are runs of
    letters, digits and marks of any script, without case; a script without spaces has a word where it has a clause."""
    found, wanted = _words(answer), _words(reference)
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
    """1 if the answer's number is the reference's, as numbers: `1,000.0` is `1000`. The number is the last one of the
    line behind `####` (GSM8K); where that line has none, as of a Markdown heading, the last one of all that follows;
    where an answer has none there either, its last one. None where the reference is no number itself and marks none."""
    wanted = _marked_number(reference)
    if wanted is None and _ALONE.fullmatch(reference):
        wanted = _last_number(reference)
    if wanted is None:
        return None
    found = _marked_number(answer)
    return float((_last_number(answer) if found is None else found) == wanted)


def _marked_number(text: str) -> Decimal | None:
    """The number behind the last mark; None without a mark, or a number behind it."""
    _, mark, rest = text.rpartition(_MARK)
    if not mark:
        return None
    line = rest.lstrip().partition("\n")[0]
    found = _last_number(line)
    return _last_number(rest) if found is None else found


def _last_number(text: str) -> Decimal | None:
    """The last number of a text; None if there is none."""
    found = list(_NUMBER.finditer(text))
    if not found:
        return None
    sign = "-" if found[-1]["sign"] in ("-", "−") else ""
    try:
        return Decimal(sign + found[-1]["digits"].replace(",", ""))
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
