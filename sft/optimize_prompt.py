"""`python -m sft optimize-prompt`: the system prompt, of several, with which a model does best; a script, too."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    # Started by its path, Python would look for modules beside this file, where `config` or `loop` would shadow others.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from sft.arguments import PROMPT_FILE, load_args
from sft.config import LAUNCHER_OPTIONS
from sft.errors import DataError, NonFiniteError, SftError
from sft.evaluate import DAY_S, NAMES, pattern_of
from sft.model_subject import add_model_options, check_decoding, model_subject
from sft.storage import storage_errors, write_text
from sft.subject import split_words
from sft.values import counted
from strict_settings import Problem, SettingsError

if TYPE_CHECKING:
    from sft.answering import Answering
    from sft.generation import Decoding
    from sft.halving import Outcome
    from sft.metrics import Metric
    from sft.world import World

MODEL = "runs/latest"
"""Where training writes where nothing else is said."""


def main(words: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    words = [word for word in words if word.partition("=")[0] not in LAUNCHER_OPTIONS]
    options, settings = split_words(_parser(), words)
    if options.metric not in (*NAMES, "regex", "loss") or (options.metric == "regex") != (options.regex is not None):
        rule = f"be one of {', '.join(NAMES)}, loss, or regex together with --regex"
        raise SettingsError(Problem("--metric", options.metric, rule))
    pattern_of(options.regex)
    check_decoding(options)
    prompts = candidates(Path(options.candidates))
    if not Path(options.model).is_dir() and options.model == MODEL:
        raise SettingsError(Problem("--model", MODEL, "be there", "Name the model with --model."))
    if options.check:
        load_args([*settings, f"--model_name_or_path={options.model}", f"--train_file={options.data}"])
        return 0
    from sft.world import world_from_env

    with world_from_env(DAY_S) as world:
        _optimize(prompts, options, settings, world)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sft optimize-prompt",
        description="Finds the system prompt with which a model does best, and writes it to prompts/system_prompt.txt.",
        allow_abbrev=False,
    )
    parser.add_argument("candidates", metavar="CANDIDATES.txt", help="a prompt on each line, or between lines of ---")
    parser.add_argument("data", metavar="DATA", help="conversations: file, folder or hub name")
    parser.add_argument("--model", metavar="MODEL", default=MODEL, help="folder or hub name (default %(default)s)")
    parser.add_argument("--metric", metavar="NAME", default="exact", help="what counts (default %(default)s)")
    parser.add_argument("--regex", metavar="PATTERN", help="with --metric regex")
    parser.add_argument("--output", metavar="FILE", type=Path, default=PROMPT_FILE, help="default %(default)s")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON and nothing else")
    parser.add_argument("--check", action="store_true", help="check these words, and end")
    add_model_options(parser)
    return parser


def candidates(path: Path) -> list[str]:
    """The prompts of a file, each once: those between lines of `---`, or if there are none, one on each line.

    Raises:
        DataError: the file cannot be read, or holds less than two.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Name a text file of system prompts.") from error
    lines = text.split("\n")  # not at U+2028 and its like, which may stand in a prompt
    if any(line.strip() == "---" for line in lines):
        blocks = "\n".join("\0" if line.strip() == "---" else line for line in lines).split("\0")
    else:
        blocks = lines
    found = list(dict.fromkeys(block.strip() for block in blocks if block.strip()))
    if len(found) < 2:
        raise DataError(f"{path} holds {len(found)} prompts; it must hold at least two. Write one on each line.")
    return found


def _optimize(prompts: list[str], options: argparse.Namespace, settings: Sequence[str], world: World) -> None:
    from sft.answering import Answering, decoding_of, metrics_of
    from sft.halving import best_of

    subject = model_subject(options.model, options.data, settings, "none")
    answering = Answering(subject, world)
    decoding = decoding_of(options, subject.args, answering.room)
    names = [options.metric] if options.metric in NAMES else []
    metrics = metrics_of(names, pattern_of(options.regex))
    metric = metrics.get(options.metric)
    rows, left_out = _usable(answering, prompts, metric, options.data)
    scorer = _Scorer(answering, rows, prompts, decoding, metric)
    found = best_of(len(prompts), len(rows), scorer, seed=subject.args.seed)
    if not math.isfinite(found.best.mean):
        raise NonFiniteError(
            "the loss is no finite number with any of the prompts; it must be one. Choose another --metric, or look at "
            f"the rows: python -m sft evaluate {options.model} {options.data}"
        )
    if not world.is_main:
        return
    write_prompt(options.output, prompts[found.best.number])
    if options.json:
        print(json.dumps({**_to_json(found, prompts, options.metric), **left_out}, ensure_ascii=False))
        return
    print("\n".join(_table(found, prompts, options.metric, **left_out)))
    print(f"\nwritten: {options.output}")


def _usable(
    answering: Answering, prompts: Sequence[str], metric: Metric | None, data: str
) -> tuple[list[Any], dict[str, int]]:
    """(the rows that can be asked and to which the metric applies; how many others there are, by kind). Looked at once
    and at the beginning, so that no bad row is found when rounds are paid for, and all candidates have the same rows.

    Raises:
        DataError: there are bad rows, or too many; no row is left; a prompt cannot be asked.
    """
    from sft.agreement import gathered

    rows = answering.read(data)
    maskers = [answering.subject.masker.with_system_prompt(prompt) for prompt in prompts]
    questions, num_bad = answering.questions(rows, maskers[0])
    own = [[each.row, metric is None or metric("", each.reference) is not None] for each in questions]
    asked = dict(pair for part in gathered(answering.world, own) for pair in part)
    usable = [row for row in rows if asked.get(row[0])]
    if not usable:
        raise DataError(f"{data} has no row to which the metric applies; it must have one. Choose another --metric.")
    for masker in maskers[1:]:
        answering.questions(usable[:1], masker)
    return usable, {"num_bad_rows": num_bad, "num_without_metric": len(asked) - len(usable)}


@dataclasses.dataclass
class _Scorer:
    """Scores a candidate on rows; a collective, which every rank calls alike."""

    answering: Answering
    rows: list[Any]
    prompts: list[str]
    decoding: Decoding
    metric: Metric | None
    """None: the loss."""

    def __call__(self, candidate: int, rows: Sequence[int]) -> list[float]:
        from sft.agreement import gathered
        from sft.metrics import answer_of

        answering = self.answering
        masker = answering.subject.masker.with_system_prompt(self.prompts[candidate])
        questions, _ = answering.questions([self.rows[row] for row in rows], masker)
        own: dict[int, float] = {}
        chance = -math.log(masker.vocabulary_size)  # of rows that are too long for a loss
        if self.metric is None:
            for question, loss in zip(questions, answering.losses(questions), strict=True):
                weight = sum(document.total_weight for document in question.documents)
                own[question.row] = -loss / weight if weight else chance
        else:
            for question, made in zip(questions, answering.generate(questions, self.decoding), strict=True):
                answer = answer_of(masker.decode(made.token_ids)) if made is not None else ""
                own[question.row] = self.metric(answer, question.reference) or 0.0
        scores = {int(row): score for part in gathered(answering.world, own) for row, score in part.items()}
        return [scores.get(self.rows[row][0], chance if self.metric is None else 0.0) for row in rows]


def write_prompt(path: Path, prompt: str) -> None:
    """Writes a system prompt, atomically; what was there is kept beside it, as `system_prompt.1.txt` and so on.

    Raises:
        StorageError: it cannot be written.
    """
    with storage_errors(path, "--output"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace") != prompt + "\n":
            _keep(path)
        write_text(path, prompt + "\n")


def _keep(path: Path) -> None:
    number = 1
    while True:
        try:
            os.link(path, path.with_name(f"{path.stem}.{number}{path.suffix}"))
        except FileExistsError:
            number += 1
        else:
            return


def _verdict(found: Outcome, number: int) -> str:
    if number == found.best.number:
        return "tie" if found.ties else "best"
    if any(number == each.number for each in found.ties):
        return "tie"
    most = len(found.best.scores)
    return next("worse" if len(each.scores) == most else "dropped" for each, _ in found.others if each.number == number)


def _shown(value: float, metric: str) -> str:
    return f"{-value:.4g}" if metric == "loss" else f"{100 * value:.1f} %"


def _table(
    found: Outcome, prompts: Sequence[str], metric: str, *, num_bad_rows: int, num_without_metric: int
) -> list[str]:
    share = found.num_scored / found.full_cost
    lines = [f"{len(prompts)} prompts by {metric}; {found.num_scored:,} answers, {share:.0%} of trying all on all rows"]
    lines.append(f"  {'':8} {metric:>10} {'rows':>7} {'behind':>10} {'p':>8}  prompt")
    best = found.best
    lines.append(
        _line(_verdict(found, best.number), _shown(best.mean, metric), len(best.scores), "", "", prompts[best.number])
    )
    for each, gap in found.others:
        behind = f"{gap.difference:.4g}" if metric == "loss" else f"{100 * gap.difference:.1f} %"
        p = f"{gap.p:.3g}" if gap.p >= 1e-3 else "< 0.001"
        verdict = _verdict(found, each.number)
        lines.append(_line(verdict, _shown(each.mean, metric), len(each.scores), behind, p, prompts[each.number]))
    if num_bad_rows:
        lines.append(f"{counted(num_bad_rows, 'bad row')} left out")
    if num_without_metric:
        lines.append(f"{counted(num_without_metric, 'row')} left out, as the metric does not apply to the reference")
    if found.ties:
        lines.append("tie: the difference may be luck; more rows would tell. The one with the highest mean is taken.")
    return lines


def _line(verdict: str, value: str, rows: int, behind: str, p: str, prompt: str) -> str:
    short = json.dumps(prompt, ensure_ascii=False)
    short = short if len(short) <= 60 else f"{short[:59]}…"
    return f"  {verdict:8} {value:>10} {rows:>7,} {behind:>10} {p:>8}  {short}"


def _to_json(found: Outcome, prompts: Sequence[str], metric: str) -> dict[str, Any]:
    everyone = [(found.best, None), *found.others]
    return {
        "metric": metric,
        "best": prompts[found.best.number],
        "is_tie": bool(found.ties),
        "num_scored": found.num_scored,
        "full_cost": found.full_cost,
        "candidates": [
            {
                "prompt": prompts[each.number],
                "verdict": _verdict(found, each.number),
                "score": each.mean if math.isfinite(each.mean) else None,
                "rows": len(each.scores),
                "behind": (gap.difference if math.isfinite(gap.difference) else None) if gap is not None else 0.0,
                "p": gap.p if gap is not None else 1.0,
            }
            for each, gap in everyone
        ],
    }


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (SettingsError, SftError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
