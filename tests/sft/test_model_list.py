"""transformers' list of its models, kept from one start to the next."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from transformers.utils import import_utils

from sft.config import ROOT
from sft.model_list import MOST_LISTS, Structure, kept_list, without_prefix

MODELS = Path(str(transformers.__file__)).parent / "models"
TOLD = """
import json, sys
from pathlib import Path
from sft.model_list import keep_model_list
keep_model_list(Path(sys.argv[1]))
keep_model_list(Path(sys.argv[1]))
opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
import transformers, transformers.models
from transformers.utils import import_utils
assert transformers.models.qwen3.Qwen3Config is transformers.Qwen3Config
assert not [finder for finder in sys.meta_path if type(finder).__module__ == "sft.model_list"]
models = Path(transformers.__file__).parent / "models"
lists = [import_utils.define_import_structure(models, "models"),
         import_utils.define_import_structure(str(models / "__init__.py")),
         import_utils.define_import_structure(str(models / "qwen3" / "__init__.py"))]
print(json.dumps({
    "opened": sum(name.startswith(str(models)) and name.endswith(".py") for name in opened),
    "names": [len(dir(transformers)), len(dir(transformers.models))],
    "lists": [sorted([sorted(needs), {name: sorted(names) for name, names in modules.items()}]
              for needs, modules in found.items()) for found in lists],
}))
"""


def start(cache: Path) -> dict[str, object]:
    """What a process of its own finds, as the imports of this one are done."""
    done = subprocess.run(
        [sys.executable, "-c", TOLD, str(cache)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, object] = json.loads(done.stdout)
    return found


def as_lists(structure: Structure) -> list[object]:
    return sorted(
        [sorted(needs), {name: sorted(names) for name, names in modules.items()}]
        for needs, modules in structure.items()
    )


def test_the_second_start_opens_no_model_and_knows_the_same_names(tmp_path: Path) -> None:
    first, second = start(tmp_path / "cache"), start(tmp_path / "cache")
    look = import_utils.define_import_structure
    own = [look(MODELS, "models"), look(str(MODELS / "__init__.py")), look(str(MODELS / "qwen3" / "__init__.py"))]
    assert first["lists"] == second["lists"] == [as_lists(found) for found in own]
    assert first["names"] == second["names"]
    assert first["opened"] > 1000  # type: ignore[operator]
    assert second["opened"] < 100  # type: ignore[operator]  # qwen3's own modules and those that they need


def test_a_folder_that_cannot_be_written_costs_the_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert start(tmp_path / "file" / "cache")["opened"] > 1000  # type: ignore[operator]


def test_the_list_without_its_prefix_is_the_one_of_the_folder() -> None:
    found = import_utils.define_import_structure(MODELS, "models")
    assert without_prefix(found, "models.") == import_utils.define_import_structure(str(MODELS / "__init__.py"))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two modules, as in a package."""
    (tmp_path / "models" / "one").mkdir(parents=True)
    (tmp_path / "models" / "one" / "a.py").write_text("A")
    (tmp_path / "models" / "one" / "b.py").write_text("B")
    (tmp_path / "list.py").write_text("")
    return tmp_path


def names_in(folder: Path) -> Structure:
    return {
        frozenset({"torch"}): {path.stem: {path.read_text()} for path in sorted((folder / "models").rglob("*.py"))},
        frozenset(): {"empty": set()},
    }


def changed_in_place(folder: Path) -> None:
    path = folder / "models" / "one" / "a.py"
    before = path.stat().st_mtime_ns
    path.write_text("C")
    os.utime(path, ns=(before + 1, before + 1))


CHANGES: list[Callable[[Path], object]] = [
    changed_in_place,
    lambda folder: (folder / "models" / "one" / "c.py").write_text("D"),
    lambda folder: (folder / "models" / "one" / "b.py").unlink(),
    lambda folder: (folder / "models" / "one" / "b.py").rename(folder / "models" / "b.py"),
    lambda folder: (folder / "list.py").write_text("other rules"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_in_place_is_looked_up_again(models: Path, change: Callable[[Path], object]) -> None:
    looks = []

    def kept() -> Structure:
        return kept_list(
            models / "cache", [models / "list.py", models / "models"], lambda: looks.append(1) or names_in(models)
        )

    assert kept() == kept() == names_in(models)
    assert len(looks) == 1
    change(models)
    assert kept() == kept() == names_in(models)
    assert len(looks) == 2


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"sha256": "?"}',
        '{"models": []}',
        '{"sha256": "?", "models": [[[], {"a": "bc"}]]}',
        "\0",
    ],
)
def test_a_damaged_list_is_made_again(models: Path, content: str) -> None:
    sources = [models / "list.py", models / "models"]
    kept_list(models / "cache", sources, lambda: names_in(models))
    [file] = (models / "cache").iterdir()
    whole = file.read_text()
    file.write_text(content)
    assert kept_list(models / "cache", sources, lambda: names_in(models)) == names_in(models)
    assert [file.read_text()] == [whole]
    assert list((models / "cache").iterdir()) == [file]


def test_a_full_disk_leaves_nothing_behind(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert kept_list(models / "cache", [models / "models"], lambda: names_in(models)) == names_in(models)
    assert list((models / "cache").iterdir()) == []


def test_lists_of_the_newest_installations_are_kept(models: Path) -> None:
    for number in range(MOST_LISTS + 3):
        (models / "list.py").write_text("#" * number)
        kept_list(models / "cache", [models / "list.py"], lambda: names_in(models))
    assert len(list((models / "cache").iterdir())) == MOST_LISTS


def test_another_release_that_makes_no_such_list_is_imported_as_it_is(tmp_path: Path) -> None:
    package = tmp_path / "transformers"
    (package / "utils").mkdir(parents=True)
    for name in ("__init__.py", "utils/__init__.py"):
        (package / name).touch()
    (package / "utils" / "import_utils.py").write_text("OTHER = 1\n")
    code = """
import sys
from pathlib import Path
from sft.model_list import keep_model_list
keep_model_list(Path(sys.argv[1]))
keep_model_list(None)
from transformers.utils import import_utils
assert import_utils.OTHER == 1
"""
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, "-c", code, str(tmp_path / "cache")]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    assert not (tmp_path / "cache").exists()
