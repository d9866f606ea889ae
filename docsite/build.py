"""Builds the documentation's site: gathers the pages, turns links that leave the site into text, and runs mkdocs.

    make docs        python -m docsite.build, with mkdocs installed

Files that are no part of docs/ keep their place in the repository; `PAGES` says what they are called on the site.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
GATHERED = ROOT / "build" / "docs"
CONFIG = ROOT / "docsite" / "mkdocs.yml"

ELSEWHERE: Mapping[str, str] = {
    "README.md": "index.md",
    "ds_configs/README.md": "ds-configs.md",
    "recipes/README.md": "recipes.md",
    "slurm/lab/README.md": "slurm-lab.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Page in the repository → on the site, for those outside of docs/."""
DIRECTORIES: Mapping[str, str] = {"docs/decisions": "decisions/index.md"}
"""Folder that a link may name → the page that lists it."""

_LINK = re.compile(r"(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)")
_CODE = re.compile(r"^(```.*?^```|    [^\n]*)$|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def pages() -> dict[str, str]:
    """Every page: its path in the repository → on the site."""
    docs = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
    return {**ELSEWHERE, **{path: path.removeprefix("docs/") for path in docs}}


def files() -> dict[str, str]:
    """What is no page: the recipes, to which pages link, and the site's own style."""
    recipes = {f"recipes/{path.name}": f"recipes/{path.name}" for path in sorted((ROOT / "recipes").glob("*.yaml"))}
    return {"docsite/site.css": "site.css", **recipes}


def links(text: str) -> Iterator[re.Match[str]]:
    """The links of a page; what stands in code is none."""
    code = [found.span() for found in _CODE.finditer(text)]
    for found in _LINK.finditer(text):
        if not any(start <= found.start() and found.end() <= end for start, end in code):
            yield found


def target_of(page: str, target: str) -> tuple[str, str]:
    """(path in the repository, anchor) of a link on a page; the path of a link within the page is the page's own.

    Raises:
        ValueError: there is no such file, or it lies outside of the repository.
    """
    name, _, anchor = target.partition("#")
    if not name:
        return page, anchor
    path = os.path.normpath(PurePosixPath(page).parent / name)
    if path.startswith("..") or not (ROOT / path).exists():
        raise ValueError(f"{page} links to {target}; it must be there.")
    return path, anchor


def page_text(page: str, text: str) -> str:
    """A page as the site has it: its links lead to pages of the site; those to other files are their text alone.

    Raises:
        ValueError: a link leads nowhere.
    """
    site, own = {**pages(), **files(), **DIRECTORIES}, pages()[page]
    pieces, end = [], 0
    for found in links(text):
        pieces.append(text[end : found.start()])
        pieces.append(_link(page, own, site, found))
        end = found.end()
    return "".join([*pieces, text[end:]])


def _link(page: str, own: str, site: Mapping[str, str], found: re.Match[str]) -> str:
    if "://" in found["target"] or found["target"].startswith("mailto:"):
        return found[0]
    path, anchor = target_of(page, found["target"])
    if path not in site:
        return found["text"]
    relative = os.path.relpath(site[path], PurePosixPath(own).parent)
    return f"[{found['text']}]({relative}{'#' + anchor if anchor else ''})"


def decisions() -> str:
    """A page that lists the decisions."""
    listed = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    titles = [(path.name, path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")) for path in listed]
    return "\n".join(["# Decisions", "", *(f"- [{title}]({name})" for name, title in titles)]) + "\n"


def gather(folder: Path) -> None:
    """Writes the pages and files of the site to a new folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for page, place in pages().items():
        _write(folder / place, page_text(page, (ROOT / page).read_text(encoding="utf-8")))
    for name, place in files().items():
        _write(folder / place, (ROOT / name).read_text(encoding="utf-8"))
    for place in DIRECTORIES.values():
        _write(folder / place, decisions())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main() -> int:
    """Gathers the pages and builds the site; mkdocs' exit code."""
    gather(GATHERED)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean", "--config-file", str(CONFIG)]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
