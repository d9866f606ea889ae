"""Prints the table templates × cases, as Markdown: which masks are exact, refused, or wrong.

python -m tests.oracle.coverage FOLDER_OF_TEMPLATES [TOKENIZER_JSON] > docs/template-coverage.md
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from sft.masking import Masker, MaskOptions

from .cases import BUILDERS, GROUPS, case
from .control_tokens import BUNDLED_TOKENIZER, stop_strings, tokenizer_for
from .judge import Judge, Verdict

MARKS = {"exact": "exact", "refused": "refused", "not rendered": "–", "WRONG": "**WRONG**"}


@cache
def judged(
    template_file: Path, tokenizer_file: Path, prompt_mismatch: str = "as_rendered", markup_is_special: bool = False
) -> dict[str, Verdict]:
    """Case → verdict, for one template."""
    options = MaskOptions(prompt_mismatch=prompt_mismatch)  # type: ignore[arg-type]
    template = template_file.read_text(encoding="utf-8")
    name = template_file.stem
    tokenizer = tokenizer_for(name, template, tokenizer_file, markup_is_special=markup_is_special)
    stops = stop_strings(name, template)
    masker = Masker(tokenizer, options=options)
    return {name: Judge(tokenizer, case(name), stops, options).verdict(masker) for name in BUILDERS}


def is_rendered(verdict: Verdict) -> bool:
    """Whether the template renders what the case is about."""
    return verdict.outcome != "not rendered" and "drops all reasoning" not in verdict.remarks


def shares(verdicts: dict[str, dict[str, Verdict]]) -> dict[str, tuple[int, int]]:
    """Group → (exact, rendered at all) over all templates."""
    counts = {}
    for group in GROUPS:
        names = [name for name, (of_group, _) in BUILDERS.items() if of_group == group]
        rendered = [found[name] for found in verdicts.values() for name in names if is_rendered(found[name])]
        counts[group] = (sum(verdict.outcome == "exact" for verdict in rendered), len(rendered))
    return counts


PAGE = """# Chat templates × conversations: which masks are exact

Made by `python -m tests.oracle.coverage FOLDER_OF_TEMPLATES TOKENIZER_JSON`, not by hand. The judge
(`tests/oracle/judge.py`) shares no code with the masker: every word of its conversations exists once, so what is
trained is told from decoded tokens, and from what the template gives at inference.

- **exact**: every answer is trained once, from where its prompt ends to its stop token, under the prompt that it has at
  inference; nothing else is trained; the ids are those of `apply_chat_template`.
- **exact 2**: in two documents, since the template rewrites history.
- **≠**: what the template renders does not begin with its own generation prompt: trained as rendered, as the notes say.
- **·**: the template drops all reasoning, in the last answer too.
- **refused**: with a reason, below.
- **–**: the template raises, or drops a message or a call; the row is refused.
- **WRONG**: a token too many or too few is trained, or under another prompt, or a loss is silent.
"""


def report(verdicts: dict[str, dict[str, Verdict]]) -> Iterator[str]:
    """The lines of the Markdown page."""
    total = Counter(verdict.outcome for found in verdicts.values() for verdict in found.values())
    counted = ", ".join(f"{count} {outcome}" for outcome, count in sorted(total.items()))
    yield f"{len(verdicts)} templates × {len(BUILDERS)} cases: {counted}."
    yield ""
    yield "| group | exact of those rendered at all | share |"
    yield "|---|---|---|"
    for group, (exact, rendered) in shares(verdicts).items():
        yield f"| {group} | {exact} of {rendered} | {100 * exact / max(rendered, 1):.1f} % |"
    yield ""
    yield "| template | " + " | ".join(BUILDERS) + " |"
    yield "|---" * (len(BUILDERS) + 1) + "|"
    for name, found in verdicts.items():
        yield f"| {name} | " + " | ".join(cell(found[case_name]) for case_name in BUILDERS) + " |"
    for outcome in ("WRONG", "refused", "not rendered"):
        yield from reasons(verdicts, outcome)
    notes = {reading for name in verdicts for reading in readings(name)}
    if notes:
        yield from ("", "## How the odd ones are read", "", *sorted(notes))


def readings(name: str) -> Iterator[str]:
    """The line on the template with the longest name that fits."""
    lines = (Path(__file__).parent / "readings.md").read_text(encoding="utf-8").splitlines()
    fitting = [line for line in lines if line.startswith("- `") and name.startswith(line[3:].split("…`: ")[0])]
    yield from sorted(fitting, key=lambda line: line.index("…`: "))[-1:]


def cell(verdict: Verdict) -> str:
    """One word, and the number of documents if there are several."""
    text = MARKS[verdict.outcome]
    if verdict.outcome == "exact":
        text += f" {verdict.num_documents}" if verdict.num_documents > 1 else ""
        text += " ≠" if "prompt mismatch" in verdict.remarks else ""
        text += " ·" if "drops all reasoning" in verdict.remarks else ""
    return text


def reasons(verdicts: dict[str, dict[str, Verdict]], outcome: str) -> Iterator[str]:
    """Each reason with the templates and cases it was given for."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, of_template in verdicts.items():
        for case_name, verdict in of_template.items():
            if verdict.outcome == outcome:
                reason = re.sub(r"\s+", " ", verdict.reason).replace("|", "\\|")[:240]
                found.setdefault(reason, {}).setdefault(name, []).append(case_name)
    if found:
        yield from ("", f"## {outcome}", "")
    for reason, where in sorted(found.items(), key=lambda item: -len(item[1])):
        yield f"- {reason}"
        yield from (f"    - {name}: {'; '.join(names)}" for name, names in where.items())


def main(arguments: list[str]) -> int:
    """1 if a mask is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.oracle.coverage", description=__doc__)
    parser.add_argument("templates", type=Path, help="folder of *.jinja, or one such file")
    parser.add_argument("tokenizer", type=Path, nargs="?", default=BUNDLED_TOKENIZER, help="a tokenizer.json")
    parser.add_argument("--prompt-mismatch", choices=["as_rendered", "unroll", "refuse"], default="as_rendered")
    parser.add_argument("--markup-is-special", action="store_true", help="make <think> and the like special tokens")
    parser.add_argument("--match", default="", help="only templates whose name matches this regular expression")
    parser.add_argument("--brief", action="store_true", help="only the counts and what is wrong")
    args = parser.parse_args(arguments)
    files = sorted(args.templates.glob("*.jinja")) if args.templates.is_dir() else [args.templates]
    verdicts = {
        file.stem: judged(file, args.tokenizer, args.prompt_mismatch, args.markup_is_special)
        for file in files
        if re.search(args.match, file.stem)
    }
    lines = list(report(verdicts))
    if args.brief:
        head = lines[: lines.index("", 2)]
        lines = [*head, *reasons(verdicts, "WRONG"), *reasons(verdicts, "refused")]
    else:
        lines = [PAGE, *lines]
    print("\n".join(lines))
    return int(any(verdict.outcome == "WRONG" for found in verdicts.values() for verdict in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
