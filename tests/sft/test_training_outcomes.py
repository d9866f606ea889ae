"""What a run leaves behind in each way it can end, and what it says."""

from __future__ import annotations

import gc
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import QWEN3, losses, tiny_args, write_conversations

from sft.config import Args
from sft.errors import CheckpointError, DataError, FencedError, NonFiniteError, StoppedError, StorageError
from sft.loop import seed_dropout
from sft.lora_args import LoraArgs
from sft.train import main, run_training, train_with
from strict_settings import SettingsError


@pytest.fixture
def args(tmp_path: Path) -> Args:
    write_conversations(tmp_path / "eval.jsonl", 3, seed=9)
    return tiny_args(write_conversations(tmp_path / "train.jsonl", 5), tmp_path / "out", max_steps=4)


def records(args: Args, kind: str | None = None) -> list[dict[str, Any]]:
    found = json.loads(Path(args.output_dir, "training_log.json").read_text())
    return [record for record in found if kind in (None, record["type"])]


def words(args: Args, **changes: object) -> list[str]:
    """The settings as options of the script."""
    base = Args().to_json()
    values = {name: value for name, value in {**args.to_json(), **changes}.items() if value != base[name]}
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()]


def test_the_log_counts_steps_epochs_and_tokens(args: Args) -> None:
    train_with(replace(args, max_steps=6, logging_steps=2, eval_file=args.train_file))
    train, evaluations, (summary,) = records(args, "train"), records(args, "eval"), records(args, "summary")
    assert [record["step"] for record in train] == [1, 2, 4, 6]
    assert [record["epoch"] for record in train] == pytest.approx([1 / 3, 2 / 3, 4 / 3, 2.0])
    assert [record["step"] for record in evaluations] == [3, 6]
    # Two epochs of all rows: the evaluation saw the same trained tokens once.
    assert train[-1]["num_trained_tokens"] == 2 * evaluations[0]["num_trained_tokens"]
    assert train[-1]["num_tokens"] > train[-1]["num_trained_tokens"]
    assert all(record["tokens_per_s"] > 0 for record in train)
    assert [record["elapsed_s"] for record in train] == sorted(record["elapsed_s"] for record in train)
    assert summary["num_tokens"] == train[-1]["num_tokens"]
    assert (summary["first_loss"], summary["last_loss"]) == (train[0]["loss"], train[-1]["loss"])
    assert summary["best_eval_loss"] == min(record["eval_loss"] for record in evaluations)
    assert set(evaluations[0]) == {"type", "step", "epoch", "eval_loss", "num_trained_tokens", "elapsed_s"}


def test_epochs_make_the_steps_and_a_part_of_one_is_rounded_up(args: Args) -> None:
    train_with(replace(args, max_steps=None, num_train_epochs=1.5))
    assert records(args, "summary")[0]["step"] == 5


def test_the_same_settings_give_the_same_losses_and_another_seed_gives_others(args: Args) -> None:
    for number, seed in enumerate((1, 1, 2)):
        train_with(replace(args, seed=seed, lora=LoraArgs(r=2, dropout=0.3), output_dir=f"{args.output_dir}{number}"))
    first, again, other = (losses(Path(f"{args.output_dir}{number}")) for number in range(3))
    assert first == again
    assert first != other


def test_tensorboards_own_reader_finds_the_scalars_of_the_log(args: Args) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_with(replace(args, report_to="tensorboard", eval_file=args.train_file))
    reader = EventAccumulator(str(Path(args.output_dir, "tensorboard")))
    reader.Reload()
    for kind, names in (("train", ("loss", "learning_rate", "grad_norm", "num_tokens")), ("eval", ("eval_loss",))):
        for name in names:
            events = [(event.step, event.value) for event in reader.Scalars(f"{kind}/{name}")]
            logged = [(record["step"], record[name]) for record in records(args, kind)]
            assert [step for step, _ in events] == [step for step, _ in logged]
            assert [value for _, value in events] == pytest.approx([value for _, value in logged], rel=1e-6)


def test_the_written_model_is_the_trained_one(args: Args) -> None:
    """Its loss, computed by transformers alone from what is on the disk, is the last evaluation's."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    train_with(replace(args, eval_file=args.train_file))
    model, info = AutoModelForCausalLM.from_pretrained(args.output_dir, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(args.output_dir)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in torch.tensor(model.generation_config.eos_token_id).flatten().tolist()
    assert end in torch.tensor(model.config.eos_token_id).flatten().tolist()
    total, count = 0.0, 0
    for line in Path(str(args.train_file)).read_text().splitlines():
        messages = json.loads(line)["messages"]
        encoded = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
        )
        with torch.no_grad():
            rows = model(input_ids=encoded["input_ids"]).logits[0, :-1].log_softmax(-1)
        targets = encoded["input_ids"][0, 1:]
        mask = torch.as_tensor(encoded["assistant_masks"]).flatten()[1:].bool()
        total -= float(rows[torch.arange(len(targets)), targets][mask].sum())
        count += int(mask.sum())
    evaluation = records(args, "eval")[-1]
    assert count == evaluation["num_trained_tokens"]
    assert total / count == pytest.approx(evaluation["eval_loss"], rel=1e-5)


def test_adapters_load_with_peft_and_merged_weights_give_the_same(args: Args) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    train_with(replace(args, learning_rate=0.1, lora=LoraArgs(r=2, alpha=8.0, merge=True)))
    adapted = AutoPeftModelForCausalLM.from_pretrained(args.output_dir).eval()
    merged = AutoModelForCausalLM.from_pretrained(Path(args.output_dir, "merged")).eval()
    base = AutoModelForCausalLM.from_pretrained(Path(args.output_dir, "base_model")).eval()
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        expected = adapted(input_ids=tokens).logits
        assert torch.allclose(merged(input_ids=tokens).logits, expected, atol=1e-4)
        assert not torch.allclose(base(input_ids=tokens).logits, expected, atol=1e-2)


def test_a_run_that_is_taken_up_ends_as_one_that_never_stopped(args: Args) -> None:
    train_with(replace(args, save_steps=2, output_dir=f"{args.output_dir}-straight"))
    own = replace(args, save_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sft.engine.require_finite", _fail_at_third_step())
        with pytest.raises(NonFiniteError):
            train_with(own)
    assert [record["step"] for record in records(own)] == [1, 2]
    train_with(own)
    assert losses(Path(own.output_dir)) == losses(Path(f"{args.output_dir}-straight"))
    first, second = (Path(folder, "model.safetensors") for folder in (own.output_dir, f"{args.output_dir}-straight"))
    assert first.read_bytes() == second.read_bytes()


def test_an_evaluation_that_a_stop_gave_up_comes_first_when_the_run_goes_on(args: Args) -> None:
    straight = replace(args, eval_file=args.train_file, eval_steps=2, output_dir=f"{args.output_dir}-straight")
    train_with(straight)
    own = replace(straight, output_dir=args.output_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sft.loop.evaluate", lambda *_: None)
        with pytest.raises(StoppedError, match=r"after step 2 of 4; .*step-00000002 is saved"):
            train_with(own)
    assert records(own, "eval") == []
    train_with(own)
    for kind, name in (("eval", "eval_loss"), ("train", "loss")):
        found, expected = ([(r["step"], r[name]) for r in records(each, kind)] for each in (own, straight))
        assert found == expected
    assert [record["step"] for record in records(own, "eval")] == [2, 4]


def test_a_run_that_ended_early_trains_no_further_when_it_is_started_again(
    args: Args, monkeypatch: pytest.MonkeyPatch
) -> None:
    rising = iter((float(number), 1) for number in range(1, 100))
    monkeypatch.setattr("sft.loop.evaluate", lambda *_: next(rising))
    own = replace(args, eval_file=args.train_file, eval_steps=1, save_steps=1, early_stopping_patience=1)
    for _ in range(2):
        train_with(own)
        assert [record["step"] for record in records(own, "train")] == [1, 2]


def _fail_at_third_step() -> Any:
    calls = iter(range(1, 100))

    def fail(name: str, value: float) -> None:
        if name == "loss" and next(calls) == 3:
            raise NonFiniteError("the plug was pulled")

    return fail


def test_none_starts_anew_beside_checkpoints(args: Args) -> None:
    train_with(replace(args, save_steps=2))
    before = losses(Path(args.output_dir))
    train_with(replace(args, save_steps=2, resume_from_checkpoint="none"))
    assert losses(Path(args.output_dir)) == before
    assert len(before) == 4


def test_every_changed_setting_is_named_when_a_run_is_taken_up(args: Args) -> None:
    train_with(replace(args, save_steps=2, max_steps=2))
    with pytest.raises(SettingsError) as caught:
        train_with(replace(args, save_steps=2, max_steps=2, seed=7, per_device_train_batch_size=1))
    assert sorted(problem.field for problem in caught.value.problems) == ["rows_per_step", "seed"]


def test_a_damaged_checkpoint_is_refused_with_its_name(args: Args) -> None:
    train_with(replace(args, save_steps=2, max_steps=2))
    part = Path(args.output_dir, "checkpoints", "step-00000002", "part-00000.safetensors")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"00002/part-00000\.safetensors has another size than its manifest"):
        train_with(replace(args, save_steps=2, max_steps=2))


def test_an_evaluation_that_is_no_number_ends_the_run_and_the_log_stays_readable(
    args: Args, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sft.loop.evaluate", lambda *_: (math.nan, 1))
    with pytest.raises(NonFiniteError, match="eval_loss is nan; it must be finite"):
        train_with(replace(args, eval_file=args.train_file, eval_steps=2))
    assert [record["type"] for record in records(args)] == ["train", "train"]
    assert not Path(args.output_dir, "model.safetensors").exists()


def test_an_output_directory_that_cannot_be_made_is_a_storage_error(args: Args, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"Not a directory\. Choose another output_dir"):
        train_with(replace(args, output_dir=str(tmp_path / "file" / "out")))


def test_each_way_to_fail_has_its_exit_code_and_one_message(
    args: Args, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jsonl").write_text("{}\n")
    (tmp_path / "file").write_text("")
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"model_config": {**QWEN3, "model_type": "no_such"}}, 2, "error: --model_config: model_config is "),
        ({"tokenizer_name": str(tmp_path)}, 2, "error: --tokenizer_name: tokenizer_name is "),
        ({"train_file": str(tmp_path / "bad.jsonl")}, 3, f"error: {tmp_path}/bad.jsonl:1: the row needs `messages`"),
        ({"max_length": 2}, 3, "error: no row has a trained token within max_length 2."),
        ({"output_dir": str(tmp_path / "file" / "out")}, 13, f"error: {tmp_path}/file/out cannot be written"),
        ({"resume_from_checkpoint": "nowhere"}, 14, "error: resume_from_checkpoint is 'nowhere'; it must hold"),
        ({"learning_rate": 1e30, "max_steps": 30, "lr_scheduler_type": "constant"}, 15, "error: "),
    ]
    for number, (changes, code, message) in enumerate(cases):
        own = {"output_dir": str(tmp_path / f"out{number}"), **changes}
        assert main(words(args, **own)) == code, changes
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert errors[0].startswith(message)
        assert not list(tmp_path.glob(f"out{number}/model*.safetensors"))
        assert gc.isenabled()  # it is off while libraries are imported


def test_a_run_directory_that_is_written_is_refused_before_anything_is_loaded(
    args: Args, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sft.fence import Holder, take

    (tmp_path / "out").mkdir()
    fence = take(tmp_path / "out", Holder.this_process({"SLURM_JOB_ID": "17"}))
    with monkeypatch.context() as patch:
        patch.setattr("sft.train_imports.import_libraries", lambda: pytest.fail("torch was imported first"))
        assert main(words(args, output_dir=str(tmp_path / "out"))) == 16
    message = f"error: output_dir is {tmp_path}/out; it must not be written by two processes at a time. It is held by "
    assert capsys.readouterr().err.startswith(f"{message}process {os.getpid()} on ")
    with pytest.raises(FencedError, match=r"\(job 17, start 0\)"):
        train_with(replace(args, output_dir=str(tmp_path / "out")))
    fence.release()
    train_with(replace(args, output_dir=str(tmp_path / "out"), max_steps=1))


@pytest.mark.parametrize("is_new", [True, False])
def test_a_refused_run_leaves_nothing_behind(args: Args, tmp_path: Path, is_new: bool) -> None:
    (tmp_path / "bad.jsonl").write_text("{}\n")
    if not is_new:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "arguments.json").write_text("those of a run before")
    with pytest.raises(DataError):
        train_with(replace(args, output_dir=str(tmp_path / "out"), train_file=str(tmp_path / "bad.jsonl")))
    assert (tmp_path / "out").exists() != is_new
    if not is_new:
        assert (tmp_path / "out" / "arguments.json").read_text() == "those of a run before"


@pytest.mark.parametrize("lora", [{}, {"lora": {"r": 2}}])
def test_weights_that_are_no_numbers_are_no_model(
    args: Args, tmp_path: Path, capsys: pytest.CaptureFixture[str], lora: dict[str, Any]
) -> None:
    """One step that is too long for float32: loss and gradient were finite, what it leaves is not."""
    folder = tmp_path / "out"
    own = {"output_dir": str(folder), "learning_rate": 1e39, "max_steps": 1, "lr_scheduler_type": "constant"}
    assert main(words(args, **own, warmup_steps=0, **lora)) == 15
    error = capsys.readouterr().err
    assert "has values that are no finite numbers; the final model must be finite, and is not written." in error
    assert not list(folder.glob("*.safetensors"))


def test_weights_that_float16_can_not_hold_are_no_model(args: Args) -> None:
    own = {"learning_rate": 1e5, "max_steps": 1, "lr_scheduler_type": "constant", "save_dtype": "float16"}
    with pytest.raises(NonFiniteError, match=r"torch\.float16 can't hold.*Choose save_dtype: float32 or bfloat16"):
        train_with(replace(args, **own, warmup_steps=0))


def test_from_python_values_of_every_kind_win_over_the_file(args: Args, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        f"model_config: {json.dumps(QWEN3)}\ntokenizer_name: {args.tokenizer_name}\ntrain_file: train.jsonl\n"
        "max_steps: 50\nbf16: false\nsave_steps: 0\nreport_to: none\nlogging_steps: 50\nrun_name: a\n"
    )
    folder = run_training(
        tmp_path / "run.yaml",
        output_dir=tmp_path / "python",
        max_steps=1,
        learning_rate=3e-3,
        max_train_samples=2,
        run_name=None,
        lora={"r": 2, "target_modules": ["q_proj"]},
        gradient_checkpointing=True,
    )
    assert folder == tmp_path / "python"
    written = json.loads((folder / "arguments.json").read_text())
    assert (written["max_steps"], written["learning_rate"], written["run_name"]) == (1, 3e-3, None)
    assert written["lora"]["target_modules"] == ["q_proj"]
    assert (folder / "adapter_model.safetensors").is_file()
    with pytest.raises(SettingsError, match="Did you mean 'learning_rate'"):
        run_training(tmp_path / "run.yaml", lerning_rate=1.0)


def test_evaluation_runs_without_dropout_and_is_weighted_by_tokens() -> None:
    from sft.loop import evaluate
    from sft.world import World

    model = torch.nn.Linear(1, 1).train()
    seen = []

    def token_losses(batch: SimpleNamespace) -> torch.Tensor:
        seen.append(model.training)
        return torch.tensor(float(batch.loss_sum))

    class FakeData:
        lengths = np.array([3, 3, 3, 3, 3])

        def __len__(self) -> int:
            return 5

        def batch(self, rows: list[int]) -> SimpleNamespace:
            num_trained = sum(row + 1 for row in rows)
            found = SimpleNamespace(
                loss_sum=10 * len(rows), num_trained_tokens=num_trained, total_weight=float(num_trained)
            )
            found.to = lambda _: found
            return found

    engine: Any = SimpleNamespace(model=model, evaluate=token_losses)
    data: Any = FakeData()
    world = World(0, 0, 1, torch.device("cpu"))
    assert evaluate(engine, data, Args(per_device_eval_batch_size=2), world) == (50 / 15, 15)
    assert seen == [False, False, False]
    assert model.training


def test_the_batch_arithmetic_is_printed_before_the_first_step(args: Args, capsys: pytest.CaptureFixture[str]) -> None:
    train_with(replace(args, gradient_accumulation_steps=2, max_steps=1))
    out = capsys.readouterr().out
    assert "1 process(es) × 2 conversations × 2 accumulation = 4 per step; 5 documents, 2 steps per epoch" in out
    assert "5 documents" in out.splitlines()[0]


def test_a_steps_random_numbers_follow_from_seed_step_and_rank() -> None:
    def drawn(*numbers: int) -> list[float]:
        seed_dropout(*numbers)
        return torch.rand(3).tolist()  # type: ignore[no-any-return]

    places = [(0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1)]
    assert [drawn(*place) for place in places] == [drawn(*place) for place in places]
    assert len({tuple(drawn(*place)) for place in places}) == len(places)
    torch.manual_seed(int(np.random.SeedSequence([0, 1, 0]).generate_state(1)[0]))
    assert torch.rand(3).tolist() == drawn(0, 1, 0)
