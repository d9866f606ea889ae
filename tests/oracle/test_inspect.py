"""The whole way, as another program takes it: a file of rows through `python -m sft inspect --json`, judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from sft.masking import Document

from .cases import case
from .control_tokens import ROOT, stop_strings, tokenizer_for
from .judge import Judge

TEMPLATES = Path(__file__).parent / "templates"
CASES = ("plain, 2 turns", "think field, 2 turns", "tool, chain", "tool, text beside")


def inspected(tmp_path: Path, name: str) -> tuple[Any, str, list[dict[str, Any]]]:
    """The tokenizer, the template's text, and what `inspect` prints of a file with a row for each case."""
    template = TEMPLATES / f"{name}.jinja"
    text = template.read_text(encoding="utf-8")
    tokenizer = tokenizer_for(name, text)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = tmp_path / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for talk in (case(of).conversation for of in CASES):
            row = {"messages": talk.messages} | ({"tools": talk.tools} if talk.tools else {})
            file.write(json.dumps(row) + "\n")
    arguments = [str(rows), "--tokenizer", str(tmp_path / "tokenizer"), "--chat-template", str(template), "--json"]
    command = [sys.executable, "-m", "sft", "inspect", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stdout, run.stderr
    return tokenizer, text, [json.loads(line) for line in run.stdout.splitlines()]


def test_what_inspect_prints_is_judged_exact(tmp_path: Path) -> None:
    name = "forgets-thinking"
    tokenizer, text, printed = inspected(tmp_path, name)
    first = min(row["row"] for row in printed)
    for number, of in enumerate(CASES):
        documents = [
            Document(row["input_ids"], [bool(flag) for flag in row["trained"]], row["weights"], tuple(row["notes"]))
            for row in printed
            if row["row"] == first + number
        ]
        verdict = Judge(tokenizer, case(of), stop_strings(name, text)).judge(documents)
        assert (of, verdict.outcome, verdict.reason) == (of, "exact", "")


def test_inspect_prints_a_refused_row_with_its_reason(tmp_path: Path) -> None:
    _, _, printed = inspected(tmp_path, "chatml")
    refused = [row for row in printed if "refused" in row]
    assert len(refused) == 2  # the two rows with tools, whose calls the template leaves out
    assert all("tool calls" in row["refused"] and "input_ids" not in row for row in refused)
