"""No code of ours runs a shell, evaluates text, or unpickles: read from syntax trees, with the names of imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("launch", "sft", "strict_settings", "node_board")

MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle", "code"}
CALLS = {
    "eval", "exec", "compile", "__import__",
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all",
    "numpy.load", "pandas.read_pickle",
    *(f"torch.distributed.{name}_object{rest}" for name in ("all_gather", "gather") for rest in ("", "_list")),
    *(f"torch.distributed.{name}_object_list" for name in ("broadcast", "scatter", "send", "recv")),
}  # fmt: skip
LAST_NAMES = {name.rpartition(".")[2] for name in CALLS if "_object" in name}


def names_of_imports(tree: ast.Module) -> dict[str, str]:
    """Local name → what it stands for: `from torch import load as l` gives l → torch.load."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                      for alias in node.names}  # fmt: skip
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def findings(text: str) -> Iterator[str]:
    """What a source does that it must not, by line."""
    tree = ast.parse(text)
    names = names_of_imports(tree)
    for local, name in names.items():
        if name.split(".")[0] in MODULES:
            yield f"imports {name} as {local}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from (f"{node.lineno}: {problem}" for problem in problems_of_call(node, names))


def problems_of_call(node: ast.Call, names: dict[str, str]) -> Iterator[str]:
    head, _, rest = ast.unparse(node.func).partition(".")
    name = names.get(head, head) + (f".{rest}" if rest else "")
    words = {word.arg: word.value for word in node.keywords}
    if name in CALLS or name.rpartition(".")[2] in LAST_NAMES:
        yield f"calls {name}"
    if "shell" in words and not is_constant(words["shell"], False):
        yield f"calls {name} with a shell"
    if name == "torch.load" and not is_constant(words.get("weights_only"), True):
        yield "calls torch.load without weights_only=True"
    if "allow_pickle" in words and not is_constant(words["allow_pickle"], False):
        yield f"calls {name} with allow_pickle"


def is_constant(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("package", PACKAGES)
def test_our_code_has_none_of_it(package: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{finding}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for finding in findings(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess as s\ns.run(x, shell=flag)",
        "from os import system as say\nsay('ls')",
        "import yaml as y\ny.load(text, Loader=y.Loader)",
        "from yaml import unsafe_load\nunsafe_load(text)",
        "import pickle",
        "from cloudpickle import loads",
        "import torch\ntorch.load(path)",
        "from torch import load\nload(path, weights_only=False)",
        "import torch.distributed as dist\ndist.all_gather_object(a, b)",
        "from torch.distributed import broadcast_object_list as b\nb(x)",
        "eval(text)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
    ],
)
def test_and_it_would_be_found(text: str) -> None:
    assert list(findings(text))


def test_what_is_allowed_is_not_found() -> None:
    text = "import re, torch, yaml\nre.compile('x')\ntorch.load(p, weights_only=True)\nyaml.safe_load(t)\nmodel.eval()"
    assert list(findings(text)) == []
