"""`--name value` words → values: what a shell hands over, taken or refused exactly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from strict_settings import SettingsError, build, parse_command_line


@dataclass(frozen=True)
class Inner:
    r: int = 16
    names: tuple[str, ...] = ()
    on: bool = True


@dataclass(frozen=True)
class Settings:
    learning_rate: float | None = None
    seed: int = 0
    run_name: str | None = None
    flag: bool = False
    maybe: bool | None = None
    kind: Literal["1", "2"] = "1"
    chain: Literal["requeue", "none"] | None = None
    inner: Inner = field(default_factory=Inner)
    table: dict[str, Any] = field(default_factory=dict)
    numbers: tuple[int, ...] = ()


ALIASES = {"number": "seed"}


def parsed(*words: str) -> dict[str, Any]:
    return dict(parse_command_line(Settings, words, ALIASES).values)


def refusal(*words: str) -> str:
    with pytest.raises(SettingsError) as caught:
        build(Settings, parse_command_line(Settings, words, ALIASES), aliases=ALIASES)
    return str(caught.value)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["--seed", "3"], {"seed": 3}),
        (["--seed=3"], {"seed": 3}),
        (["--seed", "-3"], {"seed": -3}),
        (["--learning-rate", "2e-5"], {"learning_rate": 2e-5}),
        (["--learning_rate=-1e-5"], {"learning_rate": -1e-5}),
        (["--learning_rate", "none"], {"learning_rate": None}),
        (["--chain", "none"], {"chain": "none"}),  # a choice of that name
        (["--chain", "null"], {"chain": None}),
        (["--run_name", "007"], {"run_name": "007"}),
        (["--run_name", "true"], {"run_name": "true"}),
        (["--run_name", "a: b #c"], {"run_name": "a: b #c"}),
        (["--run_name=a=b"], {"run_name": "a=b"}),
        (["--run_name=--x"], {"run_name": "--x"}),
        (["--run_name", "-x"], {"run_name": "-x"}),
        (["--run_name="], {"run_name": ""}),
        (["--kind", "2"], {"kind": "2"}),
        (["--flag"], {"flag": True}),
        (["--flag", "false"], {"flag": False}),
        (["--flag=false"], {"flag": False}),
        (["--flag", "--seed", "3"], {"flag": True, "seed": 3}),
        (["--maybe"], {"maybe": True}),
        (["--inner.r", "8"], {"inner": {"r": 8}}),
        (["--inner.r=8", "--inner.on", "false"], {"inner": {"r": 8, "on": False}}),
        (["--inner", "{r: 8}"], {"inner": {"r": 8}}),
        (["--inner", '{"r": 8, "names": ["a"]}'], {"inner": {"r": 8, "names": ["a"]}}),
        (["--inner.names", "a,b"], {"inner": {"names": ["a", "b"]}}),
        (["--inner.names", "[a, b]"], {"inner": {"names": ["a", "b"]}}),
        (["--numbers", "1, 2"], {"numbers": [1, 2]}),
        (["--table", "{a: {b: [1, 2e-5, no]}}"], {"table": {"a": {"b": [1, 2e-5, "no"]}}}),
        (["--number", "3"], {"number": 3}),
        ([], {}),
    ],
    ids=repr,
)
def test_words_become_values(words: list[str], values: dict[str, Any]) -> None:
    assert parsed(*words) == values


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sede", "3"], "the option --sede is unknown; it must be a known setting. Did you mean 'seed'?"),
        (["--inner.rr", "3"], "the option --inner.rr is unknown; it must be a known setting. Did you mean 'inner.r'?"),
        (["--seed", "1", "--seed", "2"], "--seed is given twice; it must be given once."),
        (["--inner.r", "1", "--inner.r=2"], "--inner.r is given twice; it must be given once."),
        (["--seed"], "--seed is empty; it must be followed by a value."),
        (["--seed", "--flag"], "--seed is empty; it must be followed by a value."),
        (["stray"], "the word is 'stray'; it must belong to an option. Write options as --name value."),
        (["--flag", "yes"], "the word is 'yes'; it must belong to an option. Write options as --name value."),
        (["--"], "the word is '--'; it must belong to an option."),
        (["--flag=no"], "--flag: flag is 'no'; it must be true or false."),
        (["--seed", "010"], "--seed: seed is '010'; it must be a whole number in plain digits."),
        (["--seed="], "--seed: seed is empty; it must be a whole number in plain digits."),
        (["--learning_rate", "nan"], "--learning_rate: learning_rate is 'nan'; it must be a number."),
        (["--learning_rate", ".inf"], "--learning_rate: learning_rate is inf; it must be a finite number."),
        (["--table", "{a: 1"], "--table is '{a: 1'; it must be JSON or YAML"),
        (["--table", "{a: !!python/object:x y}"], "--table:1: the tag is "),
        (["--table", "{a: 1, a: 2}"], "--table:1: a is given twice"),
        (["--inner", "r=8"], "--inner: inner is ['r=8']; it must be a mapping. Write {key: value}."),
        (["--inner.names", "a,3"], "--inner.names: inner.names.1 is 3; it must be text."),
        (["--number", "1", "--seed", "2"], "--seed: seed is given twice; it must be given once."),
    ],
    ids=repr,
)
def test_words_that_make_no_sense_are_refused(words: list[str], message: str) -> None:
    assert refusal(*words).startswith(message)


@pytest.mark.parametrize("words", [["--inner.r", "8", "--inner", "{on: false}"], ["--inner", "x", "--inner.r", "8"]])
def test_a_mapping_and_its_parts_are_not_mixed_so_that_none_is_lost(words: list[str]) -> None:
    assert "Give the mapping or its parts, not both." in refusal(*words)


def test_all_wrong_words_are_told_at_once() -> None:
    assert len(refusal("--sede", "1", "stray", "--seed", "--flag=1", "--table", "{").splitlines()) >= 4


def test_a_place_is_the_option_itself() -> None:
    source = parse_command_line(Settings, ["--inner.r", "8", "--seed", "1"])
    assert source.where(("inner", "r")) == "--inner.r"
    assert source.where(("seed",)) == "--seed"
    assert source.where(("flag",)) == "the command line"
