"""Which names can be files alone, and which may be the hub's."""

from __future__ import annotations

from pathlib import Path

import pytest

from sft.setting_files import looks_like_a_path


@pytest.mark.parametrize(
    "name", ["./model", "/model", "~/model", "a/b/c", "data.jsonl", "data.jsonl@train", "a/b.yaml"]
)
def test_no_hub_name_has_this_form(name: str) -> None:
    assert looks_like_a_path(name)


def test_what_would_be_beside_runs_is_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/one", "Qwen/Qwen3-0.6B"):
        (tmp_path / folder).mkdir(parents=True)
    assert not looks_like_a_path("runs/nope")
    (tmp_path / "runs" / "one" / "arguments.json").touch()
    assert looks_like_a_path("runs/nope")
    assert not looks_like_a_path("Qwen/Qwen3-8B")
    assert not looks_like_a_path("model")
