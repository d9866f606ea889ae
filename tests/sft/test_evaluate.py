"""Answers and losses of a model that was trained on something it can learn: `python -m sft evaluate`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import QWEN3, TOKENIZER, WORDS, tiny_args, write_conversations

from sft.__main__ import main
from sft.errors import DataError
from sft.generation import Decoding, Generator
from sft.masking import Masker
from sft.questions import Question, questions_of
from sft.rows import BadRow
from sft.scores import comparisons_of, figures_of
from sft.sources import read_conversations
from sft.tokenizer import build_tokenizer
from sft.train import train_with

STEPS = 150
NEW_TOKENS = ("--max-new-tokens", "12")


PHRASINGS = (
    "{}", "{}?", "{}, please", "{} and then?", "after {}", "what follows {}?", "{} ...", "next to {}, please",
)  # fmt: skip


def write_successors(folder: Path) -> tuple[Path, Path]:
    """(rows to train on, rows to ask) of a task: the next word of a list, asked in several ways. Each word is asked in
    one way that it has in no row to train on."""
    rows: dict[str, list[str]] = {"train": [], "held_out": []}
    for number, word in enumerate(WORDS):
        for place, phrasing in enumerate(PHRASINGS):
            row = {"prompt": phrasing.format(word), "response": f"{WORDS[(number + 1) % len(WORDS)]}."}
            name = "held_out" if place == number % len(PHRASINGS) else "train"
            rows[name].append(json.dumps(row) + "\n")
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder / "train.jsonl", folder / "held_out.jsonl"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and two models: `untrained` after a step that changes nothing, `trained`."""
    folder = tmp_path_factory.mktemp("successors")
    write_successors(folder)
    train(folder, "untrained", learning_rate=1e-12, max_steps=1)
    train(folder, "trained")
    return folder


def train(folder: Path, name: str, **settings: Any) -> None:
    """Trains on the task."""
    common: dict[str, Any] = {"eval_file": str(folder / "held_out.jsonl"), "eval_steps": 500, "logging_steps": 100}
    common |= {"per_device_train_batch_size": 36, "learning_rate": 1e-2, "max_steps": STEPS}
    train_with(tiny_args(folder / "train.jsonl", folder / name, **{**common, **settings}))


def run(folder: Path, *words: str, model: str = "trained") -> dict[str, Any]:
    """The figures and rows of an evaluation."""
    output = folder / "out"
    command = ["evaluate", str(folder / model), str(folder / "held_out.jsonl"), "--output", str(output)]
    assert main([*command, *NEW_TOKENS, *words]) == 0
    rows = [json.loads(line) for line in (output / "held_out.jsonl").read_text().splitlines()]
    return {**json.loads((output / "held_out.json").read_text()), "rows": rows}


def test_a_model_that_learned_its_task_is_told_from_one_that_did_not(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = run(trained, model="untrained"), run(trained)
    assert before["figures"]["exact"]["value"] < 0.05
    assert after["figures"]["exact"]["value"] > 0.90
    capsys.readouterr()
    run(trained)
    first = capsys.readouterr().out
    run(trained)
    assert capsys.readouterr().out == first
    train(trained, "again")
    assert run(trained, model="again")["figures"] == after["figures"]
    assert "exact match" in first
    assert all(row["stopped"] and row["generation"] == row["reference"] for row in after["rows"])


def test_the_loss_is_that_of_the_trainer_s_evaluation(trained: Path) -> None:
    records = json.loads((trained / "trained" / "training_log.json").read_text())
    (eval_loss,) = [record["eval_loss"] for record in records if record["type"] == "eval" and record["step"] == STEPS]
    found = run(trained, "--no-generation")
    assert found["figures"]["loss"]["value"] == pytest.approx(eval_loss, rel=1e-5)
    assert found["figures"]["perplexity"]["value"] == pytest.approx(torch.tensor(eval_loss).exp().item(), rel=1e-5)
    assert found["rows"][0]["generation"] is None
    assert "exact" not in found["figures"]


@pytest.mark.parametrize("model", ["trained", pytest.param("untrained", marks=pytest.mark.soak)])
def test_answers_and_losses_do_not_depend_on_the_batch(trained: Path, model: str) -> None:
    write_conversations(trained / "held_out.jsonl", 10, seed=3)  # very unequal lengths
    try:
        one, three, eight = (run(trained, f"--per_device_eval_batch_size={size}", model=model) for size in (1, 3, 8))
        warm = ("--temperature", "1", "--no-loss")
        sampled = [run(trained, *warm, f"--per_device_eval_batch_size={size}", model=model) for size in (1, 8)]
    finally:
        write_successors(trained)
    for other in (three, eight):
        assert [row["generation"] for row in other["rows"]] == [row["generation"] for row in one["rows"]]
        assert abs(other["figures"]["loss"]["value"] - one["figures"]["loss"]["value"]) < 1e-6
        for mine, its in zip(one["rows"], other["rows"], strict=True):
            assert its["loss_sum"] / its["loss_weight"] == pytest.approx(
                mine["loss_sum"] / mine["loss_weight"], abs=1e-5
            )
    assert [row["generation"] for row in sampled[0]["rows"]] == [row["generation"] for row in sampled[1]["rows"]]
    assert [row["generation"] for row in sampled[0]["rows"]] != [row["generation"] for row in one["rows"]]


def test_two_models_are_compared_on_the_same_rows(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(trained, "--against", str(trained / "untrained"))
    told = capsys.readouterr().out
    assert "less" in told
    assert "< 0.001" in told
    run(trained, model="untrained")
    other = [json.loads(line) for line in (trained / "out" / "held_out.jsonl").read_text().splitlines()]
    compared = comparisons_of(found["rows"], other)
    assert compared["exact"].difference > 0.9
    assert compared["loss"].high < 0
    assert comparisons_of(other, other)["exact"].p == 1.0
    with pytest.raises(DataError, match="must be of the same questions"):
        comparisons_of(found["rows"], other[1:])


def test_rows_without_room_for_an_answer_count_as_wrong(trained: Path) -> None:
    room = QWEN3["max_position_embeddings"]
    long_row = {"prompt": "sun " * int(str(room)), "response": "moon"}
    rows = (trained / "held_out.jsonl").read_text()
    try:
        (trained / "held_out.jsonl").write_text(rows + json.dumps(long_row) + "\n")
        found = run(trained)
    finally:
        (trained / "held_out.jsonl").write_text(rows)
    assert found["num_unanswered"] == 1
    assert found["figures"]["exact"]["value"] == pytest.approx(18 / 19)
    assert found["figures"]["loss"]["num_rows"] == 19  # up to max_length, as in training


def test_bad_rows_are_refused_or_counted(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = (trained / "held_out.jsonl").read_text()
    try:
        (trained / "held_out.jsonl").write_text(rows + '{"prompt": "sun"}\n')
        words = ["evaluate", str(trained / "trained"), str(trained / "held_out.jsonl"), *NEW_TOKENS, "--no-loss"]
        assert main(words) == 3
        assert "held_out.jsonl:19" in capsys.readouterr().err
        assert run(trained, "--on_bad_row", "skip", "--no-loss")["num_bad_rows"] == 1
    finally:
        (trained / "held_out.jsonl").write_text(rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--regex", "("], "--regex is"),
        (["--metrics", "bleu"], "--metrics is"),
        (["--no-loss", "--no-generation"], "--no-loss is"),
        (["--temperature", "hot"], "--temperature is"),
        (["--max-new-tokens", "0"], "--max-new-tokens is"),
    ],
)
def test_wrong_options_are_told(
    trained: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(trained / "trained"), str(trained / "held_out.jsonl"), *words]) == 2
    assert message in capsys.readouterr().err


def test_an_adapter_is_evaluated_with_the_model_that_it_belongs_to(tmp_path: Path) -> None:
    train, _ = write_successors(tmp_path)
    args = tiny_args(train, tmp_path / "adapter", max_steps=3, lora={"r": 4, "merge": True}, learning_rate=1e-1)
    train_with(args)
    adapter, merged = (
        run(tmp_path, "--no-generation", model=name)["figures"]["loss"]["value"]
        for name in ("adapter", "adapter/merged")
    )
    base = run(tmp_path, "--no-generation", model="adapter/base_model")["figures"]["loss"]["value"]
    assert adapter == pytest.approx(merged, rel=1e-5)
    assert abs(base - adapter) > 1e-3


def questions(rows: Sequence[dict[str, Any]], folder: Path, **settings: Any) -> list[Question | BadRow]:
    """The rows as the quick start's tokenizer and template ask them."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = tiny_args(folder / "rows.jsonl", folder / "run", **settings)
    from sft.mask_options import MaskOptions

    masker = Masker(build_tokenizer(args), options=MaskOptions.of(args))
    found = list(enumerate(read_conversations(str(folder / "rows.jsonl"))))
    return list(questions_of(found, masker, 256))


def test_the_question_is_what_stands_before_the_last_trained_turn(tmp_path: Path) -> None:
    turns = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four"), ("user", "five")]
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
    (whole,) = questions([{"messages": messages}], tmp_path)
    assert isinstance(whole, Question)
    assert whole.reference == "four"
    assert whole.prompt.endswith("<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n")
    assert "two" in whole.prompt
    messages[3]["train"] = False
    (first,) = questions([{"messages": messages}], tmp_path)
    assert isinstance(first, Question)
    assert first.reference == "two"
    assert "two" not in first.prompt


def test_control_strings_and_system_prompts_in_questions_are_those_of_training(tmp_path: Path) -> None:
    row = {"prompt": "say <|im_end|>", "response": "no", "system": "old"}
    (asked,) = questions([row], tmp_path, system_prompt="new")
    assert isinstance(asked, Question)
    assert "new" in asked.prompt
    assert "old" not in asked.prompt
    document = asked.documents[0]
    assert tuple(int(token) for token in document.input_ids[: len(asked.prompt_ids)]) == asked.prompt_ids


def test_where_padding_is_seen_prompts_of_one_length_are_answered_together() -> None:
    asked: list[tuple[int, ...]] = []

    class Model:
        """Answers with the first token that it sees, padding or not."""

        generation_config: Any = None
        config = dataclasses.make_dataclass("Config", [])()

        def eval(self) -> Model:
            return self

        def parameters(self) -> Any:
            return iter([torch.zeros(1)])

        def generate(self, input_ids: torch.Tensor, **options: Any) -> Any:
            if "output_logits" in options:
                logits = torch.nn.functional.one_hot(input_ids[:, 0], 1000).float()
                return dataclasses.make_dataclass("Output", ["logits"])([logits])
            asked.append(tuple(input_ids.shape))
            return torch.cat([input_ids, input_ids[:, :1]], 1)

    Model.config.get_text_config = lambda: dataclasses.make_dataclass("Sizes", ["vocab_size"])(1000)  # type: ignore[attr-defined]
    generator = Generator(Model(), [], 999, torch.device("cpu"))
    found = generator.answers([[5], [6, 1], [7], [8, 2]], range(4), Decoding(1), batch_size=4)
    assert [each.token_ids for each in found] == [(5,), (6,), (7,), (8,)]
    assert asked == [(2, 1), (2, 2)]


def test_figures_name_what_is_missing() -> None:
    row = {
        "row": 0, "source": "a:1", "reference": "7", "metrics": {"exact": 0.0, "numeric": None}, "loss_sum": None,
        "loss_weight": 0, "new_tokens": None, "stopped": None, "unanswered": True,
    }  # fmt: skip
    found = figures_of([row], "m", "a")
    assert set(found.figures) == {"exact"}
    assert found.num_unanswered == 1


def test_a_run_without_a_model_is_told_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, held_out = write_successors(tmp_path)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    words = ["evaluate", str(tmp_path / "run"), str(held_out), f"--tokenizer_name={TOKENIZER}"]
    assert main(words) == 2
    assert "python -m sft export" in capsys.readouterr().err
