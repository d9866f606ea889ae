"""Metering: spans, rates by hand, what a run logs, the profiler's trace."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tiny import tiny_args, write_conversations

from sft.config import Args
from sft.flops import ModelShape
from sft.matmul_rate import measured_flops_per_s
from sft.metering import PHASES, Meter, StepTimer
from sft.profiling import trace_path
from sft.train import main, train_with
from sft.world import World

CPU = torch.device("cpu")
SHAPE = ModelShape(body=1000, adapters=0, head=200, attention=10, is_body_trained=True)

ALONE = World(0, 0, 1, CPU)


class TwoAlike(World):
    """Two ranks with the same values."""

    def sum(self, *values: float) -> list[float]:
        return [2.0 * value for value in values]


@pytest.fixture
def args(tmp_path: Path) -> Args:
    return tiny_args(write_conversations(tmp_path / "train.jsonl", 12), tmp_path / "out", max_steps=4)


def records(args: Args, kind: str = "train") -> list[dict[str, Any]]:
    found = json.loads(Path(args.output_dir, "training_log.json").read_text())
    return [record for record in found if record["type"] == kind]


def test_a_timer_adds_up_and_starts_anew() -> None:
    timer = StepTimer(CPU)
    for _ in range(2):
        with timer("data"):
            time.sleep(0.01)
    with timer("forward"):
        pass
    found = timer.take()
    assert 0.02 <= found["data"] < 0.5
    assert found["forward"] < 0.01
    assert timer.take() == {}


def test_a_phase_that_fails_is_counted_all_the_same() -> None:
    timer = StepTimer(CPU)
    with pytest.raises(ValueError, match="no"), timer("backward"):
        raise ValueError("no")
    assert "backward" in timer.take()


class StreamEvent:
    """What torch.cuda.Event does, on a stream whose clock goes on by one millisecond with each event."""

    made: ClassVar[list[StreamEvent]] = []
    log: ClassVar[list[str]] = []

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.made.append(self)
        self.at_ms = 0

    def record(self) -> None:
        self.log.append("record")
        self.at_ms = self.log.count("record")

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def elapsed_time(self, other: StreamEvent) -> float:
        return float(other.at_ms - self.at_ms)


def test_on_a_stream_nothing_is_waited_for_until_times_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.Event", StreamEvent)
    timer = StepTimer(torch.device("cuda"))
    for _ in range(2):
        StreamEvent.log.clear()
        for _ in range(3):
            with timer("data"):
                pass
            with timer("forward"):
                pass
            with timer("backward"):
                pass
        assert StreamEvent.log == ["record"] * 12
        found = timer.take()
        assert StreamEvent.log.count("synchronize") == 1
        assert (found["forward"], found["backward"]) == (pytest.approx(0.003), pytest.approx(0.003))
        assert found["data"] < 0.1
    assert len(StreamEvent.made) == 12  # those of the first round are used again


def test_what_lies_beyond_a_window_is_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("sft.metering.time.perf_counter", lambda: now)
    meter = Meter(replace(SHAPE, window=20, windowed_share=0.5), StepTimer(CPU), TwoAlike(0, 0, 2, CPU), 1e5)
    meter.step(80, 30, own_slots=50, own_squares=1000, own_beyond=400)
    now += 2.0
    flops = 6 * 1000 * 80 + 6 * 200 * 30 + 6 * 10 * (2000 - 0.5 * 800)
    assert meter.record()["mfu"] == pytest.approx(flops / 2 / 2 / 1e5)


def test_rates_are_of_all_steps_since_the_last_record(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("sft.metering.time.perf_counter", lambda: now)
    timer = StepTimer(CPU)
    meter = Meter(SHAPE, timer, TwoAlike(0, 0, 2, CPU), 1e5)
    meter.step(50, 20, own_slots=30, own_squares=650)
    meter.step(30, 10, own_slots=20, own_squares=350)
    with timer("forward"):
        now += 1.0
    with timer("checkpoint"):
        now += 6.0
    now += 1.0
    found = meter.record()
    assert found["tokens_per_s"] == 80 / 2
    assert found["trained_tokens_per_s"] == 30 / 2
    assert found["padding"] == pytest.approx(0.2)
    flops = 6 * 1000 * 80 + 6 * 200 * 30 + 6 * 10 * 2000
    assert found["tflops_per_s"] == pytest.approx(flops / 2 / 2 / 1e12)
    assert found["mfu"] == pytest.approx(flops / 2 / 2 / 1e5)
    assert found["mfu_palm"] == pytest.approx((6 * 1200 * 80 + 12 * 10 * 2000) / 2 / 2 / 1e5)
    assert (found["forward_s"], found["checkpoint_s"], found["data_s"]) == (0.5, 3.0, 0.0)
    meter.step(5, 1, 5, 25)
    now += 1.0
    assert meter.record()["tokens_per_s"] == 5


class SlowOther(World):
    """Two ranks; the other one takes 2 s for its data and 0.5 s for forward passes."""

    def sum(self, *values: float) -> list[float]:
        slots, squares, beyond, own_data_s, _, own_forward_s, _ = values
        return [slots, squares, beyond, own_data_s, 2.0, own_forward_s, 0.5]


def test_the_phase_of_a_slow_rank_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("sft.metering.time.perf_counter", lambda: now)
    timer = StepTimer(CPU)
    meter = Meter(SHAPE, timer, SlowOther(0, 0, 2, CPU), None)
    for phase, took_s in (("data", 0.1), ("forward", 0.4)):
        with timer(phase):  # type: ignore[arg-type]
            now += took_s
    for _ in range(5):
        meter.step(50, 20, own_slots=30, own_squares=650)
    meter.record()
    said = capsys.readouterr().out
    assert said.startswith(
        "warning: rank 1 takes 5.0 times as long as the median rank for data and forward, most of it in"
    )
    assert "most of it in data;" in said


def test_without_a_rate_there_is_no_utilisation() -> None:
    meter = Meter(SHAPE, StepTimer(CPU), ALONE, None)
    meter.step(5, 1, 5, 25)
    found = meter.record()
    assert (found["mfu"], found["mfu_palm"]) == (None, None)


def test_the_matmul_rate_is_that_of_a_product_timed_here() -> None:
    torch.manual_seed(0)
    left = torch.randn(1024, 1024)
    times = []
    for _ in range(10):
        started = time.perf_counter()
        left @ left
        times.append(time.perf_counter() - started)
    found = measured_flops_per_s(CPU, bf16=False)
    assert 0.2 < found / (2 * 1024**3 / min(times)) < 5  # the machine may be shared


def test_a_run_logs_rates_and_phases(args: Args) -> None:
    train_with(replace(args, save_steps=2, report_to="tensorboard", matmul_tflops=0.5))
    found = records(args)
    assert [record["step"] for record in found] == [1, 2, 3, 4]
    for record in found:
        assert 0 <= record["padding"] < 1
        assert 0 < record["trained_tokens_per_s"] < record["tokens_per_s"]
        assert 0 < record["mfu"] < record["mfu_palm"]
        assert record["mfu"] == pytest.approx(record["tflops_per_s"] / 0.5)
        for phase in ("data", "forward", "backward", "optimizer"):
            assert record[f"{phase}_s"] > 0, phase
    # The checkpoint of step 2 is told in the record that follows it.
    assert [record["checkpoint_s"] > 0 for record in found] == [False, False, True, False]
    assert tensorboard_tags(Path(args.output_dir)) >= {"train/loss", "train/mfu", "train/padding"} | {
        f"train/{phase}_s" for phase in PHASES
    }


def test_padding_is_the_share_of_slots_that_no_document_fills(args: Args) -> None:
    packed = replace(args, packing=True, max_length=128, per_device_train_batch_size=1)
    train_with(replace(packed, attn_implementation="sdpa"))
    found = records(args)
    tokens = np.diff([0, *(record["num_tokens"] for record in found)])
    assert [record["padding"] for record in found] == pytest.approx(1 - tokens / 128)
    assert max(record["padding"] for record in found) > 0
    train_with(replace(packed, resume_from_checkpoint="none"))
    assert {record["padding"] for record in records(args)} == {0.0}


def test_what_is_left_out_of_documents_is_no_work() -> None:
    whole, cut = (Meter(SHAPE, StepTimer(CPU), ALONE, 1e12) for _ in range(2))
    whole.step(50, 20, own_slots=50, own_squares=1300)
    cut.step(80, 20, own_slots=50, own_squares=1300)
    found = [meter.record() for meter in (whole, cut)]
    per_token = [record["tflops_per_s"] / record["tokens_per_s"] for record in found]
    assert per_token[1] == pytest.approx(per_token[0] * 50 / 80)
    assert found[1]["padding"] == 0


def tensorboard_tags(folder: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return set(events.Tags()["scalars"])


@pytest.mark.parametrize(("num_steps", "recorded"), [(2, {3, 4}), (9, {1, 2, 3, 4})])
def test_a_profile_holds_the_steps_that_were_asked_for(
    args: Args, tmp_path: Path, num_steps: int, recorded: set[int]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({name: value for name, value in args.to_json().items() if name in _GIVEN}))
    assert main(["--config", str(path), f"--profile={num_steps}", "--bf16=false", "--report_to=none"]) == 0
    trace = json.loads(trace_path(Path(args.output_dir)).read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {int(name.split()[1]) for name in names if str(name).startswith("step ")} == recorded
    assert "aten::mm" in names


_GIVEN = ("model_config", "tokenizer_name", "train_file", "output_dir", "max_steps")


def test_no_trace_is_written_unasked(args: Args) -> None:
    train_with(replace(args, max_steps=1))
    assert not trace_path(Path(args.output_dir)).parent.exists()
