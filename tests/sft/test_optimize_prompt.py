"""The best of several prompts is found without paying for all of them, and a tie is called a tie."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import WORDS, tiny_args

from sft.__main__ import main
from sft.answering import Answering
from sft.arguments import load_args
from sft.errors import DataError
from sft.generation import Decoding, Generated
from sft.halving import Outcome, best_of
from sft.optimize_prompt import candidates, write_prompt
from sft.questions import Question
from sft.train import train_with
from strict_settings import SettingsError

NUM_ROWS = 240


def planted(seed: int, best: float, others: float, num_candidates: int = 12) -> tuple[Outcome, int, Counter[Any]]:
    """(what was found among candidates, on rows of unequal difficulty; which one is planted; what was asked)."""
    generator = np.random.default_rng([seed, 7])
    right = int(generator.integers(num_candidates))
    difficulty = generator.normal(0, 0.15, NUM_ROWS)
    chances = np.array([best if number == right else others for number in range(num_candidates)])
    answers = generator.random((num_candidates, NUM_ROWS)) < np.clip(chances[:, None] + difficulty, 0, 1)
    asked: Counter[Any] = Counter()

    def scores(candidate: int, rows: Sequence[int]) -> list[float]:
        asked.update((candidate, row) for row in rows)
        return [float(answers[candidate, row]) for row in rows]

    return best_of(num_candidates, NUM_ROWS, scores, seed=seed), right, asked


def test_a_planted_best_of_twelve_is_found_for_half_the_cost() -> None:
    right = 0
    for seed in range(20):
        found, expected, asked = planted(seed, 0.7, 0.5)
        right += found.best.number == expected
        assert found.num_scored == len(asked) == asked.total()  # nothing is scored twice
        assert found.num_scored <= 0.5 * found.full_cost
        assert found.full_cost == 12 * NUM_ROWS
    assert right >= 19


@pytest.mark.parametrize("num_rows", range(4, 60))
def test_twelve_candidates_cost_less_than_half_whatever_the_number_of_rows(num_rows: int) -> None:
    found = best_of(12, num_rows, lambda _, rows: [1.0] * len(rows))
    assert found.num_scored <= 0.48 * found.full_cost
    assert len(found.best.scores) == num_rows


@pytest.mark.parametrize("num_rows", [1, 2, 3])
def test_candidates_are_judged_by_at_least_one_row(num_rows: int) -> None:
    found = best_of(12, num_rows, lambda candidate, rows: [float(candidate == 5)] * len(rows))
    assert found.best.number == 5
    assert len(found.best.scores) == num_rows


@pytest.mark.parametrize("number", [math.nan, -math.inf])
def test_a_candidate_without_a_finite_score_is_the_worst(number: float) -> None:
    def scores(candidate: int, rows: Sequence[int]) -> list[float]:
        return [number if candidate in (0, 3) and row == 7 else candidate / 10 for row in rows]

    for seed in range(20):
        found = best_of(5, 16, scores, seed=seed)
        assert found.best.number == 4
        assert found.num_scored < found.full_cost
        for each, gap in found.others:
            if not math.isfinite(each.mean):
                assert (gap.difference, gap.p) == (math.inf, 0.0)
    nobody = best_of(3, 16, lambda _, rows: [number] * len(rows))
    assert nobody.best.mean == -math.inf
    assert nobody.num_scored == 3 * 4  # it is known after the first round


def test_candidates_that_are_alike_are_a_tie() -> None:
    ties = sum(bool(planted(seed, 0.5, 0.5)[0].ties) for seed in range(20))
    assert ties >= 18
    found = best_of(3, 8, lambda candidate, rows: [1.0] * len(rows))
    assert (found.best.number, [each.number for each in found.ties]) == (0, [1])


def test_two_candidates_are_both_seen_to_the_end_unless_one_is_clearly_better() -> None:
    close, _, _ = planted(0, 0.52, 0.5, num_candidates=2)
    assert close.num_scored == close.full_cost
    clear, right, _ = planted(0, 0.95, 0.1, num_candidates=2)
    assert clear.best.number == right
    assert clear.num_scored <= 0.5 * clear.full_cost
    assert not clear.ties


def test_prompts_are_lines_or_blocks(tmp_path: Path) -> None:
    path = tmp_path / "candidates.txt"
    path.write_text("one\n\n two \none\n")
    assert candidates(path) == ["one", "two"]
    path.write_text("---\none\nmore\n---\ntwo\n---\n")
    assert candidates(path) == ["one\nmore", "two"]
    path.write_text("one\u2028more\ntwo\n")
    assert candidates(path) == ["one\u2028more", "two"]
    path.write_text("one\n")
    with pytest.raises(DataError, match="at least two"):
        candidates(path)
    with pytest.raises(DataError, match="cannot be read"):
        candidates(tmp_path / "none.txt")


def test_the_old_prompt_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "prompts" / "system_prompt.txt"
    for prompt in ("one", "two", "two", "three"):
        write_prompt(path, prompt)
    found = {each.name: each.read_text().strip() for each in path.parent.iterdir()}
    assert found == {"system_prompt.txt": "three", "system_prompt.1.txt": "one", "system_prompt.2.txt": "two"}


def test_training_takes_the_prompt_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (tmp_path / "run.yaml").write_text("model_name_or_path: m\ntrain_file: data.jsonl\nsystem_prompt: auto\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="system_prompt is 'auto'"):
        load_args(config="run.yaml")
    write_prompt(Path("prompts") / "system_prompt.txt", "Be brief.")
    assert load_args(config="run.yaml").system_prompt == "Be brief."
    monkeypatch.chdir("/")
    assert load_args(config=tmp_path / "run.yaml").system_prompt == "Be brief."


PROMPTS = {"Bad.": "no", "Hello there.": "no", "Good.": "yes", "Bad. Bad.": "no"}


@pytest.fixture(scope="module")
def obedient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says what its system prompt makes it say, and rows of which the answer is yes."""
    folder = tmp_path_factory.mktemp("prompts")
    rows = [
        {"prompt": word, "response": f"{answer}.", "system": prompt}
        for word in WORDS[:12]
        for prompt, answer in PROMPTS.items()
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Every other row asks in the data's own system prompt for something else; what is optimised takes its place.
    wanted = [{**row, "response": "yes."} for row in rows[::2]]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wanted))
    settings: dict[str, Any] = {"per_device_train_batch_size": 12, "max_steps": 40, "logging_steps": 100}
    train_with(tiny_args(folder / "train.jsonl", folder / "model", **settings))
    return folder


def test_the_prompt_that_a_model_obeys_is_found_and_taken_by_evaluate(
    obedient: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(obedient)
    (obedient / "candidates.txt").write_text("\n".join(PROMPTS))
    words = ["optimize-prompt", "candidates.txt", "data.jsonl", "--model", "model", "--max-new-tokens", "8"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "written: prompts/system_prompt.txt" in out
    assert (obedient / "prompts" / "system_prompt.txt").read_text() == "Good.\n"
    assert main([*words, "--metric", "loss", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["best"], found["is_tie"]) == ("Good.", False)
    figures = []
    for prompt_file in ([], ["--prompt-file", "none"]):
        assert main(["evaluate", "model", "data.jsonl", "--no-loss", "--max-new-tokens", "8", *prompt_file]) == 0
        figures.append(json.loads((obedient / "model" / "evaluation" / "data.json").read_text())["figures"]["exact"])
    assert figures[0]["value"] > 0.9
    assert figures[1]["value"] < 0.6


@pytest.fixture
def asked(obedient: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """In the folder of the model; the numbers of the rows that are answered."""
    monkeypatch.chdir(obedient)
    (obedient / "candidates.txt").write_text("\n".join(PROMPTS))
    rows: list[int] = []
    generate = Answering.generate

    def told(self: Answering, questions: Sequence[Question], decoding: Decoding) -> list[Generated | None]:
        rows.extend(each.row for each in questions)
        return generate(self, questions, decoding)

    monkeypatch.setattr(Answering, "generate", told)
    return rows


def write_rows(path: Path, number: int, others: dict[int, dict[str, str]]) -> None:
    """Rows of which the answer is yes, and others in their places."""
    rows = [others.get(place, {"prompt": WORDS[place % 12], "response": "yes."}) for place in range(number)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("place", [8, 15])
def test_a_bad_row_is_found_before_answers_are_paid_for(
    obedient: Path, asked: list[int], capsys: pytest.CaptureFixture[str], place: int
) -> None:
    write_rows(obedient / "few.jsonl", 16, {place: {"prompt": "sun"}})
    words = ["optimize-prompt", "candidates.txt", "few.jsonl", "--model", "model", "--max-new-tokens", "8"]
    assert main(words) == 3
    assert f"few.jsonl:{place + 1}" in capsys.readouterr().err
    assert asked == []


def test_bad_rows_are_counted_once_and_asked_by_no_candidate(
    obedient: Path, asked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(obedient / "few.jsonl", 10, {3: {"prompt": "sun"}, 9: {"prompt": "moon"}})
    words = ["optimize-prompt", "candidates.txt", "few.jsonl", "--model", "model", "--max-new-tokens", "8"]
    words += ["--on_bad_row=skip", "--output", "few.txt"]
    assert main([*words, "--max_bad_rows=1"]) == 3
    assert asked == []
    assert main([*words, "--max_bad_rows=2"]) == 0
    assert set(asked) == set(range(10)) - {3, 9}
    out = capsys.readouterr().out
    assert "2 bad rows left out" in out
    assert "best        100.0 %       8" in out


def test_rows_to_which_the_metric_does_not_apply_are_left_out(
    obedient: Path, asked: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(obedient / "few.jsonl", 16, {place: {"prompt": "sun", "response": "no."} for place in range(8)})
    words = ["optimize-prompt", "candidates.txt", "few.jsonl", "--model", "model", "--max-new-tokens", "8", "--json"]
    words += ["--output", "few.txt"]
    assert main([*words, "--metric=regex", "--regex=(yes)"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(asked) == set(range(8, 16))
    assert (found["num_without_metric"], found["num_bad_rows"]) == (8, 0)
    assert (found["candidates"][0]["score"], found["candidates"][0]["rows"]) == (1.0, 8)
    assert main([*words, "--metric=numeric"]) == 3
    assert "no row to which the metric applies" in capsys.readouterr().err


def test_losses_that_are_no_numbers_are_no_reason_to_choose_a_prompt(
    obedient: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = Answering.losses
    broken = ["Good."]

    def told(self: Answering, questions: Sequence[Question]) -> list[float]:
        found = losses(self, questions)
        is_broken = any(each in question.prompt for each in broken for question in questions)
        return [math.nan] * len(found) if is_broken else found

    monkeypatch.setattr(Answering, "losses", told)
    words = ["optimize-prompt", "candidates.txt", "data.jsonl", "--model", "model", "--metric=loss"]
    words += ["--output", "loss.txt"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["best"] != "Good."
    last = found["candidates"][-1]
    assert (last["prompt"], last["score"], last["rows"], last["behind"], last["p"]) == ("Good.", None, 6, None, 0.0)
    (obedient / "loss.txt").unlink()
    broken.extend(PROMPTS)
    assert main(words) == 15
    assert "no finite number" in capsys.readouterr().err
    assert not (obedient / "loss.txt").exists()


def test_wrong_options_are_told(
    obedient: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(obedient)
    (obedient / "candidates.txt").write_text("one\ntwo\n")
    words = ["optimize-prompt", "candidates.txt", "data.jsonl"]
    for more, message in (
        ([], "--model is 'runs/latest'"),
        (["--model", "model", "--metric", "regex"], "--metric is 'regex'"),
        (["--model", "model", "--regex", "x"], "--metric is 'exact'"),
    ):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err
