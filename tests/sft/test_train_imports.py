"""What a run imports before its first step."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import transformers.models
from transformers.utils import import_utils

from sft.config import ROOT
from sft.train_imports import without_prefix


def test_the_list_of_models_that_is_spared_is_the_one_there_is() -> None:
    models = Path(str(transformers.__file__)).parent / "models"
    found = import_utils.define_import_structure(models, "models")
    assert without_prefix(found, "models.") == import_utils.define_import_structure(str(models / "__init__.py"))


def test_started_by_its_path_it_imports_and_does_nothing_else() -> None:
    """In a process of its own, as the imports of this one are done."""
    code = f"""
import gc, runpy, sys
runpy.run_path({str(ROOT / "sft" / "train_imports.py")!r}, run_name="__main__")
assert gc.isenabled()
import transformers.models
from transformers.utils import import_utils
assert import_utils.define_import_structure.__name__ == "define_import_structure"
assert transformers.models.qwen3.Qwen3Config is transformers.Qwen3Config
assert "sft.loop" in sys.modules
print(len(dir(transformers)), len(dir(transformers.models)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    found = len(dir(transformers)), len(dir(transformers.models))
    assert (done.returncode, done.stderr) == (0, "")
    assert [int(word) for word in done.stdout.split()] >= list(found)
    assert min(found) > 100
