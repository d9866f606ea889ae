"""Pure: the quick start's conversations, split so that no held-out question is ever trained on.

The assistant counts days aloud. So it has something to learn that carries over: which day follows which, and that it
stops at the number it was asked for. Of the 84 sums (day, number of days, direction) 7 are held out altogether: in
training they occur in no wording. Months and greetings are looked up: each is trained in all wordings but one.
Draws come from a hash, not from a random generator: they depend neither on a library nor on Python's version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

SEED = "quickstart-1"
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
NUMBERS = ("one", "two", "three", "four", "five", "six")
DIRECTIONS = {"after": 1, "before": -1}
NUM_FOLLOW_UPS_PER_SUM = 4

# {span} is "three days", {direction} "after", {day} "Monday".
DAY_PHRASINGS = (
    "What day is {span} {direction} {day}?",
    "Which day comes {span} {direction} {day}?",
    "Tell me the day {span} {direction} {day}.",
    "Please name the day {span} {direction} {day}.",
    "Do you know which day is {span} {direction} {day}?",
    "{day}, and then {span} {forward}: which day is it?",
    "Count {span} {forward} from {day}.",
    "Today is {day}. What day {ahead}?",
    "My train leaves {span} {direction} {day}. Which day is that?",
    "{span_capital} {direction} {day}, please.",
)
MONTH_PHRASINGS = (
    "Which month comes {direction} {month}?",
    "What month is {direction} {month}?",
    "Tell me the month {direction} {month}.",
    "Please name the month {direction} {month}.",
    "What comes {direction} {month}?",
    "Do you know the month {direction} {month}?",
    "Which month is it {direction} {month}?",
    "The month {direction} {month}, please.",
)
FOLLOW_UPS = ("And {span} {direction} that?", "What about {span} {direction} that?")
GREETINGS = ("Hi, I'm {name}.", "Hello, my name is {name}.", "Good morning! I'm {name}.", "Hey there, {name} here.")
NAMES = ("Ada", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Hugo", "Ines", "Jonas", "Kira", "Leo")
SMALL_TALK = (
    ("Hi!", "Hello! Ask me about a day or a month."),
    ("Hello!", "Hello! Ask me about a day or a month."),
    ("Who are you?", "I am a small calendar. Ask me about a day or a month."),
    ("What can you do?", "I can count days and name months."),
    ("How are you?", "I am fine, and it is a good day to count days."),
    ("Thank you!", "You're welcome!"),
    ("Thanks, bye!", "You're welcome! Goodbye!"),
)
T = TypeVar("T")


class Exchange(NamedTuple):
    """One question and its one right answer."""

    question: str
    answer: str


class DaySum(NamedTuple):
    """`num_days` days `direction` ("after" or "before") `day`."""

    day: str
    num_days: int
    direction: str

    @property
    def days_counted(self) -> list[str]:
        """The days that one names when counting aloud, the last of which is asked for."""
        start, step = DAYS.index(self.day), DIRECTIONS[self.direction]
        return [DAYS[(start + step * number) % len(DAYS)] for number in range(1, self.num_days + 1)]

    @property
    def target(self) -> str:
        """The day that is asked for."""
        return self.days_counted[-1]

    @property
    def span(self) -> str:
        """The distance in words: "one day", "two days"."""
        return f"{NUMBERS[self.num_days - 1]} day{'s' if self.num_days > 1 else ''}"

    def exchange(self, phrasing: str) -> Exchange:
        """The sum as a question in this phrasing. The answer is the same in all of them."""
        after = self.direction == "after"
        question = phrasing.format(
            day=self.day,
            direction=self.direction,
            span=self.span,
            span_capital=self.span.capitalize(),
            forward="forward" if after else "back",
            ahead=f"is it in {self.span}" if after else f"was it {self.span} ago",
        )
        counted = ", ".join(f"{number}: {day}" for number, day in zip(NUMBERS, self.days_counted, strict=False))
        return Exchange(question, f"{counted[0].upper()}{counted[1:]}.")


class Split(NamedTuple):
    """Conversations, each a list of exchanges; both parts in a fixed, shuffled order."""

    train: list[list[Exchange]]
    held_out: list[list[Exchange]]


def conversations() -> Split:
    """All conversations of the quick start. No first question of a held-out one is asked anywhere in `train`."""
    small_talk = Split([[Exchange(*pair)] for pair in SMALL_TALK], [])
    greetings = _greetings()
    parts = [_day_questions(greetings.train), _month_questions(), greetings, small_talk]
    return Split(
        _shuffled([row for part in parts for row in part.train]),
        _shuffled([row for part in parts for row in part.held_out]),
    )


def _day_questions(greetings: list[list[Exchange]]) -> Split:
    """Every sum alone in each phrasing, and in longer conversations: followed up, and after one of the greetings."""
    split = Split([], [])
    known = [day_sum for day_sum in _day_sums() if not _is_held_out(day_sum)]
    for day_sum in known:
        exchanges = [day_sum.exchange(phrasing) for phrasing in DAY_PHRASINGS]
        split.train.extend([exchange] for exchange in exchanges)
        for first in _shuffled(exchanges)[:NUM_FOLLOW_UPS_PER_SUM]:
            split.train.append([first, _follow_up(first.question, day_sum, known)])
        split.train.append([*_draw(greetings, "greeting", day_sum), _draw(exchanges, "greeted", day_sum)])
    for day_sum in filter(_is_held_out, _day_sums()):
        exchanges = [day_sum.exchange(phrasing) for phrasing in DAY_PHRASINGS]
        split.held_out.extend([exchange] for exchange in exchanges[:-1])
        split.held_out.append([exchanges[-1], _follow_up(exchanges[-1].question, day_sum, _day_sums())])
    return split


def _day_sums() -> list[DaySum]:
    return [
        DaySum(day, num_days, direction)
        for day in DAYS
        for num_days in range(1, len(NUMBERS) + 1)
        for direction in DIRECTIONS
    ]


def _is_held_out(day_sum: DaySum) -> bool:
    """One sum per day, in alternating directions, of two to four days: between what is trained, never beyond it."""
    number = DAYS.index(day_sum.day)
    return day_sum.direction == ("after", "before")[number % 2] and day_sum.num_days == 2 + (number + 1) % 3


def _follow_up(question: str, day_sum: DaySum, next_sums: Sequence[DaySum]) -> Exchange:
    """What is asked after `question`, which asked for `day_sum`: its "that" is the day just named."""
    candidates = [
        next_sum.exchange(phrasing)
        for next_sum in next_sums
        if next_sum.day == day_sum.target
        for phrasing in FOLLOW_UPS
    ]
    return _draw(candidates, "follow-up", question)


def _month_questions() -> Split:
    split = Split([], [])
    for month in MONTHS:
        for direction in DIRECTIONS:
            _hold_one_out(split, _month_exchanges(month, direction))
    return split


def _month_exchanges(month: str, direction: str) -> list[Exchange]:
    target = MONTHS[(MONTHS.index(month) + DIRECTIONS[direction]) % len(MONTHS)]
    answer = f"{direction.capitalize()} {month} comes {target}."
    return [Exchange(phrasing.format(month=month, direction=direction), answer) for phrasing in MONTH_PHRASINGS]


def _greetings() -> Split:
    split = Split([], [])
    for name in NAMES:
        answer = f"Hello {name}! Ask me about a day or a month."
        _hold_one_out(split, [Exchange(greeting.format(name=name), answer) for greeting in GREETINGS])
    return split


def _hold_one_out(split: Split, exchanges: list[Exchange]) -> None:
    """Add all exchanges but one to train on, and that one to the held-out part."""
    held_out = _draw(exchanges, "held out", exchanges[0].question)
    split.train.extend([exchange] for exchange in exchanges if exchange != held_out)
    split.held_out.append([held_out])


def _draw(choices: Sequence[T], *key: object) -> T:
    return choices[int(_digest(*key), 16) % len(choices)]


def _shuffled(items: Sequence[T]) -> list[T]:
    return sorted(items, key=lambda item: _digest("order", item))


def _digest(*key: object) -> str:
    return hashlib.sha256(repr((SEED, *key)).encode()).hexdigest()
