"""What fields take, in words: `whole number, at least 1`."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from strict_settings.schema import Rule, _union_parts, hints_of

_SCALARS = {bool: "true or false", int: "whole number", float: "number", str: "text"}


def field_kinds(cls: type) -> dict[str, str]:
    """Field name → what it takes, None aside.

    Args:
        cls: a dataclass whose annotations are a schema, as for `build`.
    """
    return {name: _described(hint) for name, hint in hints_of(cls, with_rules=True).items()}


def _described(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        plain, *rules = get_args(hint)
        bounds = [rule.text.removeprefix("be ") for rule in rules if isinstance(rule, Rule)]
        return ", ".join([_described(plain), *bounds])
    parts = [part for part in _union_parts(hint) if part is not types.NoneType]
    if parts != [hint]:
        return ", or ".join(_described(part) for part in parts)
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in inner)
    if origin in (list, tuple):
        return f"list of {_described(inner[0])}"
    if origin in (dict, Mapping) and inner and inner[1] is not Any:
        return f"mapping to {_described(inner[1])}"
    return _SCALARS.get(hint, "mapping")
