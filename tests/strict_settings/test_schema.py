"""Plain values → dataclass: types, bounds, unknown keys, aliases, sources that win over others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from strict_settings import Problem, SettingsError, Source, above, at_least, at_most, below, build, field_docs


@dataclass(frozen=True)
class Inner:
    r: Annotated[int, at_least(1)] = 16
    """Rank."""
    alpha: float = 32.0
    names: tuple[str, ...] = ()
    on: bool = True


@dataclass(frozen=True)
class Outer:
    required: str
    """It has no default.

    And a second paragraph."""
    count: int = 8
    rate: Annotated[float, above(0), below(1)] | None = None
    share: Annotated[float, at_least(0), at_most(1)] = 0.5
    flag: bool = False
    kind: Literal["fast", "slow"] = "fast"
    inner: Inner = field(default_factory=lambda: Inner(on=False))
    maybe: Inner | None = None
    options: dict[str, int] = field(default_factory=dict)
    anything: dict[str, Any] = field(default_factory=dict)

    def problems(self) -> Iterator[Problem]:
        """The rule between two fields."""
        if self.flag and self.count > 100:
            yield Problem("count", self.count, "be at most 100 with flag")


def outer(values: dict[str, Any], *later: dict[str, Any]) -> Outer:
    sources = [
        Source({"required": "x", **values}, "run.yaml", {(key,): f"run.yaml:{n}" for n, key in enumerate(values, 1)})
    ]
    return build(Outer, *sources, *(Source(each, "words") for each in later), aliases={"number": "count"})


def refusal(values: dict[str, Any], *later: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as caught:
        outer(values, *later)
    return str(caught.value)


@pytest.mark.parametrize("value", ["010", "8", True, 2.0, "１２", "1_000", None, [8], {}])
def test_a_whole_number_is_written_in_plain_digits_or_refused(value: object) -> None:
    message = refusal({"count": value})
    assert message.startswith("run.yaml:1: count is ")
    assert "it must be a whole number in plain digits. Write for example count: 8" in message


@pytest.mark.parametrize("value", ["yes", "no", "on", 1, 0, None, "true"])
def test_a_flag_is_true_or_false_and_nothing_like_it(value: object) -> None:
    assert "it must be true or false. Write flag: true or flag: false." in refusal({"flag": value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_are_finite(value: float) -> None:
    assert "it must be a finite number" in refusal({"share": value})


@pytest.mark.parametrize("value", ["1e-5", True, [1.0]])
def test_a_number_is_no_text_and_no_flag(value: object) -> None:
    assert "it must be a number. Write for example share: 1e-5, without quotes." in refusal({"share": value})


def test_whole_numbers_are_taken_where_a_number_is_wanted() -> None:
    result = outer({"share": 1}).share
    assert result == 1.0
    assert isinstance(result, float)


def test_numbers_and_flags_are_no_text() -> None:
    message = refusal({"required": 12})
    assert message == 'run.yaml:1: required is 12; it must be text. Write it in quotes: required: "12".'
    assert 'required: "false"' in refusal({"required": False})
    assert refusal({"required": ["a"]}).endswith("it must be text. Write one value.")
    assert refusal({"required": "x", "inner": {"names": [False]}}).endswith(
        'it must be text. Write it in quotes: "false".'
    )
    assert "required is true" in refusal({"required": True})


def test_control_characters_are_no_text() -> None:
    assert "it must hold no control characters" in refusal({"required": "a\x00b"})
    assert outer({"required": "a\tb\nc"}).required == "a\tb\nc"


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"rate": 0}, "rate is 0; it must be above 0."),
        ({"rate": 1.0}, "rate is 1.0; it must be below 1."),
        ({"share": -0.1}, "share is -0.1; it must be at least 0."),
        ({"share": 1.1}, "share is 1.1; it must be at most 1."),
        ({"inner": {"r": 0}}, "inner.r is 0; it must be at least 1."),
    ],
)
def test_bounds_hold(values: dict[str, Any], rule: str) -> None:
    assert refusal(values) == f"run.yaml:1: {rule}"


def test_a_bound_itself_is_inside_where_it_says_so() -> None:
    assert outer({"share": 0}).share == 0.0
    assert outer({"share": 1}).share == 1.0
    assert outer({"inner": {"r": 1}}).inner.r == 1


def test_an_unknown_key_gets_a_suggestion_or_all_that_is_known() -> None:
    message = refusal({"cuont": 3})
    assert message == ("run.yaml:1: the key 'cuont' is unknown; it must be a known setting. Did you mean 'count'?")
    assert "Known: anything, count, flag" in refusal({"zzzzz": 3})


def test_an_unknown_key_inside_a_mapping_is_refused_too() -> None:
    message = refusal({"inner": {"alhpa": 1}})
    assert "the key 'inner.alhpa' is unknown" in message
    assert "Did you mean 'alpha'?" in message


def test_the_outer_aliases_do_not_reach_into_mappings() -> None:
    assert outer({"number": 3}).count == 3
    assert "the key 'inner.number' is unknown" in refusal({"inner": {"number": 3}})


def test_two_spellings_of_one_setting_are_refused() -> None:
    message = refusal({"count": 1, "number": 2})
    assert "run.yaml:2: count is given twice" in message
    assert "'count' and 'number' are two spellings of it: keep one." in message


def test_an_alias_is_named_by_where_it_stands() -> None:
    assert refusal({"flag": False, "number": "x"}).startswith("run.yaml:2: count is 'x'")


def test_a_choice_is_one_of_those_listed() -> None:
    assert outer({"kind": "slow"}).kind == "slow"
    message = refusal({"kind": "slwo"})
    assert "it must be one of fast, slow. Did you mean 'slow'?" in message
    assert "it must be one of fast, slow." in refusal({"kind": True})


def test_lists_become_tuples_and_name_the_entry_that_is_wrong() -> None:
    assert outer({"inner": {"names": ["a", "b"]}}).inner.names == ("a", "b")
    assert "inner.names.1 is 3; it must be text" in refusal({"inner": {"names": ["a", 3]}})
    assert "it must be a list. Write [a, b]." in refusal({"inner": {"names": "a"}})


def test_mappings_are_mappings() -> None:
    assert outer({"options": {"a": 1}}).options == {"a": 1}
    assert "options.a is 'x'; it must be a whole number" in refusal({"options": {"a": "x"}})
    assert "it must be a mapping. Write {key: value}." in refusal({"options": [1]})
    assert "inner is 5; it must be a mapping. Write {key: value}." in refusal({"inner": 5})
    assert "inner is empty; it must be a mapping" in refusal({"inner": None})


def test_naming_a_mapping_builds_it_from_its_class_and_not_from_the_outer_default() -> None:
    assert outer({}).inner.on is False
    assert outer({"inner": {}}).inner == Inner()
    assert outer({"maybe": None}).maybe is None
    assert outer({"maybe": {"r": 2}}).maybe == Inner(r=2)


def test_null_is_taken_only_where_it_means_something() -> None:
    assert outer({"rate": None}).rate is None
    assert "share is empty" in refusal({"share": None})


def test_a_later_source_wins_value_by_value_also_inside_mappings() -> None:
    result = outer({"count": 1, "inner": {"r": 2, "alpha": 3.0}}, {"inner": {"r": 4}})
    assert result.count == 1
    assert result.inner == Inner(r=4, alpha=3.0)
    assert outer({"number": 1}, {"count": 2}).count == 2
    assert outer({"count": 1}, {"number": 2}).count == 2


def test_a_later_source_replaces_a_plain_mapping_whole() -> None:
    assert outer({"options": {"a": 1}}, {"options": {"b": 2}}).options == {"b": 2}


def test_a_wrong_value_is_told_also_where_a_later_source_replaces_it() -> None:
    assert refusal({"count": "x"}, {"count": 2}).startswith("run.yaml:1: count is 'x'; it must be a whole number")
    assert refusal({"inner": {"r": 0}}, {"inner": {"r": 8}}).startswith("run.yaml:1: inner.r is 0; it must be ")
    assert outer({"count": 1, "inner": {"r": 4}}, {"count": 2, "inner": {"r": 8}}).inner.r == 8


def test_all_problems_come_in_one_message_each_with_its_line() -> None:
    lines = refusal({"count": "x", "bogus": 1, "share": 2, "inner": {"r": 0}, "kind": "no"}).splitlines()
    assert len(lines) == 5
    assert sorted(line.split(": ")[0] for line in lines) == [f"run.yaml:{n}" for n in range(1, 6)]


def test_a_setting_without_default_must_be_given() -> None:
    with pytest.raises(SettingsError, match="required is empty; it must be given"):
        build(Outer, Source({}))


def test_a_problem_between_settings_is_placed_where_the_setting_stands() -> None:
    assert refusal({"flag": True, "count": 101}) == "run.yaml:2: count is 101; it must be at most 100 with flag."


def test_long_values_are_cut_in_messages() -> None:
    message = refusal({"count": "x" * 5000})
    assert len(message) < 500
    assert "(5002 characters)" in message


def test_the_error_carries_the_exit_code_of_bad_settings() -> None:
    assert SettingsError([]).exit_code == 2


def test_field_docs_are_the_literals_under_the_fields() -> None:
    assert field_docs(Outer) == {"required": "It has no default.\n\nAnd a second paragraph."}
    assert field_docs(Inner) == {"r": "Rank."}
