"""The benchmarks run, at toy size and with our own side alone: their gates pass and their tables are printed. Nothing
is said about time."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import checkpoint, gpu, loss_head, ranks, rounds, startup, train, train_sides
from benchmarks.corpus import LONG_TAIL, MODELS, TRAINED_SHARE, small, write_conversations, write_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def table(printed: str) -> dict[str, list[str]]:
    """First cell → the other cells of the last table."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


def test_the_corpus_has_the_lengths_and_the_share_that_are_claimed(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    from sft.dataset import ConversationDataset
    from sft.masking import Masker
    from sft.sources import read_conversations

    write_tokenizer(tmp_path / "tokenizer", 500)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(tmp_path / "tokenizer"))
    for name in ("once", "again"):
        write_conversations(tmp_path / f"{name}.jsonl", 400, LONG_TAIL, 500, seed=3)
    assert (tmp_path / "once.jsonl").read_bytes() == (tmp_path / "again.jsonl").read_bytes()
    data = ConversationDataset(
        read_conversations(str(tmp_path / "once.jsonl")), Masker(tokenizer, 0), LONG_TAIL.longest
    )
    assert len(tokenizer) == 500
    assert len(data) == 400
    assert 250 < sorted(data.lengths)[200] < 350
    assert max(data.lengths) > 3000
    assert data.num_trained.sum() / data.lengths.sum() == pytest.approx(TRAINED_SHARE, abs=0.01)


@pytest.mark.ranks
def test_training_against_the_bare_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--small --sides cleansft bare --rounds 1 --steps 3 --warmup 1 --gate-steps 3 --threads 1"
    train.main([*words.split(), "--work", str(tmp_path)])
    printed = capsys.readouterr().out
    assert printed.count("bare: losses of 3 steps differ") == 2
    assert table(printed).keys() == {"", "cleansft", "bare"}
    plan = json.loads((tmp_path / "timed" / "plan.json").read_text())
    taken = [number for step in plan["steps"] for number in step]
    assert sorted(taken) == list(range(24))


def test_a_side_that_trains_something_else_is_not_timed(tmp_path: Path) -> None:
    same = rounds.Measured([2.0, 1.0], [1.0, 1.0], [1.0, 2.0], [1.0, 2.0], [10, 10], [5, 5])
    other = rounds.Measured([2.0, 1.002], [1.0, 1.0], [1.0, 2.0], [1.0, 2.0], [10, 10], [5, 5])
    bench = train.Bench(tmp_path, rounds.Conditions(1), None, train.Case({}, LONG_TAIL))
    assert "by 0.0e+00" in bench._compared({"one": same, "two": same})
    with pytest.raises(SystemExit, match="not the same training"):
        bench._compared({"one": same, "two": other})
    with pytest.raises(ValueError, match="zip"):
        rounds.differences([1.0], [1.0, 1.0])
    for one, others in (([1.0, math.nan, 1.0], [1.0] * 3), ([1.0] * 3, [1.0, math.nan, 1.0])):
        assert math.isnan(rounds.differences(one, others))


def test_a_working_folder_is_for_one_measurement(tmp_path: Path) -> None:
    assert rounds.describe(tmp_path / "work", {"device": "cpu"})
    assert not rounds.describe(tmp_path / "work", {"device": "cpu"})
    with pytest.raises(SystemExit, match="describes another measurement"):
        rounds.describe(tmp_path / "work", {"device": "cuda"})
    (tmp_path / "work" / "what.json").write_text("{")
    with pytest.raises(SystemExit, match=r"what.json is damaged .*; remove it"):
        rounds.describe(tmp_path / "work", {"device": "cpu"})
    (tmp_path / "work" / "what.json").rename(tmp_path / "work" / "else.json")
    with pytest.raises(SystemExit, match="holds other files; it must be new or empty"):
        rounds.describe(tmp_path / "work", {"device": "cpu"})
    with pytest.raises(SystemExit, match="cannot be made: Not a directory"):
        rounds.describe(tmp_path / "work" / "else.json" / "folder", {"device": "cpu"})


def test_an_interrupted_benchmark_says_how_to_go_on(tmp_path: Path) -> None:
    def interrupted(side: str, path: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="interrupted; what was measured is kept"):
        rounds.in_turn(["ours"], 1, tmp_path, interrupted)


def test_without_git_a_commit_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rounds, "ROOT", tmp_path)
    assert rounds.commit() == "unknown"
    monkeypatch.setenv("PATH", "")
    assert rounds.commit() == "unknown"


def test_peers_that_cannot_be_installed_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SystemExit, match=r"lacks trl==1.16.0.*bring the folder from a machine with a network"):
        train.install_peers(tmp_path, "cpu")


def test_rates_leave_the_warm_up_out() -> None:
    run = rounds.Measured([1.0] * 3, [1.0] * 3, [10.0, 12.0, 14.0], [1.0, 3.0, 5.0], [100, 200, 400], [10, 20, 40])
    assert run.rate(1) == 600 / 4
    assert run.trained_rate(1) == 60 / 4
    assert run.cpu_per_1000_tokens(1) == pytest.approx(1000 * 4 / 600)
    assert run.rate(2) == 400 / 2


@pytest.mark.ranks
def test_one_rank_and_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--small --engines zero2 --rounds 1 --steps 2 --warmup 1"
    ranks.main([*words.split(), "--work", str(tmp_path)])
    assert table(capsys.readouterr().out).keys() == {"", "one process", "zero2 × 1", "zero2 × 2"}


@pytest.mark.ranks
def test_the_start_up_to_the_first_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    startup.main(["--rounds", "1", "--sides", "one process", "--work", str(tmp_path)])
    ((seconds, _),) = [cells for side, cells in table(capsys.readouterr().out).items() if side]
    assert float(seconds) > 0


def test_the_output_layer_with_its_loss(capsys: pytest.CaptureFixture[str]) -> None:
    loss_head.main(
        "--tokens 64 --trained 0.5 --vocabulary 600 --width 64 --rounds 1 --threads 1 --dtype bfloat16".split()
    )
    printed = capsys.readouterr().out
    assert table(printed).keys() == {"", "cleansft", "fp32", "bf16"}
    assert "32 of 64 tokens trained" in printed


@pytest.mark.ranks
def test_what_one_gpu_computes_tried_on_a_cpu(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = "--small --cases 4B 8B-LoRA --steps 20 --rounds 1 --threads 1 --with compile=false".split()
    gpu.main([*words, "--work", str(tmp_path)])
    printed, told = capfd.readouterr()
    assert told.count("losses of 20 steps differ from the reference's") == 2
    rows = table(printed)
    assert rows.keys() == {"", "4B", "8B-LoRA"}
    assert float(rows["4B"][0].replace(",", "")) > 0
    assert rows["8B-LoRA"][6].partition(":")[0] == "15,000 tokens/s"
    with pytest.raises(SystemExit, match="describes another measurement") as refused:
        gpu.main([*words, "--work", str(tmp_path), "--with", "compile=false", "max_grad_norm=0.5"])
    assert "max_grad_norm: None there, 0.5 now" in str(refused.value)
    assert "learning_rate" not in str(refused.value)
    moved = shutil.copytree(tmp_path / "8B-LoRA", tmp_path / "elsewhere" / "8B-LoRA").parent
    gpu.main([*words, "--work", str(moved), "--cases", "8B-LoRA"])
    assert table(capfd.readouterr().out)["8B-LoRA"] == rows["8B-LoRA"]

    # A case that does not pass the gate has no line; the others have.
    reference = tmp_path / "4B" / "0-reference.json"
    record = json.loads(reference.read_text())
    reference.write_text(json.dumps({**record, "grad_norm": [1.03 * norm for norm in record["grad_norm"]]}))
    with pytest.raises(SystemExit, match="not measured, for the reasons above: 4B"):
        gpu.main([*words, "--rounds", "2", "--work", str(tmp_path)])
    printed, told = capfd.readouterr()
    assert table(printed).keys() == {"", "8B-LoRA"}
    assert "not the same training" in told
    assert not (tmp_path / "4B" / "1-cleansft.json").exists()
    assert (tmp_path / "8B-LoRA" / "1-cleansft.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--rounds 0", "--rounds is 0; it must be at least 1"),
        ("--steps 24 --warmup 24", "--warmup is 24; it must be at least 1 and below --steps, 24"),
        ("--steps 19", "--steps is 19; it must be at least 20"),
        ("--with compile", "it must be a setting, =, and its value"),
        ("--with max_steps=30", "for max_steps, --steps"),
        ("--with lora={r", "it must be JSON or YAML"),
        ("--with nonsense=1", "the key 'nonsense' i"),
        ("--with max_length=abc", "error: --with: max_length is 'abc'; it must be a whole number"),
    ],
)
def test_options_that_cannot_be_end_it_before_anything_runs(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        gpu.main(["--small", "--cases", "4B", "--work", str(tmp_path / "work"), *words.split()])
    assert said in f"{refused.value}{capsys.readouterr().err}"
    assert not (tmp_path / "work" / "4B").exists()


def run_of(**values: list[float]) -> dict[str, Any]:
    """Four steps, as gpu_parts.py has them."""
    steps = {"elapsed_s": [100.0, 110.0, 111.0, 113.0], "num_tokens": [10, 20, 30, 70]}
    shares = {"tflops_per_s": [1.0, 1.0, 989.0, 494.5], "mfu": [0.0, 0.0, 0.5, 0.8], "mfu_palm": [1.0] * 4}
    return {**steps, **shares, "peak_gib": 7.0, **values}


def test_a_line_of_the_gpu_leaves_the_warm_up_out() -> None:
    expected = "| 4B | 17 | 17–17 | 659.3 | 0.667 | 0.700 | 1.000 | MFU 0.55: met | 7.0 |"
    assert gpu.line("4B", [run_of()], 2) == expected
    assert "| 15,000 tokens/s: missed |" in gpu.line("8B-LoRA", [run_of()], 2)
    assert "| 15,000 tokens/s: met |" in gpu.line("8B-LoRA", [run_of(num_tokens=[0, 0, 0, 45_000])], 2)
    assert gpu.line("4B", [run_of(), run_of(num_tokens=[0, 0, 0, 30])], 2).startswith("| 4B | 13 | 10–17 |")


@pytest.mark.parametrize("worse", [{"loss": [2.0, 1.01]}, {"grad_norm": [1.0, 1.02]}, {"loss": [2.0, math.nan]}])
def test_a_run_on_the_gpu_that_trains_something_else_ends_it(worse: dict[str, list[float]]) -> None:
    reference = {"loss": [2.0, 1.0], "grad_norm": [1.0, 1.0]}
    ours = {"loss": [2.0, 1.0, 0.5], "grad_norm": [1.0, 1.0, 9.0]}
    assert "by 0.0e+00 at most" in gpu.compared("4B", ours, reference)
    with pytest.raises(SystemExit, match="not the same training"):
        gpu.compared("4B", ours, reference | worse)


@pytest.mark.parametrize("script", [gpu.main, train.main])
def test_without_a_gpu_those_that_need_one_say_so(
    script: Callable[[list[str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = ["--device", "cuda"] if script is train.main else []
    with pytest.raises(SystemExit, match="device is 'cuda'; it must be on this machine"):
        script(words)
    with pytest.raises(SystemExit, match="must be a multiple of 8"):
        train.main(["--documents", "12"])


def test_a_peer_on_a_gpu_gets_attention_within_each_document() -> None:
    """By our kernel, from the places in the row alone; on a CPU the same layout with its own kernel."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**small(MODELS["0.6B"])), dtype=torch.float32)
    ids, together = torch.arange(3, 12)[None], torch.arange(9)[None]
    places = torch.tensor([[0, 1, 2, 3, 0, 0, 1, 2, 3]])
    whole = model(ids).logits
    alone = torch.cat([model(ids[:, start:end]).logits for start, end in ((0, 4), (4, 5), (5, 9))], 1)
    model.set_attn_implementation(train_sides._varlen_attention())
    for where, expected in ((places, alone), (together, whole), (places, alone)):
        torch.testing.assert_close(model(ids, position_ids=where, use_cache=False).logits, expected)
    assert not torch.allclose(whole, alone, atol=1e-2)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_every_benchmark_stands_in_the_table(path: Path) -> None:
    assert re.search(rf"`{path.name}`", (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["train", "gpu", "ranks", "startup", "loss_head", "goodput"])
def test_a_benchmark_says_what_it_claims(name: str) -> None:
    ended = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert "Claim:" in ended.stdout


def test_what_a_checkpoint_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.main(["--parameters", "2", "--rounds", "1", "--work", str(tmp_path)])
    printed = capsys.readouterr().out
    assert table(printed).keys() == {"", "copy", "save", "until there", "lost"}
    assert "0.01 GB, 1 rounds" in printed
