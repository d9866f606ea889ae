"""Several real processes: every engine computes the same, takes up where another left, and writes what loads."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from faults.recording import Shows
from safetensors.torch import load_file
from scenarios import ENGINES, PACKED_SPLITS, SPIKE_ENGINES, SPLITS, WORLD_CHAINS, WORLD_HOPS, prepare
from tiny import TOKENIZER, losses, moves_below_bfloat16

pytestmark = pytest.mark.ranks
ROOT = Path(__file__).resolve().parents[2]
Run = Callable[[str, Path, int], None]


def run_scenario(name: str, folder: Path, num_processes: int) -> None:
    """Runs a scenario under torchrun on a free port; its output is shown when it fails, or when a library warns."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command += [str(ROOT / "tests" / "ranks" / "scenarios.py"), name, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert "FutureWarning" not in done.stderr, done.stderr[-6000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    prepare(path)
    return path


@pytest.fixture(scope="module")
def gradients(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    for world_size in SPLITS:
        run_scenario("gradients", folder, world_size)
    return {path.stem: load_file(path) for path in sorted(folder.glob("*x*x*.safetensors"))}


def assert_same_gradients(label: str, found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Each gradient is the expected one, to 1e-5 of its largest entry."""
    for name, gradient in expected.items():
        scale = gradient.abs().max()
        assert scale > 0, name
        difference = (found[name] - gradient).abs().max() / scale
        assert difference < 1e-5, f"{label}: {name} differs by {difference:.1e}"


def test_gradients_are_those_of_one_process_for_every_engine_and_split(
    gradients: dict[str, dict[str, torch.Tensor]],
) -> None:
    expected = gradients["ddp-1x8x1"]
    assert len(gradients) == 5 * sum(len(splits) for splits in SPLITS.values())
    for label, found in gradients.items():
        assert_same_gradients(label, found, expected)


def test_failure_mode_21_packed_and_weighted_gradients_are_those_of_one_process(folder: Path) -> None:
    for world_size in PACKED_SPLITS:
        run_scenario("packed", folder, world_size)
    found = {path.stem: load_file(path) for path in sorted(folder.glob("packed-*x*x*.safetensors"))}
    assert len(found) == 3 * 4
    expected = found["packed-ddp-1x4x1"]
    for label, gradients in found.items():
        assert_same_gradients(label, gradients, expected)


def test_failure_mode_29_packed_runs_end_on_ranks_with_nothing_to_do(folder: Path) -> None:
    runs = {}
    for num_processes in (1, 4):
        run_scenario("packed_runs", folder, num_processes)
        runs[num_processes] = [
            losses(folder / f"packed-run-{name}-{num_processes}") for name in ("ddp", "fsdp2", "zero2", "zero3")
        ]
        for run in runs[num_processes][1:]:
            assert run == pytest.approx(runs[num_processes][0], rel=1e-5)
    assert len(runs[1][0]) > len(runs[4][0]) >= 2


@pytest.fixture(scope="module")
def resumed(folder: Path) -> Path:
    run_scenario("resume", folder, 2)
    return folder


@pytest.mark.parametrize(
    "label", ["ddp", "fsdp2", "zero0", "zero1", "zero2", "zero3", "ddp-lora", "fsdp2-lora", "zero3-lora"]
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_by_bit(resumed: Path, label: str) -> None:
    assert losses(resumed / f"{label}-resumed") == losses(resumed / label)
    file_name = "adapter_model.safetensors" if label.endswith("lora") else "model.safetensors"
    weights, expected = (sha256_of(resumed / name / file_name) for name in (f"{label}-resumed", label))
    assert weights == expected


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.parametrize("label", ["zero3-then-ddp", "ddp-then-zero2", "fsdp2-then-zero3", "zero1-then-fsdp2"])
def test_a_checkpoint_of_one_engine_is_taken_up_by_another(resumed: Path, label: str) -> None:
    assert losses(resumed / label) == pytest.approx(losses(resumed / "ddp"), rel=1e-5)


def rows_of(output_dir: Path) -> dict[int, list[int]]:
    """Step → the rows that its ranks computed in it, by what each noted as it did."""
    found: dict[int, list[int]] = {}
    for path in sorted(output_dir.glob("rows-*.jsonl")):
        for note in map(json.loads, path.read_text().splitlines()):
            found[note["step"]] = sorted(found.get(note["step"], []) + note["rows"])
    return found


def assert_goes_on_as(found: Path, straight: Path, step: int) -> None:
    """The run taken up after a step has computed the same rows in each step as the one that never stopped, with the
    same losses to 1e-5; and that one each row once in an epoch."""
    expected = rows_of(straight)
    assert rows_of(found) == {number: rows for number, rows in expected.items() if number > step}
    assert losses(found) == pytest.approx(losses(straight), rel=1e-5)
    assert _logged(found, "num_trained_tokens") == _logged(straight, "num_trained_tokens")
    epochs = json.loads((straight / "training_log.json").read_text())[-2]["epoch"]
    seen = sorted(row for rows in expected.values() for row in rows)
    assert seen == sorted(list(range(len(set(seen)))) * round(epochs))


@pytest.fixture(scope="module")
def other_worlds(resumed: Path) -> Path:
    for num_processes in WORLD_HOPS:
        run_scenario("other_worlds", resumed, num_processes)
    return resumed


@pytest.mark.parametrize("chain", WORLD_CHAINS)
def test_a_checkpoint_is_taken_up_by_other_numbers_of_ranks_in_the_same_order(
    other_worlds: Path, chain: str, shows: Shows
) -> None:
    """Two ranks, then one, then four: ZeRO-3, then DDP, then FSDP2; and each of them all the way."""
    for num_processes, (_, step) in WORLD_HOPS.items():
        assert_goes_on_as(other_worlds / f"worlds-{chain}-{num_processes}", other_worlds / "ddp", step)
    shows(48, note="two ranks, then one, then four: the same rows in each step")


def test_a_checkpoint_is_taken_up_by_other_engines_in_the_same_order(resumed: Path) -> None:
    """ZeRO-3, then DDP, then FSDP2, on two ranks."""
    run_scenario("other_engines", resumed, 2)
    for label, step in (("engines-ddp", 4), ("engines-fsdp2", 5)):
        assert_goes_on_as(resumed / label, resumed / "ddp", step)


@pytest.mark.soak
def test_a_run_that_moves_eight_times_sees_each_row_once_in_an_epoch(folder: Path) -> None:
    """Bar 2, further: other numbers of ranks and other engines, at random steps."""
    rng = random.Random(5)
    steps = [0, *sorted(rng.sample(range(1, 30), 8))]
    hops = [(rng.choice((1, 2, 4)), rng.choice([name for name in ENGINES if name != "zero0"])) for _ in steps]
    source = "none"
    for number, (step, (num_processes, engine)) in enumerate(zip(steps, hops, strict=True)):
        name = f"hop-{number}"
        told = {"name": name, "source": source, "step": step, "engine": engine}
        (folder / "hop.json").write_text(json.dumps(told))
        run_scenario("hop", folder, num_processes)
        source = name
        assert_goes_on_as(folder / name, folder / "hop-0", step)


def test_loss_spikes_are_left_out_by_every_engine(folder: Path) -> None:
    run_scenario("spikes", folder, 2)
    logs = {name: json.loads((folder / f"spikes-{name}" / "training_log.json").read_text()) for name in SPIKE_ENGINES}
    steps = {name: [record["step"] for record in log if record["type"] == "spike"] for name, log in logs.items()}
    assert all(found == steps["ddp"] for found in steps.values())
    assert max(steps["ddp"]) > 21  # in the second epoch, when the others are learnt
    for name in SPIKE_ENGINES:
        assert losses(folder / f"spikes-{name}") == pytest.approx(losses(folder / "spikes-ddp"), rel=1e-3)
        before, at, after = (_parts(folder / f"spikes-{name}", max(steps["ddp"]) + number) for number in (-1, 0, 1))
        assert before.keys() == at.keys()
        assert all(before[key].equal(at[key]) for key in before), name
        assert not all(after[key].equal(at[key]) for key in at), name


def _parts(output_dir: Path, step: int) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, by file and name."""
    files = sorted((output_dir / "checkpoints" / f"step-{step:08d}").glob("*.safetensors"))
    return {f"{path.name}:{name}": tensor for path in files for name, tensor in load_file(path).items()}


def run_interrupted(folder: Path, name: str, settings: dict[str, object], *, kill: bool) -> int:
    """Runs the scenario of this name; returns the launcher's exit code."""
    (folder / "settings.json").write_text(json.dumps({"name": name, "per_device_train_batch_size": 4, **settings}))
    (folder / "kill").unlink(missing_ok=True)
    if kill:
        (folder / "kill").touch()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(ROOT / "tests" / "ranks" / "scenarios.py"), "interrupted", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=500, check=False).returncode


@pytest.mark.parametrize(
    ("engine", "settings"),
    [
        ("zero2", {}),
        *(pytest.param(name, {}, marks=pytest.mark.soak) for name in ("ddp", "fsdp2", "zero1", "zero3")),
        pytest.param("ddp", {"lora": {"enabled": True, "r": 4, "dropout": 0.1}}, marks=pytest.mark.soak, id="lora"),
    ],
)
def test_a_run_that_was_killed_in_its_second_epoch_ends_as_one_that_was_not(
    folder: Path, engine: str, settings: dict[str, object]
) -> None:
    """Bar 1: float-hex losses and sha256 of the final weights."""
    name = f"interrupted-{engine}-{len(settings)}"
    settings = {**settings, **ENGINES[engine]}
    assert run_interrupted(folder, f"{name}-straight", settings, kill=False) == 0
    assert run_interrupted(folder, name, settings, kill=True) != 0
    # That of step 6 may still have been on its way: a run does not wait for it.
    assert {"step-00000003", "step-00000006"} & {path.name for path in (folder / name / "checkpoints").iterdir()}
    assert not list((folder / name).glob("*.safetensors"))
    assert run_interrupted(folder, name, settings, kill=False) == 0
    found, expected = ([loss.hex() for loss in losses(folder / part)] for part in (name, f"{name}-straight"))
    assert found == expected
    assert len(found) == 20
    records = json.loads((folder / name / "training_log.json").read_text())
    assert [record["step"] for record in records if record["type"] == "train"] == list(range(1, 21))
    (file,) = [path.name for path in (folder / name).glob("*.safetensors")]
    assert sha256_of(folder / name / file) == sha256_of(folder / f"{name}-straight" / file)


@pytest.fixture(scope="module")
def pretrained(folder: Path) -> Path:
    run_scenario("pretrained", folder, 2)
    return folder


@pytest.mark.parametrize("tied", ["tied", "untied"])
@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero1", "zero3"])
def test_a_model_with_a_resized_vocabulary_comes_out_whole(pretrained: Path, tied: str, engine: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output_dir = pretrained / f"{tied}-{engine}"
    model, info = AutoModelForCausalLM.from_pretrained(output_dir, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.bfloat16  # as the model that it started from
    tokenizer = AutoTokenizer.from_pretrained(output_dir)
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == len(tokenizer) == 512
    names = load_file(output_dir / "model.safetensors").keys()
    assert ("lm_head.weight" in names) == (tied == "untied")
    template = Path(TOKENIZER, "chat_template.jinja").read_bytes()
    assert (output_dir / "chat_template.jinja").read_bytes() == template
    assert model.generation_config.eos_token_id in (2, [2])
    assert losses(output_dir) == pytest.approx(losses(pretrained / f"{tied}-ddp"), rel=1e-4)


def test_ranks_with_nothing_to_do_neither_hang_nor_change_the_loss(folder: Path) -> None:
    for num_processes in (1, 2, 4):
        run_scenario("uneven", folder, num_processes)
    for num_processes, rows_per_step in ((1, 1), (2, 2), (4, 4)):
        runs = [losses(folder / f"uneven-{name}-{num_processes}") for name in ("ddp", "fsdp2", "zero2", "zero3")]
        assert len(runs[0]) == 2 * -(-5 // rows_per_step)
        for run in runs[1:]:
            assert run == pytest.approx(runs[0], rel=1e-5)


def test_tiny_learning_rates_move_the_float32_weights_of_every_engine(folder: Path) -> None:
    run_scenario("tiny_rates", folder, 2)
    for name in ENGINES:
        one, five = (load_file(folder / f"tiny-rates-{name}-{number}" / "model.safetensors") for number in (1, 5))
        moves_below_bfloat16(one, five, 4e-8)


def test_ranks_that_share_each_row_compute_what_one_process_does(folder: Path) -> None:
    for num_processes in (1, 2, 4):
        run_scenario("sequence", folder, num_processes)
    gradients = {path.stem: load_file(path) for path in sorted(folder.glob("sequence-*.safetensors"))}
    assert len(gradients) == 2 * (1 + 5 + 3)
    expected = gradients["sequence-plain-ddp-1"]
    for label, found in gradients.items():
        assert_same_gradients(label, found, expected)


@pytest.mark.parametrize(
    ("engine", "num_processes"),
    [
        *((name, 2) for name in ("ddp", "fsdp2", "zero0", "zero1", "zero2", "zero3")),
        ("ddp", 4),
        ("fsdp2", 4),
        ("zero3", 4),
    ],
)
def test_a_run_whose_ranks_share_each_row_is_that_of_one_process(folder: Path, engine: str, num_processes: int) -> None:
    found, expected = folder / f"sequence-run-{engine}-{num_processes}", folder / "sequence-run-ddp-1"
    assert losses(found) == pytest.approx(losses(expected), rel=1e-4)
    assert _logged(found, "num_tokens") == _logged(expected, "num_tokens")
    assert _logged(found, "eval_loss") == pytest.approx(_logged(expected, "eval_loss"), rel=1e-4)


def test_adapters_with_dropout_train_on_shared_packed_rows(folder: Path) -> None:
    for name in ("ddp", "fsdp2", "zero0", "zero1", "zero2", "zero3"):
        found = losses(folder / f"sequence-lora-{name}")
        assert found[-1] < found[0]


def _logged(output_dir: Path, name: str) -> list[float]:
    records = json.loads((output_dir / "training_log.json").read_text())
    return [record[name] for record in records if name in record]


def test_state_shared_within_nodes_trains_as_state_that_every_rank_has(folder: Path) -> None:
    run_scenario("within_nodes", folder, 4)
    expected = load_file(folder / "nodes-ddp" / "model.safetensors")
    for name in ("hybrid", "hpz"):
        assert losses(folder / f"nodes-{name}") == pytest.approx(losses(folder / "nodes-ddp"), rel=1e-5)
        assert losses(folder / f"nodes-{name}-resumed") == losses(folder / f"nodes-{name}")
        found = load_file(folder / f"nodes-{name}" / "model.safetensors")
        for key, tensor in expected.items():
            assert torch.allclose(found[key], tensor, atol=1e-4), (name, key)
