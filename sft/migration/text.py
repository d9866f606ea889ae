"""Imported settings as a YAML file of ours, and the table of docs/migration.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from sft.config import Args
from sft.migration.mapping import Imported, Key, Told, Tool
from strict_settings import field_docs

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*(/[A-Za-z0-9_.-]+)*")
"""Text that needs no quotes in YAML; the words for null and booleans are excepted."""
_NO_WORDS = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")


def settings_text(found: Imported, file: str) -> str:
    """The settings file: settings in the order of `Args`, each with the key it came from; then what is to be known."""
    lines = [f"# Made of {file} ({found.tool.title}) by `python -m sft import-config`."]
    groups = {name.partition(".")[0] for name in found.origins}  # a mapping cannot be continued further down
    own = {name: value for name, value in found.settings.items() if name.partition(".")[0] in groups}
    lines += _settings(own, found.origins)
    if theirs := {name: value for name, value in found.settings.items() if name not in own}:
        lines += ["", f"# What {found.tool.title} does where nothing is said, and we would not"]
        lines += _settings(theirs, {})
    for title, told in (("Means something else here", found.changed), ("Not carried over", found.lost)):
        if told:
            lines += ["", f"# {title}", *(f"#   {_one_line(one)}" for one in told)]
    if found.idle:
        names = ", ".join(dict.fromkeys(one.key for one in found.idle))
        lines += ["", f"# Not needed: {names}"]
    return "\n".join(lines) + "\n"


def report_text(found: Imported) -> str:
    """The same in a few lines, for the terminal: what is lost or changed is named, the rest is counted."""
    lines = [
        f"{found.tool.title}: {len(found.carried)} keys carried over, {len(found.changed)} remarks, "
        f"{len(found.lost)} not carried over, {len(found.idle)} not needed."
    ]
    lines += [f"  means something else: {_one_line(one)}" for one in found.changed]
    lines += [f"  not carried over: {_one_line(one)}" for one in found.lost]
    return "\n".join(lines)


def mapping_table(tool: Tool) -> str:
    """What becomes of each key, in Markdown."""
    carried = [key for key in tool.keys if key.kind == "carried"]
    alike = [key for key in carried if key.becomes == key.name and not key.note]
    lines = [f"Taken as they are: {', '.join(f'`{key.name}`' for key in alike)}.", ""]
    lines += ["| key | becomes | remark |", "|---|---|---|"]
    lines += [f"| `{key.name}` | {_code(key.becomes)} | {key.note} |" for key in carried if key not in alike]
    lines += ["", "Where the file says nothing, what the tool does is written down if it is not our default:", ""]
    lines += [f"- `{default.setting}`: {default.shown}" for default in tool.defaults]
    lines += ["", "Not carried over, and told with the reason:", ""]
    lines += _by_reason([key for key in tool.keys if key.kind == "lost"])
    lines += [f"- `{prefix}…`: {reason}" for prefix, reason in tool.prefixes.items()]
    lines += ["", "Not needed:", ""]
    lines += _by_reason([key for key in tool.keys if key.kind == "idle"])
    return "\n".join(lines)


def _by_reason(keys: Sequence[Key]) -> Iterator[str]:
    ordered = sorted(keys, key=lambda key: key.note)
    for reason, group in groupby(ordered, key=lambda key: key.note):
        yield f"- {', '.join(f'`{key.name}`' for key in group)}: {reason}"


def _code(becomes: str) -> str:
    return becomes if becomes == "–" or "`" in becomes else ", ".join(f"`{name}`" for name in becomes.split(", "))


def _settings(settings: Mapping[str, Any], origins: Mapping[str, str]) -> list[str]:
    """Lines of YAML, in the order of `Args`."""
    order = {name: number for number, name in enumerate(field_docs(Args))}
    lines: list[str] = []
    for group in sorted(_groups(settings), key=lambda name: order.get(name, len(order))):
        inner = {name.partition(".")[2]: value for name, value in settings.items() if name.startswith(f"{group}.")}
        if inner:
            lines.append(f"{group}:")
            lines += [_line(f"  {name}", value, origins.get(f"{group}.{name}")) for name, value in inner.items()]
        else:
            lines.append(_line(group, settings[group], origins.get(group)))
    return lines


def _groups(settings: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in settings))


def _line(name: str, value: Any, origin: str | None) -> str:
    text = f"{name}: {_yaml(value)}"
    is_named_so = origin is None or origin == name.strip()
    return text if is_named_so else f"{text}  # {origin}"


def _yaml(value: Any) -> str:
    if isinstance(value, str):
        is_plain = _WORD.fullmatch(value) and value.lower() not in _NO_WORDS
        return value if is_plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_yaml(str(key))}: {_yaml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_yaml(inner) for inner in value) + "]"
    return json.dumps(value)


def _one_line(told: Told) -> str:
    return " ".join(str(told).split())
