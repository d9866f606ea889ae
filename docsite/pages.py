"""Parts of Markdown files that are made from the code, between `<!-- made: NAME -->` and `<!-- end -->`.

python -m docsite.pages            writes docs/migration.md and recipes/README.md anew
python -m docsite.pages --check    exit code 1 if one of them is not as the code says
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from sft.migration.text import mapping_table
from sft.migration.tools import TOOLS

_PART = re.compile(r"(<!-- made: (?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, parts: Mapping[str, Callable[[], str]]) -> str:
    """The text with its marked parts made anew.

    Raises:
        KeyError: a part is marked that nobody makes.
    """
    return _PART.sub(lambda found: f"{found[1]}{parts[found['name']]()}\n{found[3]}", text)


def _estimate(name: str) -> str:
    from docsite.estimates import RECIPES, estimate_block  # imports torch

    return estimate_block(RECIPES / f"{name}.yaml")


DOCS, RECIPES_PAGE = ROOT / "docs", ROOT / "recipes" / "README.md"
PAGES: Mapping[Path, Mapping[str, Callable[[], str]]] = {
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
