"""An audit → what hinders the run, what a person should decide about, and what is good to know; in this order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sft.audit import REPEATED, Audit, SourceAudit
from sft.config import Args
from sft.masking import ESCAPED
from sft.masks.turns import REWRITTEN, UNROLLED
from sft.values import counted

Level = Literal["error", "warning", "note"]

_TO_KNOW = (REWRITTEN, UNROLLED, ESCAPED, REPEATED)
"""Not in question: done as the settings say."""


@dataclass(frozen=True)
class Finding:
    """One thing to know about the data."""

    level: Level
    text: str
    places: tuple[str, ...] = ()
    """The first of the rows: `file:line`, with the reason where rows differ in it."""


def findings_of(found: Audit, args: Args) -> list[Finding]:
    """All findings, errors first."""
    order = ("error", "warning", "note")
    return sorted(_findings(found, args), key=lambda finding: order.index(finding.level))


def _findings(found: Audit, args: Args) -> Iterator[Finding]:
    yield from _about_rows(found, args)
    for what, number in found.fates.counts.most_common():
        text = f"{counted(number, 'document')} {what}; max_length is {found.max_length:,}"
        yield Finding("warning", text, tuple(found.fates.examples[what]))
    if found.documents and not found.stop_tokens:
        text = "no control token ends a turn: the model would not learn to stop. Choose another chat template."
        yield Finding("warning", text)
    for note, number in found.notes.counts.most_common():
        level: Level = "note" if note in _TO_KNOW else "warning"
        yield Finding(level, f"{counted(number, 'document')}: {note}", tuple(found.notes.examples[note]))
    for what, number in found.repeated.counts.most_common():
        level = "note" if what in _TO_KNOW else "warning"
        yield Finding(level, f"{counted(number, 'row')}: {what}", tuple(found.repeated.examples[what]))


def _about_rows(found: Audit, args: Args) -> Iterator[Finding]:
    """Refused rows by reason, and data of which nothing is left."""
    held_out = found.held_out
    is_error = args.on_bad_row == "error" or any(
        number > args.max_bad_rows for number in (found.num_refused, held_out.num_refused if held_out else 0)
    )
    for what, number in found.refused.counts.most_common():
        reason, places = what, tuple(found.refused.examples[what])
        if number == 1 and ": " in places[0]:  # the reason as it is, which names the values
            place, _, reason = places[0].partition(": ")
            places = (place,)
        yield Finding("error" if is_error else "warning", f"{counted(number, 'row')} refused: {reason}", places)
    if is_error and found.refused.counts and args.on_bad_row == "skip":
        yield Finding("error", f"more than max_bad_rows: {args.max_bad_rows} rows are refused")
    data: list[tuple[str, list[SourceAudit]]] = [("the training data", found.sources)]
    for what, sources in [*data, ("the evaluation's data", [held_out])] if held_out else data:
        if not any(source.rows for source in sources):
            yield Finding("error", f"{what} holds no row. Name a file with at least one conversation.")
        elif all(source.num_refused == source.rows for source in sources):
            yield Finding("error", f"{what} holds no row that can be used.")
        elif not any(source.documents for source in sources):
            text = f"{what} has no row with a trained token within max_length {found.max_length:,}. Raise max_length."
            yield Finding("error", text)
