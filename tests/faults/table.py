"""docs/faults.md out of the matrix of faults and the record of what was seen.

    CLEANSFT_RECORD_FAULTS=$PWD/seen.jsonl python -m pytest …    tests append what they see
    python -m tests.faults.table seen.jsonl                      takes it into tests/faults/seen.jsonl, and writes

Of each row, case and test the last record counts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from .matrix import NUM_FAULTS, ROWS
from .requirement import Must, Row, Seen

RECORD = Path(__file__).with_name("seen.jsonl")
DOCUMENT = Path(__file__).parents[2] / "docs" / "faults.md"
MAX_SAID = 160
HEAD = """# Faults

What is done to a run, what must come of it, and what did. Written by `python -m tests.faults.table` from
`tests/faults/`: whenever its tests run (`make test`, `make soak`), what they see is compared with the requirement; the
figures are of the runs that were recorded, on two cores with a Slurm cluster of two emulated nodes (`KillWait` 5 s,
`SlurmdTimeout` 15 s, `cred_expire` 5 s).

- **exit** is the run's code ([exit-codes.md](exit-codes.md)); of a run that goes on by itself, that of its end.
- **seen** is the time from the fault to the record that names it; **free** until nothing of the attempt is left on any
  node; **new step** until the first step that had not been done before is in a checkpoint.
- **lost** are optimizer steps that had to be done again. With steps of milliseconds the checkpoint that is being
  written is lost too: at most two intervals.

"""


def read(path: Path) -> list[Seen]:
    """What was seen, the last of each row, case and test, in the order of rows."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = {(seen.row, seen.case, seen.test): seen for seen in (Seen.from_json(json.loads(line)) for line in lines)}
    order = {(number, case): index for number, row in ROWS.items() for index, case in enumerate(row.cases)}
    return sorted(found.values(), key=lambda seen: (seen.row, order.get((seen.row, seen.case), 99), seen.test))


def render(found: Iterable[Seen]) -> str:
    """The document."""
    seen = list(found)
    faults = [row for row in ROWS.values() if row.number <= NUM_FAULTS]
    others = [row for row in ROWS.values() if row.number > NUM_FAULTS]
    num_shown = sum(is_shown(row, seen) for row in faults)
    tests = "\n".join(
        f"- {row.number}: {', '.join(f'`tests/{test}`' for test in row.tests) or row.reason}" for row in ROWS.values()
    )
    return "\n\n".join(
        (
            HEAD.strip(),
            f"{num_shown} of {len(faults)} faults are shown.",
            _table(faults, seen),
            "## Beside the faults",
            _table(others, seen),
            f"## Tests\n\n{tests}\n",
        )
    )


def _table(rows: Iterable[Row], seen: list[Seen]) -> str:
    lines = ["| # | fault | done | must | seen |", "|---|---|---|---|---|"]
    for row in rows:
        lines += _lines(row, [one for one in seen if one.row == row.number])
    return "\n".join(lines)


def is_shown(row: Row, seen: Iterable[Seen]) -> bool:
    """Whether each of its cases was seen to be as it must be."""
    as_required = {one.case for one in seen if one.row == row.number and not list(row.cases[one.case].problems(one))}
    return not row.reason and as_required == row.cases.keys()


def _lines(row: Row, seen: list[Seen]) -> Iterable[str]:
    for index, (case, must) in enumerate(row.cases.items()):
        own = [one for one in seen if one.case == case]
        told = "<br>".join(dict.fromkeys(_seen(one) for one in own)) or f"not shown: {row.reason or 'no record'}"
        first = (str(row.number), row.fault, f"`{row.injection}`" if row.injection[0] in "`$" else row.injection)
        cells = (*(first if index == 0 else ("", "", "")), _must(case, must), told)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _must(case: str, must: Must) -> str:
    words = [] if must.code is None else [f"exit {must.code}"]
    for name, label in (("found_s", "seen"), ("free_s", "free"), ("next_step_s", "new step")):
        if (limit := getattr(must, name)) is not None:
            words.append(f"{label} ≤ {limit:g} s")
    if must.steps_lost is not None:
        words.append(f"lost ≤ {must.steps_lost}" if must.steps_lost else "nothing lost")
    words += [f"says “{must.says}”"] if must.says else []
    words += [must.also] if must.also else []
    return (f"**{case}**: " if case else "") + "; ".join(words)


def _seen(seen: Seen) -> str:
    words = [] if seen.code is None else [f"exit {seen.code}"]
    for name, label in (("found_s", "seen"), ("free_s", "free"), ("next_step_s", "new step")):
        if (value := getattr(seen, name)) is not None:
            words.append(f"{label} {value:g} s")
    words += [f"lost {seen.steps_lost}"] if seen.steps_lost is not None else []
    said = seen.says if len(seen.says) <= MAX_SAID else f"{seen.says[:MAX_SAID].rstrip()} …"
    words += [f"“{said}”"] if said else []
    words += [seen.note] if seen.note else []
    return "; ".join(words) or "as required"


def main(files: Iterable[str]) -> None:
    """Takes records in, and writes the document."""
    text = RECORD.read_text(encoding="utf-8") if RECORD.exists() else ""
    RECORD.write_text(text + "".join(Path(file).read_text(encoding="utf-8") for file in files), encoding="utf-8")
    found = read(RECORD)
    lines = [json.dumps(seen.to_json(), ensure_ascii=False) for seen in found]
    RECORD.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    DOCUMENT.write_text(render(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
