"""YAML files: what a value means, and one exact message for each way to write a file wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from strict_settings import SettingsError, read_yaml


def values(tmp_path: Path, text: str) -> dict[str, Any]:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return dict(read_yaml(path).values)


def refusal(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SettingsError) as caught:
        read_yaml(path)
    return str(caught.value).replace(str(tmp_path), "DIR")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-5", 2e-5),
        ("2E-5", 2e-5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-3", -3),
        ("0", 0),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("１２", "１２"),
        ("1:30:00", "1:30:00"),
        ("2024-01-01", "2024-01-01"),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("'8'", "8"),
        ('"true"', "true"),
        ("nan", "nan"),
        ("[1, 2e-5, x]", [1, 2e-5, "x"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ('{"a": [true, null]}', {"a": [True, None]}),
    ],
)
def test_words_mean_what_yaml_1_2_says(tmp_path: Path, text: str, value: object) -> None:
    found = values(tmp_path, f"key: {text}\n")["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("digits", [301, 5000])
def test_a_number_of_absurd_length_is_no_crash(tmp_path: Path, digits: int) -> None:
    assert not isinstance(values(tmp_path, f"key: {'1' * digits}\n")["key"], int)


def test_every_value_knows_its_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("a: 1\n\nlora:\n  r: 8\n  names: [x,\n    y]\n")
    source = read_yaml(path)
    assert source.where(("a",)) == f"{path}:1"
    assert source.where(("lora",)) == f"{path}:3"
    assert source.where(("lora", "r")) == f"{path}:4"
    assert source.where(("lora", "names", "1")) == f"{path}:5"
    assert source.where(("nowhere",)) == str(path)


def test_a_byte_order_mark_and_windows_line_ends_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: two\r\n")
    assert read_yaml(path).values == {"a": 1, "b": "two"}


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n"])
def test_an_empty_file_gives_no_settings(tmp_path: Path, text: str) -> None:
    assert values(tmp_path, text) == {}


def test_a_duplicate_key_is_refused_with_both_lines(tmp_path: Path) -> None:
    message = refusal(tmp_path, "seed: 1\nlora:\n  r: 8\n  r: 9\n")
    assert message == (
        "DIR/run.yaml:4: lora.r is given twice; it must be given once. It stands at DIR/run.yaml:3 too: remove one."
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: !!python/object/apply:os.system ['x']\n", "DIR/run.yaml:2: the tag is "),
        ("a: !!str 7\n", "DIR/run.yaml:1: the tag is '!!str'; it must not be given. Write plain YAML values."),
        ("a: [1, !!int '2']\n", "DIR/run.yaml:1: the tag is '!!int'; it must not be given."),
        ("a: !!map {b: 1}\n", "DIR/run.yaml:1: the tag is '!!map'; it must not be given."),
        ("!!str a: 1\n", "DIR/run.yaml:1: the tag is '!!str'; it must not be given. Write plain YAML keys."),
        ("a: ! 7\n", "DIR/run.yaml:1: the tag is '!'; it must not be given."),
        ("a: !include secrets.yaml\n", "DIR/run.yaml:1: the tag is '!include'; it must not be given."),
        ("a: 1\n<<: {b: 2}\n", "DIR/run.yaml:2: a key is '<<'; it must be a plain word."),
        ("? [x, y]\n: 1\n", "DIR/run.yaml:1: a key is a list or a mapping; it must be a plain word."),
        ("- a\n- b\n", "DIR/run.yaml:1: the file is 'list'; it must be a mapping"),
        ("just words\n", "DIR/run.yaml:1: the file is 'str'; it must be a mapping"),
        ("a: 1\nb: [1, 2\n", "DIR/run.yaml:3: the file is "),
        ("a: *nowhere\n", "DIR/run.yaml:1: the file is "),
        ("a: 1\n---\na: 2\n", "DIR/run.yaml:2: the file is "),
        ("a: 1\x00\n", "DIR/run.yaml: the file is "),
        ("a: 1\n".encode("utf-16"), "DIR/run.yaml: the encoding is not UTF-8 at byte 0; it must be UTF-8."),
        (b"a: 1\nb: caf\xe9\n", "DIR/run.yaml: the encoding is not UTF-8 at byte 11; it must be UTF-8."),
        (b"#" * 1_000_001, "DIR/run.yaml: the settings file's size is 1000001; it must be at most 1000000 bytes."),
        ("a: &a {b: *a}\n", "DIR/run.yaml:1: the nesting is over 50 levels; it must be flatter."),
        ("a: " + "[" * 600 + "]" * 600, "DIR/run.yaml:1: the nesting is over 50 levels; it must be flatter."),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_file_that_cannot_be_trusted_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    refused = refusal(tmp_path, text)
    assert refused.startswith(message)
    assert "\n" not in refused or "\\n" in repr(refused)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(SettingsError, match="the settings file is ") as caught:
            read_yaml(path)
        assert str(path) in str(caught.value)


def test_anchors_are_expanded_but_their_bomb_is_bounded(tmp_path: Path) -> None:
    assert values(tmp_path, "a: &x [1, 2]\nb: *x\n") == {"a": [1, 2], "b": [1, 2]}
    levels = [f"{c}: &{c} [{', '.join([f'*{chr(ord(c) - 1)}'] * 9)}]" for c in "bcdefghij"]
    message = refusal(tmp_path, "a: &a [x, x]\n" + "\n".join(levels))
    assert "the number of values is over 20000" in message
