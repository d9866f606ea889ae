"""Files and folders that are whole or not there, and weights in shards that keep layers together."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from sft.errors import StorageError
from sft.storage import TensorEntry, new_files, new_folder, storage_errors, write_json, write_tensors


def entries(*names: str, num_elements: int = 10) -> list[TensorEntry]:
    def entry(number: int, name: str) -> TensorEntry:
        return TensorEntry(name, num_elements * 4, lambda: torch.full((num_elements,), float(number)))

    return [entry(number, name) for number, name in enumerate(names)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"x": [float("-inf")]}])
def test_numbers_that_are_none_are_refused_and_leave_the_old_file(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "a.json", {"é": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", value)
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "é": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_half_characters_come_back_as_they_were(tmp_path: Path) -> None:
    value = {"data \udcff.jsonl": "\ud800 é 😀"}  # as a file's name that is no UTF-8 gives, and as JSON can write
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value


def test_a_place_that_takes_no_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written") as caught:
        write_json(tmp_path / "file" / "a.json", {})
    assert str(tmp_path / "file" / "a.json") in str(caught.value)
    assert caught.value.exit_code == 13


def test_a_folder_that_is_gone_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"a\.json cannot be written: \S+/run is gone\. It must stay where it is"):
        write_json(tmp_path / "run" / "checkpoints" / "a.json", {})


def test_weights_may_be_read_by_those_who_may_read_other_files(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    write_tensors(entries("a"), tmp_path, "model", is_main=True)
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "other"}


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    with new_folder(tmp_path / "step") as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_text("a")
        assert not (tmp_path / "step").exists()
    assert (tmp_path / "step" / "inner" / "a").read_text() == "a"
    assert [path.name for path in tmp_path.iterdir()] == ["step"]


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt()])
def test_a_folder_that_failed_leaves_nothing_and_the_old_one_stays(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "old").write_text("old")

    def fail() -> None:
        with new_folder(tmp_path / "step") as folder:
            (folder / "new").write_text("new")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["step"]
    assert [path.name for path in (tmp_path / "step").iterdir()] == ["old"]


def test_a_full_disk_inside_the_body_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No space left on device"), new_folder(tmp_path / "step"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_the_place_of_an_old_one_and_of_leftovers(tmp_path: Path) -> None:
    (tmp_path / ".step.tmp").mkdir()
    (tmp_path / ".step.tmp" / "leftover").write_text("")
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "old").write_text("")
    with new_folder(tmp_path / "step") as folder:
        (folder / "new").write_text("")
    assert [path.name for path in (tmp_path / "step").iterdir()] == ["new"]


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """The system takes no larger ones from this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_safetensors_cannot_write_is_a_storage_error_and_leaves_nothing(tmp_path: Path) -> None:
    expected = pytest.raises(StorageError, match=r"cannot be written: File too large\. Free space")
    with expected as caught, files_of_at_most(1000):
        write_tensors(entries("a", num_elements=10_000), tmp_path, "model", is_main=True)
    assert caught.value.exit_code == 13
    assert list(tmp_path.iterdir()) == []


def test_what_a_tokenizer_cannot_write_is_a_storage_error_and_leaves_the_old_files(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("old")
    words = {f"word{number}": number for number in range(1000)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="word0"))
    refused = pytest.raises(StorageError, match="cannot be written: File too large")
    with refused, files_of_at_most(1000), new_files(tmp_path) as folder:
        (folder / "config.json").write_text("{}")
        tokenizer.save(str(folder / "tokenizer.json"))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_new_files_take_the_place_of_old_ones(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").write_text("old")
    with new_files(tmp_path) as folder:
        (folder / "a").write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new", "b": "old"}


def test_an_error_of_no_system_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), storage_errors(tmp_path):
        raise ValueError("mine (os error 28) and more")


def test_small_models_are_one_file_without_an_index(tmp_path: Path) -> None:
    write_tensors(entries("a", "b"), tmp_path, "model", is_main=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert {name: float(tensor[0]) for name, tensor in found.items()} == {"a": 0.0, "b": 1.0}


def test_large_models_are_cut_between_layers_and_never_inside_one(tmp_path: Path) -> None:
    names = ["embed", *(f"model.layers.{layer}.{part}" for layer in range(4) for part in ("q", "k.0", "k.1")), "head"]
    write_tensors(entries(*names), tmp_path, "model", is_main=True, max_shard_bytes=260)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert list(index["weight_map"]) == names
    assert index["metadata"]["total_size"] == len(names) * 40
    for layer in range(4):
        assert len({index["weight_map"][name] for name in names if f".{layer}." in name[:15]}) == 1
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    assert len(files) == 3
    for file in files:
        held = load_file(tmp_path / file)
        assert sum(tensor.nbytes for tensor in held.values()) <= 260
        assert set(held) == {name for name, place in index["weight_map"].items() if place == file}


def test_a_layer_larger_than_a_shard_gets_a_shard_of_its_own(tmp_path: Path) -> None:
    write_tensors(entries("l.0.a", "l.0.b", "l.1.a"), tmp_path, "model", is_main=True, max_shard_bytes=50)
    held = [set(load_file(path)) for path in sorted(tmp_path.glob("*.safetensors"))]
    assert held == [{"l.0.a", "l.0.b"}, {"l.1.a"}]


def test_other_ranks_fetch_every_tensor_in_order_and_write_nothing(tmp_path: Path) -> None:
    fetched: list[str] = []

    def entry(name: str) -> TensorEntry:
        def get() -> torch.Tensor:
            fetched.append(name)
            return torch.zeros(1)

        return TensorEntry(name, 4, get)

    write_tensors([entry(name) for name in "cab"], tmp_path, "model", is_main=False, max_shard_bytes=4)
    assert fetched == ["c", "a", "b"]
    assert list(tmp_path.iterdir()) == []


def test_tensors_are_renamed_where_the_format_wants_it(tmp_path: Path) -> None:
    write_tensors(
        entries("a.0", "a.1"), tmp_path, "model", is_main=True, max_shard_bytes=40,
        transform=lambda tensors: {f"x.{name}": tensor for name, tensor in tensors.items()},
    )  # fmt: skip
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {"x.a.0", "x.a.1"}
