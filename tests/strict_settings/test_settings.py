"""What a settings file and a command line mean, and every way in which they are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from strict_settings import Problem, SettingsError, above, at_least, build, parse_command_line, read_yaml


@dataclass(frozen=True)
class Inner:
    r: Annotated[int, at_least(1)] = 8
    on: bool = True


@dataclass(frozen=True)
class Outer:
    rate: Annotated[float, above(0)] | None = None
    nodes: Annotated[int, at_least(1)] = 1
    name: str = "x"
    kind: Literal["a", "b"] = "a"
    flag: bool = False
    inner: Inner = field(default_factory=Inner)
    env: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def problems(self) -> Any:
        if self.name == "forbidden":
            yield Problem("name", self.name, "be another one")


ALIASES = {"learning": "rate"}


def from_yaml(tmp_path: Path, text: str | bytes) -> Outer:
    file = tmp_path / "s.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return build(Outer, read_yaml(file), aliases=ALIASES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rate: 2e-5", Outer(rate=2e-5)),
        ("rate: 1", Outer(rate=1.0)),
        ("rate:", Outer()),
        ("learning: .5", Outer(rate=0.5)),
        ("name: no", Outer(name="no")),
        ("name: 1:30:00", Outer(name="1:30:00")),
        ("name: '007'", Outer(name="007")),
        ("inner: {r: 4}", Outer(inner=Inner(r=4))),
        ("env: {A: 'b,c'}\nnames: [x, y]", Outer(env={"A": "b,c"}, names=("x", "y"))),
        ("", Outer()),
        (b"\xef\xbb\xbfnodes: 2\r\n", Outer(nodes=2)),
    ],
)
def test_values(tmp_path: Path, text: str | bytes, expected: Outer) -> None:
    assert from_yaml(tmp_path, text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes: 010", "s.yaml:1: nodes is '010'; it must be a whole number"),
        ("nodes: true", "nodes is true; it must be a whole number"),
        ("nodes: 2.0", "nodes is 2.0; it must be a whole number"),
        ("nodes: '2'", "nodes is '2'; it must be a whole number"),
        ("nodes: \uff12", "it must be a whole number"),
        ("nodes: 1_0", "it must be a whole number"),
        ("nodes: 0", "nodes is 0; it must be at least 1."),
        ("rate: .inf", "rate is inf; it must be a finite number"),
        ("rate: 1e999", "rate is inf; it must be a finite number"),
        ("rate: -1", "it must be above 0"),
        ("rate: fast", "rate is 'fast'; it must be a number"),
        ("flag: yes", "flag is 'yes'; it must be true or false"),
        ("kind: c", "kind is 'c'; it must be one of a, b"),
        ("name: 7", "name is 7; it must be text. Write it in quotes"),
        ("env: {A: 1}", "env.A is 1; it must be text"),
        ("\nnode: 2", "s.yaml:2: the key 'node' is unknown; it must be a known setting. Did you mean 'nodes'?"),
        ("inner:\n  q: 1", "s.yaml:2: the key 'inner.q' is unknown"),
        ("inner: 5", "s.yaml:1: inner is 5"),
        ("name: a\nname: b", "s.yaml:2: name is given twice; it must be given once. It stands at "),
        ("rate: 1\nlearning: 2", "'rate' and 'learning' are two spellings of it"),
        ("name: !!python/object:os.system x", "the tag is"),
        ("- a", "be a mapping"),
        ("a: [", "be valid YAML"),
        ("<<: {a: 1}", "be a plain word"),
        ("name: forbidden", "s.yaml:1: name is 'forbidden'; it must be another one"),
        ("name: x".encode("utf-16"), "be UTF-8"),
        ("name: " + "x" * 1_000_001, "be at most 1000000"),
    ],
)
def test_refusals(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        from_yaml(tmp_path, text)
    assert message in str(error.value)
    assert error.value.exit_code == 2


def test_nested_aliases_do_not_explode(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
    with pytest.raises(SettingsError, match="the number of values"):
        from_yaml(tmp_path, bomb)


def test_all_problems_come_in_one_message(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        from_yaml(tmp_path, "nodes: 0\nkind: c\nunknown: 1\n")
    assert len(str(error.value).splitlines()) == 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.yaml'; it must be a file that can be read"):
        read_yaml(tmp_path / "gone.yaml")


def test_later_sources_win_value_by_value(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("nodes: 2\ninner: {r: 4, on: false}\nname: a")
    words = parse_command_line(Outer, ["--inner.r", "16", "--name=b"])
    expected = Outer(nodes=2, inner=Inner(r=16, on=False), name="b")
    assert build(Outer, read_yaml(tmp_path / "s.yaml"), words) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--flag"], Outer(flag=True)),
        (["--flag", "false"], Outer()),
        (["--flag", "--nodes", "3"], Outer(flag=True, nodes=3)),
        (["--name", "007"], Outer(name="007")),
        (["--name=--x"], Outer(name="--x")),
        (["--learning", "1e-3"], Outer(rate=1e-3)),
        (["--rate", "none"], Outer()),
        (["--names", "a,b"], Outer(names=("a", "b"))),
        (["--env", '{"A": "x y"}', "--inner", "{r: 2}"], Outer(env={"A": "x y"}, inner=Inner(r=2))),
    ],
)
def test_command_lines(words: list[str], expected: Outer) -> None:
    assert build(Outer, parse_command_line(Outer, words, ALIASES), aliases=ALIASES) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--node", "2"], "the option --node is unknown; it must be a known setting. Did you mean 'nodes'?"),
        (["--nodes"], "--nodes is empty; it must be followed by a value"),
        (["--nodes", "1", "--nodes", "2"], "--nodes is given twice"),
        (["nodes"], "the word is 'nodes'; it must belong to an option"),
        (["--nodes", "010"], "--nodes: nodes is '010'"),
        (["--rate", "-1"], "--rate: rate is -1"),
        (["--env", "{a"], "--env"),
    ],
)
def test_refused_command_lines(words: list[str], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        build(Outer, parse_command_line(Outer, words, ALIASES), aliases=ALIASES)
    assert message in str(error.value)
