"""A document for the terminal: what is trained in colour, or in brackets where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from sft.audit import Audit
from sft.documents import Document
from sft.inspection import Inspected
from sft.masking import Masker

TRAINED, CONTROL, TRAINED_CONTROL, DIM, BOLD, RED, RESET = (
    f"\x1b[{code}m" for code in ("30;42", "36", "1;30;46", "2", "1", "31", "0")
)
MAX_CHARACTERS = 3000
"""Longer documents are shortened in the middle, unless they are wanted in full."""

Piece = tuple[str, bool, bool, float]
"""Text, whether it is trained, whether it is a control token, its weight."""


def pieces(document: Document, masker: Masker) -> Iterator[Piece]:
    """The document's text in stretches of one kind."""
    weights = document.weights if document.weights is not None else [1.0] * len(document)
    tokens = zip(document.input_ids, document.trained, weights, strict=True)
    kinds = groupby(tokens, key=lambda token: (bool(token[1]), masker.is_control(int(token[0])), float(token[2])))
    for (is_trained, is_control, weight), group in kinds:
        yield masker.decode([int(token[0]) for token in group]), is_trained, is_control, weight


def painted(inspected: Inspected, masker: Masker, *, color: bool, full: bool) -> str:
    """The document with a heading and its notes, or the reason why there is none."""
    paint: Callable[[str, str], str] = (lambda text, code: f"{code}{text}{RESET}") if color else (lambda text, _: text)
    heading = f"── {inspected.source}" + (f" · {inspected.form}" if inspected.form else "")
    if inspected.document is None:
        return f"{paint(heading, BOLD)}\n{paint('refused: ', RED)}{inspected.refused}\n"
    document = inspected.document
    share = document.num_trained_tokens / max(len(document), 1)
    heading += f" · {len(document):,} tokens, {document.num_trained_tokens:,} trained ({share:.0%})"
    if inspected.number:
        heading += f" · document {inspected.number + 1} of the row"
    body = _body(list(pieces(document, masker)), color=color, full=full)
    notes = [f"   note: {note}" for note in document.notes]
    if inspected.truncated:
        notes.append(f"   {inspected.truncated}")
    return "\n".join([paint(heading, BOLD), body, *(paint(note, DIM) for note in notes), ""])


def legend(*, color: bool) -> str:
    """How to read it."""
    if color:
        return (
            f"{TRAINED} trained {RESET}  {CONTROL}control token{RESET}  {TRAINED_CONTROL} trained control token {RESET}"
        )
    return "⟦trained⟧ not trained; ⏎ is a line break in what is trained or around it"


def _body(parts: Sequence[Piece], *, color: bool, full: bool) -> str:
    total = sum(len(text) for text, *_ in parts)
    budget = total if full else MAX_CHARACTERS
    shown: list[str] = []
    was_trained, position = False, 0
    for text, is_trained, is_control, weight in parts:
        visible = _shortened(text, position, total, budget).replace("\n", "⏎\n")
        position += len(text)
        if not color:
            if is_trained != was_trained:
                shown.append("⟦" if is_trained else "⟧")
            was_trained = is_trained
            shown.append(visible + (f"×{weight:g}" if is_trained and weight != 1.0 else ""))
            continue
        code = (TRAINED_CONTROL if is_control else TRAINED) if is_trained else CONTROL if is_control else ""
        if is_trained and weight != 1.0:
            visible += f"×{weight:g}"
        # A background is ended before a line break, or the terminal paints the rest of the line.
        shown.append("\n".join(f"{code}{line}{RESET}" if code and line else line for line in visible.split("\n")))
    if was_trained:
        shown.append("⟧")
    return "".join(shown)


def _shortened(text: str, position: int, total: int, budget: int) -> str:
    """What of a stretch is shown: all but what stands in the document's middle."""
    if total <= budget:
        return text
    hidden_from, hidden_to = budget // 2 - position, total - budget // 2 - position
    start, end = max(0, hidden_from), min(len(text), hidden_to)
    if start >= end:
        return text
    mark = f" …{total - budget:,} characters… " if 0 <= hidden_from < len(text) else ""
    return text[:start] + mark + text[end:]


def audit_text(found: Audit) -> str:
    """An audit for the terminal; errors and warnings first."""
    counts, epoch = found.counts, found.epoch
    lines = [f"error: {error}" for error in found.errors] + [f"warning: {warning}" for warning in found.warnings]
    if lines:
        lines.append("")
    share = counts["trained_tokens"] / max(counts["tokens"], 1)
    forms = ", ".join(f"{form} {number:,}" for form, number in found.forms.most_common())
    lines += [
        f"rows       {counts['rows']:,} ({forms or 'none can be read'})",
        f"documents  {counts['documents']:,}",
        f"tokens     {counts['tokens']:,}, {counts['trained_tokens']:,} trained ({share:.0%})",
        f"stop at    {' '.join(found.stop_tokens) or 'nothing'}",
    ]
    if len(found.sources) > 1:
        lines += [
            "",
            f"{'source':40} {'times':>6} {'rows':>9} {'refused':>8} {'documents':>10} {'tokens':>13} {'trained':>8}",
        ]
        for source in found.sources:
            part = source.trained_tokens / max(source.tokens, 1)
            lines.append(
                f"{source.name[-40:]:40} {source.times:>6g} {source.rows:>9,} {source.bad:>8,} {source.documents:>10,} "
                f"{source.tokens:>13,} {part:>8.0%}"
            )
    lines += ["", "tokens per document", *_histogram(found)]
    packed = "packed" if epoch["packing"] else f"{epoch.get('padding', 0):.0%} padding"
    lines += [
        "",
        f"one epoch: {epoch['documents']:,} documents, {epoch['tokens']:,} tokens, {epoch['trained_tokens']:,} trained; "
        f"{epoch['steps']:,} steps of {epoch['rows_per_step']} rows (times the number of processes), {packed}",
    ]
    for what, places in found.examples.items():
        if what == "refused":
            continue
        lines += ["", f"{what}:", *(f"  {place}" for place in places)]
    return "\n".join(lines)


def _histogram(found: Audit, num_bars: int = 12, width: int = 50) -> list[str]:
    longest = max(found.lengths, default=1)
    step = max(1, -(-longest // num_bars))
    numbers = [0] * num_bars
    for length, number in found.lengths.items():
        numbers[min((length - 1) // step, num_bars - 1)] += number
    highest = max(max(numbers), 1)
    return [
        f"{index * step + 1:>7}–{(index + 1) * step:<7} {'█' * round(width * number / highest):{width}} {number:,}"
        for index, number in enumerate(numbers)
    ]
