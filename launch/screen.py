"""The picture of `launch top`: rows of styled text, made of plain values. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launch.checks import counted
from launch.progress import Progress, RankProgress, series
from launch.report import duration

Cell = tuple[str, str]
"""Text and its style."""
Row = list[Cell]

PLAIN, BOLD, DIM, GOOD, WARN, BAD, CURVE = "", "1", "2", "32", "33", "31", "36"
_OF_STATE = {"RUNNING": GOOD, "COMPLETED": GOOD, "PENDING": WARN, "STOPPED": WARN, "CANCELLED": WARN}
_EIGHTHS = " ▏▎▍▌▋▊▉"
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Braille: the bit of each dot by row and column; U+2800 is the empty cell."""
_LABEL_WIDTH = 9
_SLOW = 1.5
MAX_CURVE_ROWS = 12


@dataclass(frozen=True)
class Picture:
    """All that is shown."""

    facts: dict[str, Any]
    """`report.status_facts`."""
    progress: Progress
    records: Sequence[dict[str, Any]]
    """The end of training_log.json."""
    last_lines: Sequence[tuple[str, str]]
    """(whose, text) of the last lines of the logs."""
    now: float


def rows(picture: Picture, width: int, height: int) -> list[Row]:
    """The picture, at most `height` rows of at most `width` columns."""
    top = [*_header(picture), *_bar(picture, width), _figures(picture), []]
    num_ranks = len(picture.progress.ranks)
    log = [[("last lines", BOLD)], *([(f"{whose} ", DIM), (text, PLAIN)] for whose, text in picture.last_lines)]
    left = height - len(top) - (len(log) + 1 if picture.last_lines else 0)
    num_rank_rows = min(num_ranks + 2, max(4, left // 2)) if num_ranks else 0
    num_curve_rows = min(MAX_CURVE_ROWS, left - num_rank_rows - 3)
    body = [*_curves(picture, width, num_curve_rows), *_ranks(picture.progress.ranks, num_rank_rows, width)]
    body += log if picture.last_lines else []
    return [clipped(row, width) for row in (top + body)[:height]]


def _header(picture: Picture) -> list[Row]:
    facts = picture.facts
    attempt = f"  attempt {facts['attempt']}" if facts["attempt"] else ""
    size = f"{counted(facts['nodes'], 'node')}, {counted(facts['ranks']['expected'], 'rank')}"
    where = f"  job {facts['job_id']}{attempt}  {size}"
    since = facts["submitted_at"]
    age = "" if since is None else f"  submitted {duration(max(0.0, picture.now - since))} ago"
    state = facts["state"]
    row = [(facts["run"], BOLD), ("  ", PLAIN), (state, _OF_STATE.get(state, BAD)), (where + age, PLAIN)]
    why = facts["explanation"] or facts["reason"]
    return [row, [(why, WARN)]] if why and why != state else [row]


def _bar(picture: Picture, width: int) -> list[Row]:
    progress = picture.progress
    if progress.step is None:
        return [[("no step yet", DIM)]]
    if not progress.num_steps:
        return [[(f"step {progress.step}", BOLD)]]
    share = min(1.0, progress.step / progress.num_steps)
    left = f"step {progress.step} of {progress.num_steps} "
    eta_s = picture.facts["progress"]["eta_s"]
    right = f" {100 * share:.1f} %" + ("" if eta_s is None else f"  {duration(eta_s)} to go")
    length = max(10, width - len(left) - len(right))
    full = bar(share, length)
    return [[(left, BOLD), (full, GOOD), ("─" * (length - len(full)), DIM), (right, PLAIN)]]


def bar(share: float, length: int) -> str:
    """A bar of full and partial blocks, `share` of `length` columns long."""
    eighths = round(max(0.0, min(1.0, share)) * length * 8)
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")


def _figures(picture: Picture) -> Row:
    progress = picture.progress
    trained = [record for record in picture.records if record["type"] == "train"]
    latest = trained[-1] if trained else {}
    checkpoint = picture.facts["progress"]["checkpoint_step"]
    figures = [
        ("loss", progress.loss, ".4f"), ("eval loss", progress.eval_loss, ".4f"),
        ("tokens/s", progress.tokens_per_s, ",.0f"), ("s/step", progress.step_s, ".3g"),
        ("MFU", latest.get("mfu"), ".1%"),
        ("grad norm", latest.get("grad_norm"), ".3g"), ("lr", latest.get("learning_rate"), ".2e"),
        ("checkpoint", checkpoint, "d"),
    ]  # fmt: skip
    row: Row = []
    for name, value, form in figures:
        if value is not None:
            row += [(f"{name} ", DIM), (f"{value:{form}}   ", PLAIN)]
    return row


def _curves(picture: Picture, width: int, height: int) -> list[Row]:
    """The loss, with the evaluation's, and the throughput beside it."""
    loss = series(picture.records, "train", "loss")
    pace = series(picture.records, "train", "tokens_per_s")
    if height < 3 or len(loss) < 2:
        return []
    if width < 80 or len(pace) < 2:
        return [*_curve("loss", loss, width, height, ".4g"), []]
    half = (width - 3) // 2
    left, right = _curve("loss", loss, half, height, ".4g"), _curve("tokens/s", pace, half, height, ",.0f")
    return [*([*padded(one, half), ("   ", PLAIN), *two] for one, two in zip(left, right, strict=True)), []]


def _curve(title: str, points: Sequence[tuple[int, float]], width: int, height: int, form: str) -> list[Row]:
    values = [value for _, value in points]
    low, high = min(values), max(values)
    drawn = braille(values, width - _LABEL_WIDTH - 2, height)
    labels = ["" for _ in drawn]
    labels[0], labels[-1] = f"{high:{form}}", f"{low:{form}}"
    rows: list[Row] = [[(f"{'':{_LABEL_WIDTH + 2}}{title}", BOLD)]]
    rows += [[(f"{text:>{_LABEL_WIDTH}} ┤", DIM), (line, CURVE)] for text, line in zip(labels, drawn, strict=True)]
    first, last = f"step {points[0][0]}", f"{points[-1][0]}"
    gap = max(1, width - _LABEL_WIDTH - 2 - len(first) - len(last))
    return [*rows, [(f"{'':{_LABEL_WIDTH + 2}}{first}{'':{gap}}{last}", DIM)]]


def braille(values: Sequence[float], width: int, height: int) -> list[str]:
    """A curve of braille dots, two by four in each cell: `height` lines of `width` characters.

    Values are averaged where there are more than columns of dots, and joined by lines where there are fewer. A flat
    curve lies in the middle.
    """
    columns = _resampled(values, 2 * width)
    low, high = min(columns), max(columns)
    cells = [[0] * width for _ in range(height)]
    before: int | None = None
    for x, value in enumerate(columns):
        y = 2 * height if high == low else round((high - value) / (high - low) * (4 * height - 1))
        for row in range(min(y, y if before is None else before), max(y, y if before is None else before) + 1):
            cells[row // 4][x // 2] |= _DOTS[row % 4][x % 2]
        before = y
    return ["".join(chr(0x2800 + dots) for dots in line) for line in cells]


def _resampled(values: Sequence[float], number: int) -> list[float]:
    """`number` values of the same course."""
    if len(values) >= number:
        parts = (values[x * len(values) // number : (x + 1) * len(values) // number] for x in range(number))
        return [sum(part) / len(part) for part in parts]
    found = []
    for x in range(number):
        place = x * (len(values) - 1) / max(1, number - 1)
        left = min(int(place), len(values) - 1)
        right = min(left + 1, len(values) - 1)
        found.append(values[left] + (place - left) * (values[right] - values[left]))
    return found


def _ranks(ranks: Sequence[RankProgress], num_rows: int, width: int) -> list[Row]:
    """A line for each rank with its own computing time; where there is no room for all, the slowest."""
    if not ranks or num_rows < 3:
        return []
    shown = (
        sorted(ranks, key=lambda rank: -(rank.slowness or 0.0))[: num_rows - 3] if len(ranks) > num_rows - 2 else ranks
    )
    host_width = max(4, *(len(rank.host) for rank in shown)) if shown else 4
    found: list[Row] = [
        [(f"rank  {'host':{host_width}}  {'phase':10}  {'step':>7}  {'s/step':>7}  own computing time", BOLD)]
    ]
    longest = max([rank.slowness or 0.0 for rank in ranks] + [1.0])
    for rank in shown:
        pace = "" if rank.step_s is None else f"{rank.step_s:.3g}"
        row: Row = [(f"{rank.rank:4}  {rank.host:{host_width}}  {rank.phase:10}  {rank.step:7}  {pace:>7}  ", PLAIN)]
        if rank.slowness:
            is_slow = rank.slowness >= _SLOW
            room = max(5, min(40, width - host_width - 52))
            row += [(bar(rank.slowness / longest, room).ljust(room), BAD if is_slow else CURVE)]
            row += [(f" {rank.slowness:.2f} × the median", BAD if is_slow else PLAIN)]
        found.append(row)
    if len(shown) < len(ranks):
        found.append([(f"and {len(ranks) - len(shown)} more, none slower", DIM)])
    return [*found, []]


def padded(row: Row, width: int) -> Row:
    """The row with blanks to `width` columns."""
    return [*row, (" " * max(0, width - sum(len(text) for text, _ in row)), PLAIN)]


def clipped(row: Row, width: int) -> Row:
    """The row without what stands beyond `width` columns; control characters are shown as dots."""
    found: Row = []
    for text, style in row:
        room = width - sum(len(before) for before, _ in found)
        clean = "".join(character if character.isprintable() else "·" for character in text)
        found.append((clean[:room], style))
    return found


def ansi(row: Row, *, is_coloured: bool) -> str:
    """The row as a terminal takes it."""
    if not is_coloured:
        return "".join(text for text, _ in row).rstrip()
    return "".join(f"\033[{style}m{text}\033[0m" if style and text else text for text, style in row)


def clock(at: float) -> str:
    """`15:04:05`."""
    return time.strftime("%H:%M:%S", time.localtime(at))
