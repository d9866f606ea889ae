"""Rows and figures of evaluations: where they are written, what is read of them, and when two are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sft.errors import DataError, StorageError
from sft.evaluation_files import place_for, read_rows, write_evaluation
from sft.scores import comparison_table, comparisons_of, figures_of, has_other_tokens, table


def made_row(number: int, **values: Any) -> dict[str, Any]:
    """A row as an evaluation writes it."""
    row = {
        "row": number, "question_sha256": f"{number:064x}", "source": f"data.jsonl:{number + 1}", "reference": "8",
        "generation": "8", "metrics": {"exact": 1.0}, "loss_sum": 2.0, "loss_weight": 4.0, "trained_tokens": 4,
        "new_tokens": 1, "stopped": True, "unanswered": False,
    }  # fmt: skip
    return {**row, **values}


def write(folder: Path, data: str, rows: list[dict[str, Any]]) -> Path:
    """Writes an evaluation on some data; where its rows are."""
    place = place_for(folder, data)
    write_evaluation(place, figures_of(rows, "model", data), rows)
    return place.rows


def test_what_was_written_is_read_whatever_ends_lines_for_others(tmp_path: Path) -> None:
    rows = [
        made_row(number, generation=f"one{end}two") for number, end in enumerate("\u2028\u2029\x85\r\n\x0b\x0c\x1c")
    ]
    assert read_rows(write(tmp_path, "data.jsonl", rows)) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"prompt": "a", "response": "b"}\n', ":1 is no row of an evaluation: it has no `row`"),
        (f"{json.dumps(made_row(0))}\n[1]\n", ":2 is no row of an evaluation: it is a list"),
        (f"{json.dumps(made_row(0))}\nnull\n", ":2 is no row of an evaluation: it is null"),
        ("row 1", ":1 is no row of an evaluation: not valid JSON"),
        (json.dumps(made_row(0, metrics=[1])), "its `metrics` is a list"),
        (json.dumps(made_row(0, metrics={"exact": "yes"})), "its score `exact` is text"),
        (json.dumps(made_row(0, loss_sum=float("nan"))), "NaN is no JSON number"),
    ],
)
def test_what_is_no_evaluation_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(DataError) as refused:
        read_rows(tmp_path / "rows.jsonl")
    assert message in str(refused.value)
    assert "rows.jsonl" in str(refused.value)
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "none.jsonl")


def test_only_a_known_suffix_is_no_part_of_the_name(tmp_path: Path) -> None:
    names = ["test.v1.jsonl", "test.v2.jsonl.gz", "test.v3.parquet", "folder.v4", "owner/name@test"]
    found = [write(tmp_path, name, [made_row(0)]).name for name in names]
    assert found == ["test.v1.jsonl", "test.v2.jsonl", "test.v3.jsonl", "folder.v4.jsonl", "name@test.jsonl"]


def test_an_evaluation_takes_the_place_of_one_on_the_same_data_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.jsonl").write_text("{}\n")
    output = tmp_path / "out"
    monkeypatch.chdir(tmp_path / "a")
    assert write(output, "test.jsonl", [made_row(0)]).name == "test.jsonl"
    assert place_for(output, "test.jsonl").taken_by is None
    monkeypatch.chdir(tmp_path / "b")
    other = place_for(output, "test.jsonl")
    assert (other.rows.name, other.figures.name) == ("test-2.jsonl", "test-2.json")
    assert other.taken_by == str(tmp_path / "a" / "test.jsonl")
    write(output, "./test.jsonl", [made_row(0)])
    for name, data in (("test", tmp_path / "a"), ("test-2", tmp_path / "b")):
        assert place_for(output, str(data / "test.jsonl")).rows.name == f"{name}.jsonl"
    (tmp_path / "a" / "test.jsonl").rename(tmp_path / "moved.jsonl")
    assert place_for(output, "test.jsonl").rows.name == "test.jsonl"  # that data is here no more, under the same words


def test_an_evaluation_of_an_older_version_is_known_by_what_was_typed(tmp_path: Path) -> None:
    (tmp_path / "test.json").write_text(json.dumps({"data": "owner/test", "figures": {}}))
    assert place_for(tmp_path, "owner/test").rows.name == "test.jsonl"
    assert place_for(tmp_path, "other/test").rows.name == "test-2.jsonl"


@pytest.mark.parametrize("own", ["test.jsonl", "test.json"])
def test_a_file_that_no_evaluation_wrote_is_left_alone(tmp_path: Path, own: str) -> None:
    (tmp_path / own).write_text('{"prompt": "a", "response": "b"}\n')
    rows = write(tmp_path, str(tmp_path / own), [made_row(0)])
    assert rows.name == "test-2.jsonl"
    assert (tmp_path / own).read_text() == '{"prompt": "a", "response": "b"}\n'


def test_a_folder_that_takes_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        place_for(tmp_path / "file" / "evaluation", "test.jsonl")


def test_rows_are_the_same_by_what_was_asked_and_not_by_how_it_was_called() -> None:
    rows = [made_row(number) for number in range(3)]
    others = [made_row(number, source=f"/here/data.jsonl:{number + 1}", reference="<8>") for number in range(3)]
    assert comparisons_of(rows, others)["exact"].num_rows == 3
    for wrong in (others[:2], [*others[:2], made_row(2, question_sha256="0" * 64)], others[::-1]):
        with pytest.raises(DataError, match="must be of the same questions"):
            comparisons_of(rows, wrong)


def test_losses_are_compared_on_all_rows_or_not_at_all() -> None:
    rows = [made_row(number) for number in range(20)]
    others = [made_row(number, loss_sum=2.5) for number in range(20)]
    assert comparisons_of(rows, others)["loss"].difference == pytest.approx(-0.125)
    assert not has_other_tokens(rows, others)
    others[7].update(loss_weight=5.0, trained_tokens=5)
    found = comparisons_of(rows, others)
    assert set(found) == {"exact"}
    assert has_other_tokens(rows, others)
    assert "losses are not compared" in comparison_table(found, "one", "two", with_other_tokens=True)
    without = [made_row(number, loss_sum=None, loss_weight=0, trained_tokens=0) for number in range(20)]
    assert set(comparisons_of(rows, without)) == {"exact"}
    assert not has_other_tokens(rows, without)


def test_the_tables_tell_how_many_rows_each_figure_is_of() -> None:
    rows = [made_row(number, metrics={"exact": 1.0, "numeric": 1.0 if number else None}) for number in range(1200)]
    lines = comparison_table(comparisons_of(rows, rows), "one", "two").splitlines()
    assert lines[1].split() == ["metric", "difference", "95", "%", "interval", "p", "rows"]
    assert [line.split()[-1] for line in lines[2:]] == ["1,200", "1,199", "1,200"]
    assert len({len(line) for line in lines[1:]}) == 1


def test_rows_without_a_finite_loss_are_named_and_left_out_of_it() -> None:
    rows = [made_row(number, loss_sum=None if number % 3 == 0 else 2.0) for number in range(36)]
    found = figures_of(rows, "model", "data.jsonl")
    assert (found.num_not_finite, found.figures["loss"].num_rows) == (12, 24)
    assert found.figures["loss"].value == pytest.approx(0.5)
    said = table(found)
    assert "12 rows without a finite loss, left out of it: data.jsonl:1, data.jsonl:4" in said
    assert "data.jsonl:28, 2 more" in said
    assert comparisons_of(rows, [made_row(number) for number in range(36)])["loss"].num_rows == 24
