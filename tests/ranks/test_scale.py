"""Nothing that a rank asks for in a step grows with the data or with the number of ranks: counted, at 1, 2 and 4."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scenarios import prepare
from test_engines import run_scenario

pytestmark = [pytest.mark.ranks, pytest.mark.soak]
WORLDS = (1, 2, 4)
ENGINES = ("ddp", "zero2")  # not FSDP2: with torch's profiler on, it cannot exchange its parameters


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("scale")
    prepare(folder)
    for world_size in WORLDS:
        run_scenario("scale", folder, world_size)
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("counts-*.json"))]
    assert len(found) == 3 * 2 * sum(WORLDS)
    return found


def of(counts: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    return [each for each in counts if all(each[name] == value for name, value in wanted.items())]


def per_step(counts: list[dict[str, Any]], **wanted: Any) -> set[tuple[Any, ...]]:
    """What two more steps add on each rank: (collectives by kind, numbers in them, keys in the store since the run
    began, opened columns)."""
    found = set()
    for longer in of(counts, steps=4, **wanted):
        key = {name: longer[name] for name in ("engine", "world", "data", "rank")}
        (shorter,) = of(counts, steps=2, **key)
        kinds = longer["collectives"].keys() | shorter["collectives"].keys()
        more = {kind: longer["collectives"].get(kind, 0) - shorter["collectives"].get(kind, 0) for kind in kinds}
        found.add(
            (
                tuple(sorted((kind, number / 2) for kind, number in more.items() if number)),
                (longer["sent_numbers"] - shorter["sent_numbers"]) / 2,
                longer["store_keys"],
                _num_columns_opened(longer) - _num_columns_opened(shorter),
            )
        )
    return found


def _num_columns_opened(counts: dict[str, Any]) -> int:
    return sum(number for name, number in counts["opens"].items() if name.endswith(".bin"))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_asks_for_the_same_whatever_the_world_the_rank_and_the_data(
    counts: list[dict[str, Any]], engine: str
) -> None:
    by_world = {world: per_step(counts, engine=engine, world=world) for world in WORLDS[1:]}
    assert len({(kinds, keys, opens) for steps in by_world.values() for kinds, _, keys, opens in steps}) == 1
    ((kinds, numbers_of_two, store_keys, opens),), ((_, numbers_of_four, _, _),) = by_world[2], by_world[4]
    assert kinds
    assert (store_keys, opens) == (0, 0)
    assert numbers_of_four <= numbers_of_two  # what is sharded is smaller in each of more ranks


def test_a_step_of_ddp_is_one_collective_for_gradients_and_one_of_two_numbers(counts: list[dict[str, Any]]) -> None:
    """The second is the loss, with whether a rank was asked to stop."""
    ((alone, num_alone),) = {step[:2] for step in per_step(counts, engine="ddp", world=1)}
    ((collectives, num_sent),) = {step[:2] for step in per_step(counts, engine="ddp", world=4)}
    assert alone == (("gloo:all_reduce", 1.0),)
    assert collectives == (("gloo:all_reduce", 2.0),)
    assert num_sent == num_alone + 2


def test_a_rank_opens_as_many_files_for_much_data_in_a_large_world(counts: list[dict[str, Any]]) -> None:
    """Each column of the encoded data once; the run of 4 steps finds them encoded."""
    assert {_num_columns_opened(each) for each in of(counts, steps=4)} == {7}
    others = {sum(each["opens"].values()) for each in of(counts, steps=4) if each["rank"] > 0}
    assert len(others) == 1
