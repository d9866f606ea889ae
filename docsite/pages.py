"""Parts of Markdown files that are made from the code, between `<!-- made: NAME -->` and `<!-- end -->`.

python -m docsite.pages            writes docs/settings.md, docs/migration.md and recipes/README.md anew
python -m docsite.pages --check    exit code 1 if one of them is not as the code says
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from sft.config import ALIASES, Args
from sft.lora_args import LoraArgs
from sft.migration.text import mapping_table
from sft.migration.tools import TOOLS
from strict_settings import field_docs

_PART = re.compile(r"(<!-- made: (?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_SECTION = re.compile(r"    # (?P<title>[A-Z].*)\n    (?P<first>[a-z_0-9]+):")
"""A comment line above the first field of a section, in the source of `Args`."""


def filled(text: str, parts: Mapping[str, Callable[[], str]]) -> str:
    """The text with its marked parts made anew.

    Raises:
        KeyError: a part is marked that nobody makes.
    """
    return _PART.sub(lambda found: f"{found[1]}{parts[found['name']]()}\n{found[3]}", text)


def settings_page() -> str:
    """Every setting of `Args`: name, type, default, meaning; in the sections that the code has."""
    source = (ROOT / "sft" / "config.py").read_text(encoding="utf-8")
    titles = {found["first"]: found["title"] for found in _SECTION.finditer(source)}
    lines: list[str] = []
    for name, row in _rows(Args).items():
        if name in titles:
            lines += ["", f"## {titles[name]}", ""]
            lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
        lines.append(row)
        if name == "lora":
            lines += _rows(LoraArgs, "lora.").values()
    lines += ["", "## Other spellings", "", "| spelling | setting |", "|---|---|"]
    lines += [f"| `{alias}` | `{name}` |" for alias, name in ALIASES.items()]
    return "\n".join(lines).strip("\n")


def _rows(schema: type, prefix: str = "") -> dict[str, str]:
    """Field → its line of the table."""
    docs, hints = field_docs(schema), get_type_hints(schema, include_extras=True)
    return {
        field.name: f"| `{prefix}{field.name}` | {_kind(hints[field.name])} | {_default(field)} | "
        f"{' '.join(docs[field.name].split()).replace('|', chr(92) + '|')} |"
        for field in dataclasses.fields(schema)
    }


def _kind(hint: Any) -> str:
    """A type in words: `Annotated[int, at_least(1)] | None` → `int, at least 1`."""
    kinds = [inner for inner in get_args(hint) if inner is not type(None)]
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_kind(inner) for inner in kinds)
    if get_origin(hint) is Annotated:
        return ", ".join([_kind(kinds[0]), *(rule.text.removeprefix("be ") for rule in kinds[1:])])
    if get_origin(hint) is Literal:
        return ", ".join(f"`{word}`" for word in kinds)
    if kinds:
        return f"{hint.__origin__.__name__} of {' → '.join(_kind(inner) for inner in kinds if inner is not ...)}"
    return str(getattr(hint, "__name__", hint))


def _default(setting: dataclasses.Field[Any]) -> str:
    if setting.default is dataclasses.MISSING or setting.default is None:
        return "–"
    value = list(setting.default) if isinstance(setting.default, tuple) else setting.default
    return f"`{json.dumps(value)}`"


def _estimate(name: str) -> str:
    from docsite.estimates import RECIPES, estimate_block  # imports torch

    return estimate_block(RECIPES / f"{name}.yaml")


DOCS, RECIPES_PAGE = ROOT / "docs", ROOT / "recipes" / "README.md"
PAGES: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    DOCS / "settings.md": {"settings": settings_page},
    DOCS / "migration.md": {name: partial(mapping_table, tool) for name, tool in TOOLS.items()},
    RECIPES_PAGE: {
        recipe.stem: partial(_estimate, recipe.stem) for recipe in sorted(RECIPES_PAGE.parent.glob("*.yaml"))
    },
}


def made_anew(page: Path) -> str:
    """The page as the code says."""
    return filled(page.read_text(encoding="utf-8"), PAGES[page])


def main() -> int:
    """Writes the pages, or tells which are not as the code says."""
    only_checks, num_stale = "--check" in sys.argv[1:], 0
    for page in PAGES:
        text = made_anew(page)
        if text == page.read_text(encoding="utf-8"):
            continue
        num_stale += 1
        if only_checks:
            print(f"{page.relative_to(ROOT)} is stale: run `python -m docsite.pages`", file=sys.stderr)
        else:
            page.write_text(text, encoding="utf-8")
            print(f"{page.relative_to(ROOT)} was written")
    return 1 if num_stale and only_checks else 0


if __name__ == "__main__":
    sys.exit(main())
