"""What `python -m sft estimate` says of each recipe, for recipes/README.md."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path

from sft.estimate_command import main
from sft.subject import QUICK_START_TOKENIZER
from strict_settings import read_yaml

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
OPTIONS = ("--memory-gib", "79", "--tflops", "790", "--device", "cuda", "--trained-share", "0.25")
"""A GPU of 80 GB, what one of them reaches in matrix products, and how much of the tokens is trained."""


def recipes() -> list[Path]:
    """The settings files."""
    return sorted(RECIPES.glob("*.yaml"))


def sizes_of(recipe: Path) -> dict[str, object]:
    """The configuration of a recipe's model, from recipes/models instead of the hub."""
    name = str(read_yaml(recipe).values["model_name_or_path"]).rpartition("/")[2]
    return dict(read_yaml(RECIPES / "models" / f"{name}.yaml").values)


def estimate_block(recipe: Path) -> str:
    """The command's output, as a block of Markdown."""
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(said):
        (Path(folder) / "config.json").write_text(json.dumps(sizes_of(recipe)), encoding="utf-8")
        model = ["--model_name_or_path", folder, "--tokenizer_name", str(QUICK_START_TOKENIZER)]
        code = main([str(recipe), *OPTIONS, *model])
    assert code == 0, recipe
    return f"```text\n{said.getvalue().rstrip()}\n```"
