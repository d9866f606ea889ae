"""Answers and losses of a model that was trained on something it can learn: `python -m sft evaluate`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import QWEN3, TOKENIZER, WORDS, tiny_args, write_conversations

from sft.__main__ import main
from sft.errors import DataError
from sft.generation import Decoding, Generator
from sft.masking import Masker
from sft.metrics import answer_of, exact_match
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
    common |= {"bf16": False, "per_device_train_batch_size": 36, "learning_rate": 1e-2, "max_steps": STEPS}
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
    found = run(trained, "--no-generation", "--bf16=false")
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


def test_mistakes_are_found_before_a_model_is_loaded(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load_model(*_: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("sft.answering.load_model", load_model)
    (tmp_path / "file").write_text("")
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    command = ["evaluate", str(trained / "trained"), str(trained / "held_out.jsonl"), *NEW_TOKENS]
    for words, code, message in (
        (["--output", str(tmp_path / "file" / "below")], 13, "file/below cannot be written"),
        (["--against", str(tmp_path / "none.jsonl")], 3, "none.jsonl cannot be read"),
        (["--against", str(tmp_path / "data.jsonl")], 3, "data.jsonl:1 is no row of an evaluation"),
        (["--against", str(tmp_path / "no-model")], 2, "no-model"),
    ):
        assert main([*command, *words]) == code
        assert message in capsys.readouterr().err


def test_rows_of_other_questions_are_refused_before_answers_are_paid_for(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(trained)
    lines = (trained / "out" / "held_out.jsonl").read_text().split("\n")
    (tmp_path / "same.jsonl").write_text("\n".join(lines))
    (tmp_path / "other.jsonl").write_text("\n".join([lines[1], lines[0], *lines[2:]]))
    run(trained, "--against", str(tmp_path / "same.jsonl"))
    assert "less" in capsys.readouterr().out

    def generate(*_: Any) -> None:
        raise AssertionError("answers are generated")

    monkeypatch.setattr("sft.answering.Answering.generate", generate)
    command = ["evaluate", str(trained / "trained"), str(trained / "held_out.jsonl"), "--output", str(tmp_path)]
    assert main([*command, "--against", str(tmp_path / "other.jsonl")]) == 3
    assert "must be of the same questions" in capsys.readouterr().err


def test_it_is_said_how_else_the_rows_of_another_were_asked(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(trained, "--no-loss", "--system_prompt=Be brief.")
    for suffix in (".jsonl", ".json"):
        (tmp_path / f"before{suffix}").write_bytes((trained / "out" / f"held_out{suffix}").read_bytes())
    run(trained, "--no-loss", "--against", str(tmp_path / "before.jsonl"))
    assert 'before.jsonl was asked with system_prompt: "Be brief.", this one with null' in capsys.readouterr().err


def test_what_was_found_is_written_before_it_is_compared(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def comparisons_of(*_: Any) -> None:
        raise DataError("they cannot be compared")

    monkeypatch.setattr("sft.scores.comparisons_of", comparisons_of)
    command = ["evaluate", str(trained / "trained"), str(trained / "held_out.jsonl"), "--output", str(tmp_path)]
    assert main([*command, *NEW_TOKENS, "--no-loss", "--against", str(trained / "untrained")]) == 3
    assert "they cannot be compared" in capsys.readouterr().err
    assert json.loads((tmp_path / "held_out.json").read_text())["figures"]["exact"]["value"] > 0.9
    assert len((tmp_path / "held_out.jsonl").read_text().splitlines()) == 18


def test_figures_tell_how_the_model_was_asked(trained: Path) -> None:
    plain = run(trained, "--no-loss", "--max_eval_samples=2")["settings"]
    decoding = {"max_new_tokens": 12, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": 42}
    assert (plain["system_prompt"], plain["decoding"]) == (None, decoding)
    words = ("--system_prompt=Be brief.", "--temperature=0.5", "--top-k=3", "--seed=7", "--max_eval_samples=2")
    other = run(trained, "--no-loss", *words)["settings"]
    assert other["system_prompt"] == "Be brief."
    assert other["decoding"] == {**decoding, "temperature": 0.5, "top_k": 3, "seed": 7}
    assert run(trained, "--no-generation", "--max_eval_samples=2")["settings"]["decoding"] is None


def test_a_model_without_a_finite_loss_is_told(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained / "trained", tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(trained / "held_out.jsonl", tmp_path)
    found = run(tmp_path, "--no-generation", model="broken")
    assert found["num_not_finite"] == 18
    assert "loss" not in found["figures"]
    assert all(row["loss_sum"] is None and row["loss_weight"] for row in found["rows"])
    assert f"18 rows without a finite loss, left out of it: {tmp_path / 'held_out.jsonl'}:1" in capsys.readouterr().out


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


@pytest.mark.parametrize(
    ("truncation", "counts", "remark", "num_rows"),
    [
        ("right", (1, 0), "loss of 1 document only up to max_length", 19),
        ("drop", (0, 1), "no loss of 1 document longer than max_length", 18),
    ],
)
def test_references_that_are_cut_or_left_out_of_the_loss_are_told(
    trained: Path,
    truncation: str,
    counts: tuple[int, int],
    remark: str,
    num_rows: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = (trained / "held_out.jsonl").read_text()
    try:
        (trained / "held_out.jsonl").write_text(rows + json.dumps({"prompt": "sun", "response": "moon " * 60}) + "\n")
        found = run(trained, "--no-generation", "--max_length=40", f"--truncation={truncation}")
    finally:
        (trained / "held_out.jsonl").write_text(rows)
    assert (found["num_truncated"], found["num_dropped"]) == counts
    assert remark in capsys.readouterr().out
    assert found["figures"]["loss"]["num_rows"] == num_rows
    assert (found["rows"][-1]["truncated"], found["rows"][-1]["dropped"]) == counts
    assert (found["rows"][0]["truncated"], found["rows"][0]["dropped"]) == (0, 0)


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
        (["--temperature", "nan"], "--temperature is"),
        (["--top-p", "0"], "--top-p is"),
        (["--max-new-tokens", "0"], "--max-new-tokens is"),
    ],
)
def test_wrong_options_are_told(
    trained: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for check in ([], ["--check"]):  # with which nothing is loaded
        assert main(["evaluate", str(trained / "trained"), str(trained / "held_out.jsonl"), *words, *check]) == 2
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


CALL = {"function": {"name": "look", "arguments": {"at": "sky"}}}
CALLED = '<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ({"content": "8"}, "8"),
        ({"content": "<think>\n7?\n</think>\n\n8"}, "8"),
        ({"content": "8", "reasoning_content": "7?"}, "8"),
        ({"content": "", "tool_calls": [CALL]}, CALLED),
        ({"content": "Well.", "tool_calls": [CALL]}, f"Well.\n{CALLED}"),
        ({"content": "", "reasoning_content": "7?", "tool_calls": [CALL]}, CALLED),
        ({"content": "<think>\n7?\n</think>\n\n", "tool_calls": [CALL]}, CALLED),
        ({"content": "", "reasoning_content": "7?"}, ""),
    ],
)
def test_an_answer_like_the_data_s_own_turn_matches_whatever_form_its_thoughts_have(
    tmp_path: Path, turn: dict[str, Any], expected: str
) -> None:
    messages = [{"role": "user", "content": "7 or 8?"}, {"role": "assistant", **turn}]
    (asked,) = questions([{"messages": messages}], tmp_path)
    assert isinstance(asked, Question)
    assert asked.reference == expected
    said = asked.documents[-1].input_ids[len(asked.prompt_ids) : -1]  # without the stop token
    written = build_tokenizer(tiny_args(tmp_path / "rows.jsonl", tmp_path)).decode([int(token) for token in said])
    assert exact_match(answer_of(written), asked.reference) == 1.0


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
