"""docs/comparison.md: every claim names a test, and that is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_yes_names_a_test_that_exists() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    known = set(re.findall(r"^def (test_\w+)", text, re.MULTILINE))
    rows = [line.strip("|").split("|") for line in (ROOT / "docs" / "comparison.md").read_text().splitlines()]
    claims = {row[0].strip(): row[-1].strip() for row in rows if len(row) == 7 and not row[0].startswith("-")}
    del claims["feature"]
    assert len(claims) > 30
    for feature, claim in claims.items():
        named = re.findall(r"`(test_\w+)`", claim)
        assert set(named) <= known, feature
        assert named or claim.startswith("–") or "tests/cluster" in claim, feature
