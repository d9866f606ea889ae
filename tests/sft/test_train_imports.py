"""What a run imports before its first step."""

from __future__ import annotations

import subprocess
import sys

import transformers.models

from sft.config import ROOT


def test_started_by_its_path_it_imports_and_does_nothing_else() -> None:
    """In a process of its own, as the imports of this one are done."""
    code = f"""
import gc, runpy, sys
runpy.run_path({str(ROOT / "sft" / "train_imports.py")!r}, run_name="__main__")
assert gc.isenabled()
import transformers.models
assert transformers.models.qwen3.Qwen3Config is transformers.Qwen3Config
assert "sft.loop" in sys.modules
print(len(dir(transformers)), len(dir(transformers.models)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    found = len(dir(transformers)), len(dir(transformers.models))
    assert (done.returncode, done.stderr) == (0, "")
    assert [int(word) for word in done.stdout.split()] >= list(found)
    assert min(found) > 100
