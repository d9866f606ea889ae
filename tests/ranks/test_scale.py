"""Nothing that a rank asks for in a step grows with the data or with the number of ranks: counted, at 1, 2 and 4."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scenarios import prepare
from test_engines import run_scenario

pytestmark = pytest.mark.ranks
WORLDS = (1, 2, 4)
ENGINES = ("ddp", "fsdp2", "zero2")


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("scale")
    prepare(folder)
    for world_size in WORLDS:
        run_scenario("scale", folder, world_size)
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("counts-*.json"))]
    assert len(found) == (1 + 2 * len(ENGINES)) * 2 * sum(WORLDS)
    return found


def of(counts: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    return [each for each in counts if all(each[name] == value for name, value in wanted.items())]


def per_step(counts: list[dict[str, Any]], **wanted: Any) -> set[tuple[Any, ...]]:
    """What four more steps add on each rank: (collectives by kind, numbers in them, store keys, opens)."""
    found = set()
    for longer in of(counts, steps=7, **wanted):
        key = {name: longer[name] for name in ("engine", "world", "data", "rank")}
        (shorter,) = of(counts, steps=3, **key)
        kinds = longer["collectives"].keys() | shorter["collectives"].keys()
        more = {kind: longer["collectives"].get(kind, 0) - shorter["collectives"].get(kind, 0) for kind in kinds}
        found.add(
            (
                tuple(sorted((kind, number / 4) for kind, number in more.items() if number)),
                (longer["sent_numbers"] - shorter["sent_numbers"]) / 4,
                longer["store_keys"] - shorter["store_keys"],
                sum(longer["opens"].values()) - sum(shorter["opens"].values()),
            )
        )
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_asks_for_the_same_whatever_the_world_the_rank_and_the_data(
    counts: list[dict[str, Any]], engine: str
) -> None:
    (step,) = per_step(counts, engine=engine, world=2) | per_step(counts, engine=engine, world=4)
    collectives, _, store_keys, opens = step
    assert collectives
    assert (store_keys, opens) == (0, 0)


def test_a_step_of_ddp_is_one_collective_for_gradients_and_one_number_for_the_log(counts: list[dict[str, Any]]) -> None:
    ((alone, num_alone, *_),) = per_step(counts, engine="ddp", world=1)
    ((collectives, num_sent, *_),) = per_step(counts, engine="ddp", world=4)
    assert alone == (("gloo:all_reduce", 1.0),)
    assert collectives == (("gloo:all_reduce", 2.0),)
    assert num_sent == num_alone + 1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_rank_opens_as_many_files_for_much_data_in_a_large_world(counts: list[dict[str, Any]], engine: str) -> None:
    """Encoded data is opened once by each rank."""
    opens = {
        (each["world"], each["data"]): {name: number for name, number in each["opens"].items() if ".bin" in name}
        for each in of(counts, engine=engine, steps=7)
    }
    assert opens[1, "few"]
    assert all(found == opens[1, "few"] for found in opens.values())
    others = {sum(each["opens"].values()) for each in of(counts, engine=engine, steps=7) if each["rank"] > 0}
    assert len(others) == 1
