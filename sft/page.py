"""Pages to look at: one HTML file each, which needs nothing from anywhere.

Every text of the data is escaped by the template engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import jinja2

from sft.config import ROOT
from sft.inspection import Inspected, Piece, Refused
from sft.painting import visible
from sft.values import counted

_TEMPLATES = ROOT / "sft" / "templates"


def inspect_page(views: Sequence[tuple[Inspected | Refused, Sequence[Piece]]], title: str) -> str:
    """Documents with their trained tokens painted; refused rows with the reason."""
    shown = [view for view, _ in views if isinstance(view, Inspected)]
    num_tokens = sum(len(view.kept) for view in shown)
    num_trained = sum(view.num_trained_tokens for view in shown)
    return render_page(
        "inspect.html.jinja",
        kind="What is trained",
        title=title,
        command="python -m sft inspect",
        documents=documents_of(views),
        num_documents=counted(len(shown), "document"),
        num_rows=counted(len({view.row for view, _ in views}), "row"),
        num_tokens=f"{num_tokens:,}",
        num_trained=f"{num_trained:,}",
        share=f"{num_trained / max(num_tokens, 1):.0%}",
        has_weights=any(view.document.weights is not None for view in shown),
        has_cuts=any(view.is_truncated for view in shown),
    )


def documents_of(views: Sequence[tuple[Inspected | Refused, Sequence[Piece]]]) -> list[dict[str, Any]]:
    """Painted documents, for `painted_document.jinja`."""
    return [_document(view, pieces) for view, pieces in views]


def render_page(template: str, **context: Any) -> str:
    """The page of a template in sft/templates."""
    loader = jinja2.FileSystemLoader(_TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**context)


def _document(view: Inspected | Refused, pieces: Sequence[Piece]) -> dict[str, Any]:
    if isinstance(view, Refused):
        return {"source": view.source, "row": view.row, "refused": visible(view.reason)}
    kept, trained = len(view.kept), view.num_trained_tokens
    of = f" of {len(view.document):,}" if view.is_truncated else ""
    return {
        "source": view.source,
        "row": view.row,
        "number": view.number,
        "form": view.form,
        "refused": None,
        "size": f"{kept:,}{of} tokens, {trained:,} trained ({trained / max(kept, 1):.0%})",
        "stretches": list(_stretches(pieces, len(view.document))),
        "tokens": list(_tokens(pieces)),
        "remarks": [*([view.cut] if view.cut else []), *map(visible, view.document.notes)],
    }


def _stretches(pieces: Sequence[Piece], num_tokens: int) -> Iterator[dict[str, Any]]:
    """Where in the document trained and cut tokens stand, in thousandths of its length."""
    scale = 1000 / max(num_tokens, 1)
    for (is_kept, is_trained), group in groupby(pieces, key=lambda piece: (piece.is_kept, piece.is_trained)):
        members = list(group)
        if is_trained or not is_kept:
            number = sum(len(piece.ids) for piece in members)
            yield {"x": _short(members[0].index * scale), "width": _short(number * scale), "is_cut": not is_kept}


def _tokens(pieces: Sequence[Piece]) -> Iterator[dict[str, Any]]:
    heaviest = max((piece.weight for piece in pieces), default=1.0) or 1.0
    before = 1.0
    for piece in pieces:
        weight = piece.weight if piece.is_trained else 1.0
        styles = [
            name
            for name, holds in (("k", True), ("t", piece.is_trained), ("c", piece.is_control), ("x", not piece.is_kept))
            if holds
        ]
        yield {
            "style": " ".join(styles),
            "tip": _tip(piece),
            "lines": visible(piece.text).split("\n"),
            "tag": f"×{weight:g}" if weight not in (1.0, before) else "",
            "strength": _short(weight / heaviest) if piece.is_trained and weight != heaviest else None,
        }
        before = weight


def _tip(piece: Piece) -> str:
    ids = ", ".join(map(str, piece.ids))
    many = len(piece.ids) > 1
    where = f"token{'s' if many else ''} {piece.index}" + (f"–{piece.index + len(piece.ids) - 1}" if many else "")
    fate = "cut off" if not piece.is_kept else "trained" if piece.is_trained else "not trained"
    weight = f" · weight {piece.weight:g}" if piece.is_trained and piece.weight != 1.0 else ""
    return f"{where} · id {ids} · {fate}{weight}"


def _short(number: float) -> float:
    return round(number, 2)
