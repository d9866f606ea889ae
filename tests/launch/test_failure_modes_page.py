"""docs/failure-modes.md: 48 rows, each with tests on a real Slurm that bear its number."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_failure_has_a_test_on_slurm_with_its_number() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "cluster").glob("test_*.py"))
    known = set(re.findall(r"^def (test_\w+)", text, re.MULTILINE))
    page = (ROOT / "docs" / "failure-modes.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\d+) \|.*\| (.*) \|$", page, re.MULTILINE))
    assert [int(number) for number in rows] == list(range(1, 49))
    for number, shown in rows.items():
        named = re.findall(r"`(test_\w+)`", shown)
        assert named, number
        for name in named:
            assert name in known, name
            numbers = re.match(r"test_modes?_((?:\d+_)+)", name)
            assert numbers is not None, name
            assert number in numbers[1].split("_"), name


def test_every_number_in_a_test_s_name_is_on_the_page() -> None:
    page = (ROOT / "docs" / "failure-modes.md").read_text(encoding="utf-8")
    for path in (ROOT / "tests" / "cluster").glob("test_*.py"):
        for name in re.findall(r"^def (test_modes?_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert f"`{name}`" in page, name
