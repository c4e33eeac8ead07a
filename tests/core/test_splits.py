"""How many rows each split gets: shares of the whole, counts, and rows that are in no split."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftkit import interface as notebook
from ftkit.data.task import load_task
from ftkit.errors import RecipeError
from ftkit.recipe.load import load_recipe
from ftkit.records import Task

pytestmark = pytest.mark.usefixtures("fakes")

ROWS = [{"input": f"dialogue {i}", "target": f"summary {i}"} for i in range(40)]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def task_of(recipe: Callable[..., dict[str, Any]]) -> Callable[..., tuple[Task, dict[str, Any]]]:
    return lambda path, **dataset: load_task(load_recipe(recipe(dataset={"path": str(path), **dataset})))


@pytest.mark.parametrize(
    ("rows", "splits", "sizes"),
    [
        (300, {"train": 0.8, "validation": 0.1, "test": 0.1}, [240, 30, 30]),
        (305, {"train": 0.8, "validation": 0.1, "test": 0.1}, [244, 31, 30]),  # together they are all rows
        (5, {"train": 0.34, "validation": 0.33, "test": 0.33}, [2, 2, 1]),
        (100, {"train": 0.29, "validation": 0.29, "test": 0.42}, [29, 29, 42]),
        (300, {"train": 0.5, "validation": 10, "test": 0.25}, [150, 10, 75]),
        (300, {"train": 250, "validation": 25, "test": 25}, [250, 25, 25]),
        (300, {"train": 0.8, "validation": 0, "test": 60}, [240, 0, 60]),
    ],
)
def test_shares_are_shares_of_the_whole(tmp_path: Path, task_of: Any, rows: int, splits: Any, sizes: Any) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"input": f"q{i}", "target": "a"} for i in range(rows)])
    task, audit = task_of(path, splits=splits)
    assert [len(part) for part in (task.train, task.validation, task.test)] == sizes
    unused = rows - sum(sizes)
    assert [n for n in audit["notes"] if "in no split" in n] == (
        [f"{unused} of {rows} rows are in no split"] if unused else []
    )


def test_rows_in_no_split_are_said_per_part_of_the_data(tmp_path: Path, task_of: Any) -> None:
    for split, count in (("train", 20), ("val", 10), ("test", 10)):
        jsonl(tmp_path / f"{split}.jsonl", [{"input": f"{split}{i}", "target": "a"} for i in range(count)])
    task, audit = task_of(tmp_path, splits={"train": 0.5, "validation": 9, "test": 0.9})  # each of its own file
    audit["notes"].remove(f"not read, because no split has this name: rows/ (in {tmp_path})")
    assert [len(part) for part in task.splits.values()] == [10, 9, 9]
    assert sorted(audit["notes"]) == [
        "test: 1 of 10 rows is in no split",
        "train: 10 of 20 rows are in no split",
        "validation: 1 of 10 rows is in no split",
    ]


def test_repeats_that_are_left_out_are_no_lack_of_a_share(tmp_path: Path, task_of: Any) -> None:
    rows = [{"input": f"q{i % 50}", "target": str(i)} for i in range(100)]
    splits = {"train": 0.8, "validation": 0.1, "test": 0.1}
    task, audit = task_of(jsonl(tmp_path / "rows.jsonl", rows), splits=splits)
    assert len(task.test) == len(task.validation) == 10
    left_out = 80 - len(task.train)
    said = [int(n.split("; ")[1].split()[0]) for n in audit["notes"] if "left out" in n]
    assert left_out == sum(said) and not [n for n in audit["notes"] if "in no split" in n]
    assert not {e.input for e in task.train} & {e.input for e in (*task.test, *task.validation)}


def test_shares_above_one_and_below_a_row(tmp_path: Path, task_of: Any) -> None:
    path = jsonl(tmp_path / "rows.jsonl", ROWS)
    for shares, says in (
        ((0.8, 0.2, 0.1), r"train and validation and test are more than all rows: .* = 1\.1"),
        ((0.8, 0.1, 0.001), r"splits\.test: a share of 0\.001 of 40 rows is less than one"),
        ((0.9, 0, 20), "36 rows are wanted and only 20 are left after validation and test"),
    ):
        with pytest.raises(RecipeError, match=says):
            task_of(path, splits=dict(zip(("train", "validation", "test"), shares, strict=True)))


def test_shares_above_one_are_told_with_their_place(tmp_path: Path, recipe_file: Callable[..., Path]) -> None:
    path = jsonl(tmp_path / "rows.jsonl", ROWS)
    file = recipe_file(dataset={"path": str(path)})
    child = tmp_path / "child.yaml"
    child.write_text("extends: recipe.yaml\ndataset:\n  splits:\n    train: 0.8\n    test: 0.3\n    validation: 0\n")
    with pytest.raises(RecipeError) as caught:
        notebook.load(child)
    (problem,) = caught.value.problems
    assert (problem.key, problem.file, problem.line) == ("dataset.splits.test", str(child), 5)
    assert file.exists() and "0.8 + 0.3 = 1.1" in problem.message
