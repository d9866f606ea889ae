"""`--check` of the commands that may be stages: their words are checked, nothing is read or written beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import write_conversations

from sft.__main__ import main

GOOD = {
    "evaluate": ["model", "rows.jsonl", "--max-new-tokens", "8", "--per_device_eval_batch_size", "2"],
    "export": ["run", "--output", "out/model", "--from", "best"],
    "optimize-prompt": ["prompts.txt", "rows.jsonl", "--model", "model"],
    "report": ["run", "--output", "out/page.html"],
}
WRONG = {
    "evaluate": ["--metrics", "guess"],
    "export": ["--dtype", "int8"],
    "optimize-prompt": ["--metric", "guess"],
    "report": ["--samples", "-1"],
}


@pytest.mark.parametrize("command", GOOD)
def test_words_are_checked_and_nothing_is_done(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model and the run are still to come: their folders are there, and empty."""
    monkeypatch.chdir(tmp_path)
    write_conversations(tmp_path / "rows.jsonl", 2)
    (tmp_path / "prompts.txt").write_text("Be brief.\nBe long.\n")
    for name in ("model", "run"):
        (tmp_path / name).mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert main([command, *GOOD[command], "--check"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    try:
        code = main([command, *GOOD[command], *WRONG[command], "--check"])
    except SystemExit as refused:  # argparse, which ends the process
        code = int(str(refused.code))
    assert code == 2
