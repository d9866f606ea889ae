"""What nodes have said and what was found, in words and as plain values. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from launch.diagnosis import Finding, wrong_nodes
from launch.examination import ALL_MEGABYTES, Answers


def report_text(answers: Answers, findings: Sequence[Finding]) -> str:
    """A line per node, then what was found, with what to do."""
    columns = [("node", "address", "clock", "rate", "pair", "")]
    for node, host in enumerate(answers.hosts):
        own = [finding.verdict for finding in findings if node in finding.nodes]
        verdict = "error" if "error" in own else "warning" if own else "ok"
        columns.append((host, *_cells(answers, node), verdict))
    widths = [max(len(row[column]) for row in columns) for column in range(5)]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in columns
    ]
    for backend, found in answers.together.items():
        seconds = [answer["seconds"] for answer in found.values() if "seconds" in answer]
        if len(seconds) == len(found):
            lines.append(f"\nall {len(found)} together, {ALL_MEGABYTES} MiB by {backend}: {max(seconds) * 1e3:.1f} ms")
    lines.append("")
    for finding in findings:
        names = " and ".join(answers.hosts[node] for node in finding.nodes)
        lines.append(f"{finding.verdict:<9}{f'{names} ' if names else ''}{finding.what}")
        lines += [f"         → {finding.remedy}"] if finding.remedy else []
    if not findings:
        lines.append("nothing is wrong with these nodes")
    return "\n".join(lines) + "\n"


def _cells(answers: Answers, node: int) -> tuple[str, str, str, str]:
    """(address, clock, rate, pair)."""
    facts = answers.facts.get(node, {})
    skew = answers.skew_s.get(node)
    rates = answers.rates.get(node, {}).get("flops_per_s", ())
    times = [answer["seconds"] for pair, answer in answers.pairs.items() if node in pair and "seconds" in answer]
    count = f"{len(rates)} × " if len(rates) > 1 else ""
    return (
        facts.get("address") or "-",
        f"{skew[0] * 1e3:+.0f} ms" if skew else "-",
        f"{count}{min(rates) / 1e12:.3g} TFLOP/s" if rates else "-",
        f"{median(times) * 1e3:.1f} ms" if times else "-",
    )


def report_facts(answers: Answers, findings: Sequence[Finding]) -> dict[str, Any]:
    """Plain values, for JSON."""
    return {
        "nodes": [
            {
                "host": host,
                "began": node in answers.began,
                "skew_s": answers.skew_s.get(node, (None,))[0],
                "facts": answers.facts.get(node),
                "flops_per_s": answers.rates.get(node, {}).get("flops_per_s"),
            }
            for node, host in enumerate(answers.hosts)
        ],
        "pairs": [
            {"nodes": [answers.hosts[node] for node in pair], **_plain(answer)}
            for pair, answer in answers.pairs.items()
        ],
        "together": {
            backend: max((answer.get("seconds", 0.0) for answer in found.values()), default=None)
            for backend, found in answers.together.items()
        },
        "findings": [
            {
                "nodes": [answers.hosts[node] for node in finding.nodes],
                "what": finding.what,
                "verdict": finding.verdict,
                "remedy": finding.remedy,
            }
            for finding in findings
        ],
        "wrong_nodes": [answers.hosts[node] for node in wrong_nodes(findings)],
    }


def _plain(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {name: answer[name] for name in ("seconds", "error") if name in answer}
