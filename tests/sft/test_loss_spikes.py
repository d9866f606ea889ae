"""Steps that are left out as their loss is far above the recent ones."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny import losses, tiny_args

from sft.config import Args
from sft.errors import LossSpikesError
from sft.loss_spikes import MIN_LOSSES, WINDOW, SpikeRule
from sft.plan import Plan
from sft.train import train_with

RULE = SpikeRule(4.0, 0)
STEADY = [1.0 + 0.1 * (number % 3 - 1) for number in range(30)]
"""0.9, 1.0, 1.1, …: their median is 1, and so is the median distance from it 0.1."""


def test_the_limit_is_robust_deviations_above_the_median() -> None:
    assert RULE.highest_loss(100, STEADY) == pytest.approx(1.0 + 4.0 * 1.4826 * 0.1)
    assert RULE.highest_loss(100, [*STEADY, 50.0, 1e6]) == pytest.approx(1.0 + 4.0 * 1.4826 * 0.1, rel=0.2)


def test_losses_that_hardly_differ_have_room_too() -> None:
    assert RULE.highest_loss(100, [2.0] * 30) == pytest.approx(2.0 + 4.0 * 0.02)


@pytest.mark.parametrize(
    ("rule", "step", "recent"),
    [
        (RULE, 100, STEADY[: MIN_LOSSES - 1]),
        (SpikeRule(4.0, 100), 100, STEADY),
        (SpikeRule(math.inf, 0), 100, STEADY),
    ],
    ids=["few losses", "warm-up", "off"],
)
def test_nothing_is_a_spike(rule: SpikeRule, step: int, recent: list[float]) -> None:
    assert rule.highest_loss(step, recent) == math.inf


def test_as_many_losses_are_remembered_as_are_compared_with() -> None:
    assert RULE.remembered(tuple(range(WINDOW)), 7.0) == (*range(1, WINDOW), 7.0)
    assert SpikeRule(math.inf, 0).remembered((), 7.0) == ()


# --- runs: forty rows alike, and one or more that nobody could foresee

NUM_ALIKE = 40


@pytest.fixture
def args(tmp_path: Path) -> Args:
    return with_odd_rows(tmp_path, 1)


def with_odd_rows(folder: Path, num_odd: int, **settings: Any) -> Args:
    def row(answer: str) -> str:
        messages = [{"role": "user", "content": "which?"}, {"role": "assistant", "content": answer}]
        return json.dumps({"messages": messages}) + "\n"

    rows = [row("the same as ever, and ever, and ever")] * NUM_ALIKE
    rows += [row(f"zq{number}xv jw%k$ QQ{number} vbx#j 77") for number in range(num_odd)]
    (folder / "train.jsonl").write_text("".join(rows))
    shared: dict[str, Any] = {
        "per_device_train_batch_size": 1, "lr_scheduler_type": "constant", "warmup_steps": 2, "save_total_limit": 1000,
        "skip_loss_spikes": 8.0, "num_train_epochs": 2.0,
    }  # fmt: skip
    return tiny_args(folder / "train.jsonl", folder / "out", **{**shared, **settings})


def spikes(args: Args) -> list[dict[str, Any]]:
    log = json.loads(Path(args.output_dir, "training_log.json").read_text())
    return [record for record in log if record["type"] == "spike"]


def step_of(args: Args, document: int, epoch: int) -> int:
    """The step in which a row comes."""
    plan = Plan.of(args, NUM_ALIKE + 1, 1)
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    return 1 + next(step for step in steps if [document] in plan.rows.step(step, plan.rows_per_step))


def tensors(args: Args, step: int) -> dict[str, Any]:
    return load_file(Path(args.output_dir, "checkpoints", f"step-{step:08d}", "part-00000.safetensors"))


def test_a_spike_moves_no_weight_and_its_rows_are_in_the_log(args: Args) -> None:
    train_with(replace(args, save_steps=1))
    (spike,) = [record for record in spikes(args) if record["epoch"] > 1]
    odd = step_of(args, NUM_ALIKE, 1)
    assert (spike["step"], spike["rows"]) == (odd, [f"row {NUM_ALIKE + 1} of {args.train_file}"])
    assert losses(Path(args.output_dir))[odd - 1] == spike["loss"] > spike["highest_loss"]
    before, at, after = (tensors(args, odd + number) for number in (-1, 0, 1))
    assert before.keys() == at.keys()
    assert all(before[name].equal(at[name]) for name in before)  # weights, and both means of AdamW
    assert not all(after[name].equal(at[name]) for name in at)
    summary = json.loads(Path(args.output_dir, "training_log.json").read_text())[-1]
    assert summary["num_skipped_steps"] == len(spikes(args))


def test_without_the_setting_the_same_step_moves_them(args: Args) -> None:
    own = replace(args, save_steps=1, skip_loss_spikes=None)
    train_with(own)
    odd = step_of(own, NUM_ALIKE, 1)
    assert spikes(own) == []
    before, at = tensors(own, odd - 1), tensors(own, odd)
    assert not all(before[name].equal(at[name]) for name in before)


def test_a_run_that_is_taken_up_leaves_out_the_same_steps_bit_by_bit(args: Args) -> None:
    straight = replace(args, save_steps=5, output_dir=f"{args.output_dir}-straight")
    train_with(straight)
    odd = step_of(args, NUM_ALIKE, 1)
    # Once from before the spike, with its statistics, and once from after it, with AdamW's count of updates.
    for resumed_from in (odd - odd % 5 - (odd % 5 == 0) * 5, odd + 5 - odd % 5):
        own = replace(straight, output_dir=f"{args.output_dir}-{resumed_from}")
        source, target = (Path(each.output_dir, "checkpoints") for each in (straight, own))
        name = f"step-{resumed_from:08d}"
        shutil.copytree(source / name, target / name)
        train_with(own)
        assert losses(Path(own.output_dir)) == losses(Path(straight.output_dir))[resumed_from:]
        assert [record["step"] for record in spikes(own)] == [
            record["step"] for record in spikes(straight) if record["step"] > resumed_from
        ]
        first, second = (Path(each.output_dir, "model.safetensors").read_bytes() for each in (straight, own))
        assert first == second


def test_more_spikes_in_a_row_than_are_left_out_end_the_run(tmp_path: Path) -> None:
    own = with_odd_rows(tmp_path, 60, max_loss_spikes=1, skip_loss_spikes=1e-3)
    with pytest.raises(LossSpikesError, match="spike 2 in a row; it must be at most") as caught:
        train_with(own)
    assert caught.value.exit_code == 15
    assert len(spikes(own)) >= 2
