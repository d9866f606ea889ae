"""Pages to look at: one HTML file each, which needs nothing from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2

from sft.audit import Audit
from sft.config import ROOT
from sft.inspection import Inspected
from sft.masking import Masker

NUM_BARS = 32


def inspect_page(found: Sequence[Inspected], masker: Masker) -> str:
    """Documents with their trained tokens painted."""
    return _page("inspect.html.jinja", documents=[_document(inspected, masker) for inspected in found])


def audit_page(found: Audit) -> str:
    """Counts, a histogram of lengths, examples; warnings first."""
    return _page("audit.html.jinja", audit=found, bars=_bars(found))


def _page(template: str, **context: Any) -> str:
    loader = jinja2.FileSystemLoader(ROOT / "sft" / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(**context)


def _document(inspected: Inspected, masker: Masker) -> dict[str, Any]:
    document = inspected.document
    if document is None:
        return {"inspected": inspected, "tokens": [], "num_tokens": 0, "num_trained": 0}
    weights = document.weights if document.weights is not None else [1.0] * len(document)
    tokens = [
        {
            "text": masker.decode([int(token)]),
            "id": int(token),
            "index": index,
            "trained": bool(trained),
            "control": masker.is_control(int(token)),
            "weight": float(weight),
        }
        for index, (token, trained, weight) in enumerate(
            zip(document.input_ids, document.trained, weights, strict=True)
        )
    ]
    return {
        "inspected": inspected,
        "tokens": tokens,
        "num_tokens": len(document),
        "num_trained": document.num_trained_tokens,
        "heaviest": max((token["weight"] for token in tokens), default=1.0),
    }


def _bars(found: Audit) -> list[dict[str, Any]]:
    """The histogram of lengths: bars of equal width from 0 to the longest document."""
    longest = max(found.lengths, default=1)
    width = max(1, -(-longest // NUM_BARS))
    numbers = [0] * NUM_BARS
    for length, number in found.lengths.items():
        numbers[min((length - 1) // width, NUM_BARS - 1)] += number
    highest = max(max(numbers), 1)
    return [
        {"from": index * width + 1, "to": (index + 1) * width, "number": number, "height": number / highest}
        for index, number in enumerate(numbers)
    ]
