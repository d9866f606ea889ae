"""The best of several prompts is found without paying for all of them, and a tie is called a tie."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import WORDS, tiny_args

from sft.__main__ import main
from sft.arguments import load_args
from sft.errors import DataError
from sft.halving import Outcome, best_of
from sft.optimize_prompt import candidates, write_prompt
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
