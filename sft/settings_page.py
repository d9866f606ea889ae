"""The reference of all settings as Markdown, made from `Args`: docs/settings.md."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from sft.config import ALIASES, Args
from sft.lora_args import LoraArgs
from strict_settings import field_docs, field_kinds

_HEAD = """\
# Settings

Every setting of a run: a key of the YAML file, and an option of `sft/train.py` and `python -m sft train`
(`--learning_rate 2e-5`, `--lora.r 8`; lists and mappings as in YAML: `--lora '{r: 8}'`). An option wins over the file.
This page is printed by `python -m sft settings`.
"""
_ELSEWHERE = {"launch": "[launcher.md](launcher.md) has its keys."}


def settings_page() -> str:
    """The page."""
    return "\n".join([_HEAD, *_sections()]).rstrip() + "\n"


def default_of(field: dataclasses.Field[Any]) -> str | None:
    """The default as it would be written; None where there is none, or nothing in it."""
    makes = field.default_factory
    value = field.default if makes is dataclasses.MISSING else makes()
    if value is dataclasses.MISSING or value in (None, {}, [], ()) or dataclasses.is_dataclass(value):
        return None
    return json.dumps(value)


def _sections() -> Iterator[str]:
    titles, entries, of_lora = _titles(Args), _entries(Args, ""), _entries(LoraArgs, "lora.")
    for name, lines in entries.items():
        if name in titles:
            yield f"## {titles[name]}\n"
        yield lines
        if name == "lora":
            yield from of_lora.values()


def _entries(cls: type, prefix: str) -> dict[str, str]:
    """Field → its heading, what it takes, what it does."""
    docs, kinds, found = field_docs(cls), field_kinds(cls), {}
    for field in dataclasses.fields(cls):
        name = field.name
        default = default_of(field)
        facts = [kinds[name]] if default is None else [kinds[name], "default `{}`".format(default.strip('"'))]
        facts += [f"also `{alias}`" for alias, of in ALIASES.items() if of == name and not prefix]
        more = f" {_ELSEWHERE[name]}" if name in _ELSEWHERE and not prefix else ""
        text = _linked(" ".join(docs[name].split()))
        found[name] = f"### `{prefix}{name}`\n\n*{'; '.join(facts)}*\n\n{text}{more}\n"
    return found


def _titles(cls: type) -> dict[str, str]:
    """Field → the comment above it, which begins a group of fields."""
    source = textwrap.dedent(inspect.getsource(cls))
    lines = source.splitlines()
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above = lines[node.lineno - 2].strip()
            if above.startswith("# "):
                found[node.target.id] = above.removeprefix("# ")
    return found


def _linked(text: str) -> str:
    """The text with the names of pages of docs/ as links."""
    return re.sub(r"docs/([a-z-]+\.md)", r"[\1](\1)", text)
