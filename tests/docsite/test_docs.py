"""The site of docs/: links lead somewhere, the navigation has every page, and what is made from the code is as it says.

mkdocs is not needed; `make docs` builds the site itself, strictly.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docsite.build import CONFIG, DIRECTORIES, ROOT, decisions, gather, links, page_text, pages, target_of
from docsite.pages import DOCS, filled, made_anew
from sft.migration.tools import TOOLS
from strict_settings import read_yaml


def anchors(text: str) -> set[str]:
    """The ids of a page's headings, as GitHub and Python-Markdown make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading.strip().lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages())
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    for found in links((ROOT / page).read_text(encoding="utf-8")):
        if "://" in found["target"]:
            continue
        path, anchor = target_of(page, found["target"])
        if anchor:
            assert anchor in anchors((ROOT / path).read_text(encoding="utf-8")), found[0]


def nav_pages(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    inner = entry.values() if isinstance(entry, dict) else entry
    assert isinstance(inner, list | type({}.values()))
    return [page for part in inner for page in nav_pages(part)]


def test_the_navigation_has_every_page_once() -> None:
    listed = nav_pages(read_yaml(CONFIG).values["nav"])
    assert sorted(listed) == sorted([*pages().values(), *DIRECTORIES.values()])


def test_the_navigation_has_what_people_look_for() -> None:
    nav = read_yaml(CONFIG).values["nav"]
    assert [next(iter(entry)) for entry in nav] == [
        "Quick start", "Your data", "Masks", "Engines", "Recipes", "Slurm", "Recovery", "Speed", "Evaluate",
        "Exit codes", "Every setting", "How it is built",
    ]  # fmt: skip


def test_links_that_leave_the_site_become_text() -> None:
    text = "see [the loop](sft/loop.py), [masks](docs/masks.md#tokens) and `[x](y)`; [out](https://example.org/a)"
    assert page_text("README.md", text) == (
        "see the loop, [masks](masks.md#tokens) and `[x](y)`; [out](https://example.org/a)"
    )
    assert (
        page_text("docs/masks.md", "[all](../README.md) [d](decisions/)") == "[all](index.md) [d](decisions/index.md)"
    )
    with pytest.raises(ValueError, match=r"README\.md links to docs/gone\.md"):
        page_text("README.md", "[gone](docs/gone.md)")


def test_the_pages_are_gathered(tmp_path: Path) -> None:
    gather(tmp_path / "site")
    found = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.md")}
    assert found == {*pages().values(), *DIRECTORIES.values()}
    for name in found:
        for link in links((tmp_path / "site" / name).read_text(encoding="utf-8")):
            if "://" not in link["target"]:
                place = (tmp_path / "site" / name).parent / link["target"].partition("#")[0]
                assert place.exists(), (name, link[0])


def test_the_list_of_decisions_has_all() -> None:
    assert decisions().count("\n- [") == len(list((DOCS / "decisions").glob("*.md")))


def test_the_tables_of_migration_are_as_the_code_says() -> None:
    page = DOCS / "migration.md"
    assert page.read_text(encoding="utf-8") == made_anew(page), "run `python -m docsite.pages`"


def test_every_key_is_in_the_tables_of_migration() -> None:
    text = (DOCS / "migration.md").read_text(encoding="utf-8")
    for tool in TOOLS.values():
        part = text.partition(f"<!-- made: {tool.name} -->")[2].partition("<!-- end -->")[0]
        assert [key.name for key in tool.keys if f"`{key.name}`" not in part] == []


def test_a_part_that_nobody_makes_is_an_error() -> None:
    assert filled("a\n<!-- made: x -->\nold\n<!-- end -->\nb", {"x": lambda: "new"}) == (
        "a\n<!-- made: x -->\nnew\n<!-- end -->\nb"
    )
    with pytest.raises(KeyError):
        filled("<!-- made: y -->\n<!-- end -->", {})
