"""An audit for the terminal, and as plain values for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from sft.audit import Audit, SourceAudit
from sft.epoch import Epoch
from sft.findings import Finding
from sft.lengths import bins, usual
from sft.painting import Brush, visible
from sft.values import counted

_BAR_WIDTH = 44
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_STYLES = {"error": "refused", "warning": "note", "note": "control"}


def audit_text(found: Audit, findings: Sequence[Finding], epoch: Epoch, brush: Brush) -> str:
    """Errors and warnings first, then counts, lengths, sources and the epoch."""
    parts = [
        _findings(findings, brush),
        _counts(found, brush),
        _histogram(found, brush),
        _sources(found, brush),
        _epoch(epoch, brush),
    ]
    return "\n".join("\n".join(part) + "\n" for part in map(list, parts) if part)


def quick_text(found: Audit, findings: Sequence[Finding], brush: Brush) -> str:
    """What hinders the run, what to decide about, and one line of counts."""
    lines = [*_findings([finding for finding in findings if finding.level != "note"], brush)]
    scope = "the data" if found.is_whole else f"the first {found.rows:,} rows"
    lines.append(f"audit of {scope}: {_totals(found)}")
    return "\n".join(lines)


def to_json(found: Audit, findings: Sequence[Finding], epoch: Epoch) -> dict[str, Any]:
    """Plain values; lengths as pairs (tokens, documents)."""
    return {
        "is_whole": found.is_whole,
        "max_length": found.max_length,
        "findings": [asdict(finding) for finding in findings],
        "rows": found.rows,
        "num_refused": found.num_refused,
        "documents": found.documents,
        "tokens": found.tokens,
        "trained_tokens": found.trained_tokens,
        "forms": dict(found.forms),
        "refused": _tally(found.refused.counts, found.refused.examples),
        "fates": _tally(found.fates.counts, found.fates.examples),
        "notes": _tally(found.notes.counts, found.notes.examples),
        "repeated": _tally(found.repeated.counts, found.repeated.examples),
        "stop_tokens": [{"id": token, "text": text} for token, text in found.stop_tokens.items()],
        "longest": {"tokens": found.longest[0], "source": found.longest[1]},
        "lengths": sorted(found.lengths.items()),
        "sources": [_source(source) for source in found.sources],
        "held_out": _source(found.held_out) if found.held_out else None,
        "epoch": asdict(epoch),
    }


def _tally(counts: dict[str, int], examples: dict[str, list[str]]) -> list[dict[str, Any]]:
    return [{"what": what, "number": number, "examples": examples[what]} for what, number in counts.items()]


def _source(source: SourceAudit) -> dict[str, Any]:
    return {name: value for name, value in vars(source).items() if not isinstance(value, Counter)} | {
        "forms": dict(source.forms)
    }


def _findings(findings: Sequence[Finding], brush: Brush) -> Iterator[str]:
    for finding in findings:
        yield brush(f"{finding.level}: ", _STYLES[finding.level]) + visible(finding.text)
        yield from (brush(f"    {visible(place)}", "mark") for place in finding.places)


def _totals(found: Audit) -> str:
    return (
        f"{found.rows:,} rows, {found.num_refused:,} refused; {found.documents:,} documents, "
        f"{found.tokens:,} tokens, {found.trained_tokens:,} trained ({found.trained_share:.0%})"
    )


def _counts(found: Audit, brush: Brush) -> Iterator[str]:
    yield brush("Data", "heading") + ("" if found.is_whole else "  (the first rows only)")
    forms = ", ".join(f"{form} {number:,}" for form, number in found.forms.most_common())
    yield f"  rows          {found.rows:,}: {found.num_refused:,} refused, {forms or 'none can be read'}"
    fates = f"{found.num_truncated:,} of them truncated; {found.num_dropped:,} dropped"
    yield f"  documents     {found.documents:,} trained, {fates}"
    yield f"  tokens        {found.tokens:,}, {found.trained_tokens:,} trained ({found.trained_share:.1%})"
    stops = ", ".join(f"{visible(text)} ({token})" for token, text in found.stop_tokens.items())
    yield f"  turns end in  {stops or 'no control token'}"


def _histogram(found: Audit, brush: Brush) -> Iterator[str]:
    lengths = found.lengths
    if not lengths:
        return
    yield brush("Tokens per document", "heading") + "  (up to the last trained one, before truncation)"
    found_bins = bins(lengths)
    highest = max(bar.number for bar in found_bins)
    for bar in found_bins:
        mark = " ◂ max_length" if bar.first <= found.max_length < (bar.last or bar.first) else ""
        yield f"  {bar.name:>15} {_bar(bar.number / highest):{_BAR_WIDTH}} {bar.number:,}{mark}"
    yield f"  {usual(lengths)}, longest {found.longest[0]:,} ({found.longest[1]})"


def _bar(share: float) -> str:
    """A bar of blocks, exact to an eighth; something is seen of everything that is there."""
    eighths = max(round(share * _BAR_WIDTH * 8), 1 if share else 0)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def _sources(found: Audit, brush: Brush) -> Iterator[str]:
    sources = [(source, f"×{source.times:g}") for source in found.sources]
    sources += [(found.held_out, "eval")] if found.held_out else []
    if len(sources) < 2:
        return
    yield brush("Sources", "heading")
    width = min(max(len(source.name) for source, _ in sources), 48)
    yield f"  {'':{width}} {'':>6} {'rows':>10} {'refused':>8} {'dropped':>8} {'documents':>10} {'tokens':>14} trained"
    for source, times in sources:
        yield (
            f"  {source.name[-width:]:{width}} {times:>6} {source.rows:>10,} {source.num_refused:>8,} "
            f"{source.num_dropped:>8,} {source.documents:>10,} {source.tokens:>14,} {source.trained_share:>7.0%}"
        )


def _epoch(epoch: Epoch, brush: Brush) -> Iterator[str]:
    processes = f"{epoch.num_processes} process" + ("es" if epoch.num_processes != 1 else "")
    yield brush("One epoch", "heading") + f"  ({processes}, {epoch.rows_per_step:,} rows per step)"
    yield f"  documents     {epoch.documents:,} with {epoch.tokens:,} tokens"
    yield f"  one per row   {counted(epoch.steps, 'step')}, about {epoch.padding:.0%} padding"
    yield f"  packed        {counted(epoch.packed_steps, 'step')}, rows {epoch.packed_fill:.1%} full"
