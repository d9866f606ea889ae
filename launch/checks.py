"""What was looked at before something is started: a line each, with a verdict and what to do. Pure."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TextIO

from launch.errors import LaunchError

Verdict = Literal["ok", "warning", "error"]
_ORDER: tuple[Verdict, ...] = ("ok", "warning", "error")
_COLOURS = {"ok": "32", "warning": "33", "error": "31"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    value: str
    """What was found, in a few words."""
    verdict: Verdict = "ok"
    """error: nothing is started; warning: it is, and it may not go well."""
    remedy: str = ""
    """What to do; empty where all is well."""


class ChecksFailedError(LaunchError):
    """At least one check found an error. The table has been printed."""

    def __init__(self, checks: Sequence[Check], what: str) -> None:
        wrong = [check for check in checks if check.verdict == "error"]
        names = ", ".join(check.name for check in wrong)
        super().__init__(f"{counted(len(wrong), 'check')} failed: {names}. {what}")
        self.facts = {"checks": facts(checks)}


def takes_colours(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether what is written there may be coloured: a terminal, and nobody has said otherwise (no-color.org)."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def tell(checks: Sequence[Check], environ: Mapping[str, str]) -> None:
    """Prints the table on stderr."""
    print(table(checks, colours=takes_colours(sys.stderr, environ)), file=sys.stderr, end="", flush=True)


def worst(checks: Iterable[Check]) -> Verdict:
    """The gravest verdict among them; ok where there is none."""
    return max((check.verdict for check in checks), key=_ORDER.index, default="ok")


def facts(checks: Iterable[Check]) -> list[dict[str, Any]]:
    """Plain values, for JSON."""
    return [asdict(check) for check in checks]


def table(checks: Sequence[Check], *, colours: bool = False) -> str:
    """The table: name, verdict, value; below whatever is not ok, what to do."""
    if not checks:
        return ""
    width = max(len(check.name) for check in checks) + 2
    lines = []
    for check in checks:
        word = f"{check.verdict:<9}"
        shown = f"\x1b[{_COLOURS[check.verdict]}m{word}\x1b[0m" if colours else word
        lines.append(f"{check.name:<{width}}{shown}{check.value}".rstrip())
        lines += [f"{'':<{width + 9}}→ {line}" for line in check.remedy.splitlines()]
    return "\n".join(lines) + "\n"


def counted(number: int, noun: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{number} {_plural(number, noun)}"


def _plural(number: int, noun: str) -> str:
    return noun if number == 1 else f"{noun}{'es' if noun.endswith('s') else 's'}"
